"""A restore, and verifying at each level, against the floor: the age, zstd and tar commands on the same volumes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from benchmarks._bench import Bench, document
from benchmarks._measure import Run, command, figures, in_turn, ratio, worker
from benchmarks._site import site

# $1 the volumes' directory, $2 the identity, $3 the target; two volumes side by side.
_EACH_VOLUME = 'find "$1" -name "*.tar.zst.age" -print0 | xargs -0 -P 2 -I{} '
_UNPACK = _EACH_VOLUME + 'sh -c \'age -d -i "$2" "$1" | zstd -dcq | tar xf - -C "$3"\' sh {} "$2" "$3"'
_READ = _EACH_VOLUME + 'sh -c \'age -d -i "$2" "$1" | zstd -dcq | tar tf - >/dev/null\' sh {} "$2"'
_HASH = _EACH_VOLUME + "sha256sum {}"


def restore(bench: Bench) -> dict[str, Any]:
    """Whole processes. Ours also compare two hashes per volume, and refuse a target that is in use."""
    with bench.server() as server:
        folder = bench.fresh("site")
        environment = site(folder, server, where="client")
        worker("base", environment=environment)
    identity = folder / "identity"
    identity.write_text(json.loads(environment["AIRFLOW_CONN_BENCH_IDENTITY"])["password"])

    def by_hand(script: str, target: Path = folder) -> Run:
        arguments = ("sh", "-euc", script, "sh", folder / "repository", identity, target)
        return command(*arguments, environment={"PATH": os.environ["PATH"]})

    def unpack() -> Run:
        return by_hand(_UNPACK, bench.fresh("by-hand"))

    def ours() -> Run:
        return worker("restore", str(bench.fresh("restored") / "data"), environment=environment)

    contenders = {
        "age | zstd | tar x": unpack,
        "recovery restore": ours,
        "sha256sum": lambda: by_hand(_HASH),
        "verify --level checksum": lambda: worker("verify", "checksum", environment=environment),
        "age | zstd | tar t": lambda: by_hand(_READ),
        "verify --level opens": lambda: worker("verify", "opens", environment=environment),
    }
    rounds = in_turn(contenders, rounds=bench.rounds)
    for name in ("by-hand", "restored", "site"):
        shutil.rmtree(bench.folder / name)
    pairs = list(contenders)
    ratios = [ratio(rounds, ours, floor) for floor, ours in zip(pairs[::2], pairs[1::2], strict=True)]
    return document(bench, figures=figures(rounds), ratios=ratios)
