"""Back up each Vault or OpenBao: a Raft snapshot, verified while it streams, and the export of its policies.

A snapshot that does not verify is never committed. The canary rows are written first, so that the snapshot and the
next recovery point of the database share a proof that they belong together.

**When it is red**: open the red task's log; its last line says what failed, where, and what to do. Nothing half-made
counts: a backup exists only when its manifest was written. Clear the task, or trigger the DAG again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Metadata, Param, TriggerRule, dag, get_current_context, task

from orchestration import forms, vault_work
from orchestration.assets import VAULT_BACKUP
from orchestration.schedules import cron

NAMED = {"map_index_template": "{{ system }}"}


@task
def vaults(params: dict[str, Any] | None = None) -> list[str]:
    return vault_work.chosen_vaults((params or {})["vaults"])


@task
def canaries(vaults: list[str]) -> list[str]:
    return vault_work.canaries(vaults)


@task(**NAMED, queue="backup")
def canary(system: str) -> dict[str, Any]:
    get_current_context()["system"] = system
    return vault_work.refresh_canary(system)


# Whatever became of the canaries: a snapshot without one is still a snapshot.
@task(**NAMED, queue="backup", trigger_rule=TriggerRule.ALL_DONE)
def snapshot(vault: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    get_current_context()["system"] = vault
    return vault_work.back_up(vault, (params or {})["type"])


@task(**NAMED, queue="backup", outlets=[VAULT_BACKUP])
def check(backup: dict[str, Any]) -> Any:
    get_current_context()["system"] = backup["system"]
    yield Metadata(VAULT_BACKUP, extra=vault_work.check(backup))


@dag(
    schedule=cron("0 3 * * *"),
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=2), "execution_timeout": timedelta(hours=4)},
    params={
        "vaults": forms.systems(),
        "type": Param(
            "full",
            type="string",
            enum=["full", "snapshot"],
            title="Type",
            description="`full`: the snapshot and the export of policies; `snapshot`: the snapshot alone.",
        ),
    },
    tags=["recovery", "vault", "backup"],
    doc_md=__doc__,
)
def vault_snapshot() -> None:
    chosen = vaults()
    taken = snapshot.expand(vault=chosen)
    canary.expand(system=canaries(chosen)) >> taken
    check.expand(backup=taken)


vault_snapshot()
