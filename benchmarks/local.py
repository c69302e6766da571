"""A base backup into a local directory against draining the same stream with the same compression."""

from __future__ import annotations

import shutil
from typing import Any

from benchmarks._bench import Bench, document
from benchmarks._measure import Contender, Run, figures, in_turn, ratio, worker
from benchmarks._site import site

GOAL = 1.5


def local(bench: Bench) -> dict[str, Any]:
    """What encryption, hashing and writing cost on top of the stream. Both are timed without the start of Python."""
    found, ratios = [], []
    with bench.server() as server:
        for where in ("client", "server"):
            folder = bench.fresh("site")
            environment = site(folder, server, where=where)

            def drain(where: str = where, environment: dict[str, str] = environment) -> Run:
                return worker("drain", where, environment=environment, inner=True)

            def base(environment: dict[str, str] = environment) -> Run:
                run = worker("base", environment=environment, inner=True)
                shutil.rmtree(bench.folder / "site" / "repository")
                return run

            drained, taken = f"drain, {where} zstd", f"base backup, {where} zstd"
            contenders: dict[str, Contender] = {drained: drain, taken: base}
            rounds = in_turn(contenders, rounds=bench.rounds)
            found += figures(rounds)
            ratios.append(ratio(rounds, taken, drained, goal=GOAL))
    shutil.rmtree(bench.folder / "site")
    return document(bench, figures=found, ratios=ratios)
