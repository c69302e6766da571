"""The demo: Airflow backs up a live Postgres and its Vault into S3, and proves both together; then a table is dropped,
and brought back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.airflow import Airflow
from lab.clients import installation_of
from lab.demo_moment import destroy_and_restore
from lab.demo_report import page, table
from lab.errors import LabError
from lab.system import Lab
from recovery.drill import evidence
from recovery.repository import catalog
from recovery.vault import catalog as vault_catalog

SYSTEM = "app038"
_POLL_SECONDS = 1.0
_RUN_SECONDS = 240.0
_QUIET_STATES = (None, "scheduled", "queued", "none")


@dataclass(frozen=True)
class DagRun:
    """One DAG run as the demo saw it."""

    dag: str
    run: str
    state: str
    seconds: float
    tasks: dict[str, str]


def run(root: Path, *, size_mb: int, say: Callable[[str], None]) -> int:
    """Start the lab, run the main job through Airflow's scheduler, and write the report. Exit status 0 or 1."""
    begun = time.monotonic()
    with Lab(root, size_mb=size_mb, vault=True, prometheus=True, staging=True, progress=say) as lab:
        assert lab.airflow is not None
        say("The Vault's key encrypts a canary, a row of App038's database")
        canary = _follow(lab.airflow, "vault_canary", say)
        say("Airflow backs up App038 while its application goes on writing")
        backup = _follow(lab.airflow, "postgres_full_backup", say)
        say("Airflow takes a snapshot of the Vault that holds the keys of its rows")
        snapshot = _follow(lab.airflow, "vault_snapshot", say)
        say("Airflow restores both in isolation, compares every row, and opens rows of the one with keys of the other")
        drill = _follow(lab.airflow, "restore_drill", say)
        say("Airflow backs up what has changed since")
        incremental = _follow(lab.airflow, "postgres_incremental_backup", say)
        say("An accident, while Airflow streams the WAL")
        accident = destroy_and_restore(lab, SYSTEM, say)
        runs = [canary, backup, snapshot, drill, incremental]
        report = _report(lab, runs, accident, seconds=time.monotonic() - begun)
        for run_ in runs:
            _show_failures(lab.airflow, run_, say)
    (root / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    (root / "report.html").write_text(page(report))
    table(report, root / "report.html")
    return 0 if report["ok"] else 1


def _follow(airflow: Airflow, dag: str, say: Callable[[str], None]) -> DagRun:
    """Trigger a DAG and say each change of its tasks until it ends."""
    begun = time.monotonic()
    identifier = airflow.trigger(dag)
    seen: dict[str, str | None] = {}
    while True:
        state = str(airflow.request("GET", f"dags/{dag}/dagRuns/{identifier}").json()["state"])
        for task in airflow.task_instances(dag, identifier):
            name = task["task_id"] + (f" [{task['rendered_map_index'] or ''}]" if task["map_index"] >= 0 else "")
            if task["state"] not in _QUIET_STATES and seen.get(name) != task["state"]:
                seen[name] = task["state"]
                say(f"  {dag}: {name} {task['state']}")
        if state in ("success", "failed"):
            tasks = {task["task_id"]: str(task["state"]) for task in airflow.task_instances(dag, identifier)}
            return DagRun(dag, identifier, state, round(time.monotonic() - begun, 1), tasks)
        if time.monotonic() - begun > _RUN_SECONDS:
            raise LabError(f"{dag} has not ended after {_RUN_SECONDS:.0f} s: {seen}")
        time.sleep(_POLL_SECONDS)


def _show_failures(airflow: Airflow, run_: DagRun, say: Callable[[str], None]) -> None:
    for task in airflow.task_instances(run_.dag, run_.run):
        if task["state"] == "failed":
            text = airflow.task_log(
                run_.dag, run_.run, task["task_id"], try_number=task["try_number"], map_index=task["map_index"]
            )
            say(f"{run_.dag} {task['task_id']} failed; the end of its log:\n" + "\n".join(text.splitlines()[-15:]))


def _report(lab: Lab, runs: list[DagRun], accident: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    """What the repository holds now, not what a job said; `ok` only if everything is there and held."""
    store = installation_of(lab).store_of(SYSTEM)
    found = catalog.read(store, SYSTEM)
    drills = list(evidence.read_all(store))
    newest = drills[-1] if drills else {}
    kinds = {backup.manifest.kind for backup in found.backups}
    snapshots = vault_catalog.read(store, SYSTEM).backups
    opened = [check for check in newest.get("checks", []) if check["name"] == "canaries"]
    compared = [entry for entry in newest.get("tables", []) if entry["verdict"] == "ok"]
    held = {
        "all DAG runs succeeded": all(run_.state == "success" for run_ in runs),
        "the repository holds a full, an incremental and a dump": kinds == {"full", "incremental", "dump"}
        and not found.problems,
        "the repository holds a verified snapshot of the Vault": any(each.manifest.snapshot for each in snapshots),
        "the drill proved that base backup": newest.get("verdict") == "ok"
        and newest.get("backup") == (backup.id if (backup := found.newest("full")) else None),
        "every table was compared, and no row differs": bool(compared)
        and len(compared) == len(newest["tables"])
        and sum(entry["rows"] for entry in compared) > 0,
        "rows of the restored database open with keys of the restored Vault": newest.get("kind") == "set"
        and newest.get("snapshot") in {each.id for each in snapshots}
        and [check["verdict"] for check in opened] == ["ok"],
        "the dropped table is back as it was the second before": accident["equal"] and accident["rows"] > 0,
    }
    return {
        "ok": all(held.values()),
        "held": held,
        "seconds": round(seconds, 1),
        "lab_ready_seconds": round(lab.ready_seconds or 0.0, 1),
        "repository": store.description,
        "dag_runs": [
            {"dag": run_.dag, "state": run_.state, "seconds": run_.seconds, "tasks": run_.tasks} for run_ in runs
        ],
        "backups": [
            backup.summary() | {"copy_seconds": backup.manifest.timings_seconds["copy"]} for backup in found.backups
        ],
        "snapshots": [each.summary() for each in snapshots],
        "drill": newest,
        "accident": accident,
    }
