"""A Vault's snapshot, taken, verified and sealed, against plainly saving the same stream to a file."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyrage
import yaml

from benchmarks._bench import Bench, document
from benchmarks._measure import figures, in_turn, ratio, verdict, worker
from lab.bao import OpenBao

ENTRIES = 200_000
GOAL = 1.5
GOAL_MIB = 128
_WRITERS = 8
_VALUE_BYTES = 96


def vault(bench: Bench) -> dict[str, Any]:
    """200,000 KV v2 entries; both contenders are processes of their own, timed from the work's first step."""
    folder = bench.fresh("vault")
    with OpenBao(folder / "node") as node:
        _fill(node)
        environment = _site(folder, node)

        def save() -> Any:
            return worker("vault-save", str(folder / "saved.snap"), environment=environment, inner=True)

        def ours() -> Any:
            shutil.rmtree(folder / "repository", ignore_errors=True)
            return worker("vault-snapshot", environment=environment, inner=True, watch=True)

        rounds = in_turn({"saved plainly": save, "recovery backup vault": ours}, rounds=bench.rounds)
        peak = max(one["recovery backup vault"].peak_rss_bytes or 0 for one in rounds) / 2**20
        size = (folder / "saved.snap").stat().st_size
    shutil.rmtree(folder)
    return document(
        bench,
        figures=figures(rounds),
        ratios=[
            ratio(rounds, "recovery backup vault", "saved plainly", goal=GOAL),
            verdict("peak of the process, MiB", peak, goal=GOAL_MIB),
            verdict("the snapshot, MB", size / 1e6, goal=None),
        ],
    )


def _fill(node: OpenBao) -> None:
    node.request("POST", "sys/mounts/secret", body={"type": "kv", "options": {"version": "2"}})
    print(f"  writing {ENTRIES} entries", file=sys.stderr)

    def write(first: int) -> None:
        with httpx.Client(base_url=node.address, headers={"X-Vault-Token": node.root_token}, trust_env=False) as client:
            for number in range(first, ENTRIES, _WRITERS):
                body = {"data": {"key": secrets.token_hex(_VALUE_BYTES // 2)}}
                answer = client.post(f"/v1/secret/data/app038/{number % 1000}/{number}", json=body)
                while answer.status_code == httpx.codes.BAD_REQUEST:  # Version 2 is still being set up.
                    answer = client.post(f"/v1/secret/data/app038/{number % 1000}/{number}", json=body)
                answer.raise_for_status()

    with ThreadPoolExecutor(_WRITERS) as writers:
        list(writers.map(write, range(_WRITERS)))


def _site(folder: Path, node: OpenBao) -> dict[str, str]:
    identity = pyrage.x25519.Identity.generate()
    configuration = {
        "version": 1,
        "encryption": {"recipients": [str(identity.to_public())]},
        "repositories": {"primary": {"directory": {"path": str(folder / "repository")}}},
        "vault": {"bench": {"product": "openbao", "connection": "bench_vault", "repository": "primary"}},
    }
    path = folder / "recovery.yaml"
    path.write_text(yaml.safe_dump(configuration))
    connection = {"conn_type": "vault", "host": node.host, "port": node.port, "password": node.root_token}
    return {"RECOVERY_CONFIG": str(path), "AIRFLOW_CONN_BENCH_VAULT": json.dumps(connection)}
