"""Write each system's canary anew: a row in its database that is encrypted with a transit key of its Vault.

A drill that restores both sides decrypts the rows. Where the key was rotated since the newest snapshot, a snapshot is
taken at once: rows of the new version could not be opened with any that there is.

**When it is red**: open the red task's log; its last line says what failed, where, and what to do. Backups go on
without it; drills say `unknown` where there is no canary.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, get_current_context, task

from orchestration import vault_work, work
from orchestration.schedules import cron


@task
def systems() -> list[str]:
    return vault_work.canaries()


@task(map_index_template="{{ system }}", queue="backup")
def canary(system: str) -> dict[str, Any]:
    get_current_context()["system"] = system
    return vault_work.refresh_canary(system)


@task
def due(kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    vaults = sorted({each["vault"] for each in kept if each["due"]})
    return [{"vaults": [vault], "type": "snapshot"} for vault in vaults]


@task
def snapshot(conf: dict[str, Any]) -> None:
    work.trigger("vault_snapshot", conf)


@dag(
    schedule=cron("40 * * * *"),
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1), "execution_timeout": timedelta(minutes=10)},
    tags=["recovery", "vault"],
    doc_md=__doc__,
)
def vault_canary() -> None:
    snapshot.expand(conf=due(canary.expand(system=systems())))


vault_canary()
