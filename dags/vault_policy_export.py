"""Export each Vault's policies and configuration (mounts, auth methods, audit devices, roles' names), and no secret.

`recovery vault diff NAME` shows what changed between two exports, or since the last one.

**When it is red**: open the red task's log; its last line says what failed, where, and what to do; mostly it is a right
that the backup identity lacks. Clear the task, or trigger the DAG again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Metadata, dag, get_current_context, task

from orchestration import forms, vault_work
from orchestration.assets import VAULT_BACKUP
from orchestration.schedules import cron

NAMED = {"map_index_template": "{{ system }}"}


@task
def vaults(params: dict[str, Any] | None = None) -> list[str]:
    return vault_work.chosen_vaults((params or {})["vaults"])


@task(**NAMED, queue="backup")
def export(vault: str) -> dict[str, Any]:
    get_current_context()["system"] = vault
    return vault_work.back_up(vault, "policies")


@task(**NAMED, queue="backup", outlets=[VAULT_BACKUP])
def check(backup: dict[str, Any]) -> Any:
    get_current_context()["system"] = backup["system"]
    yield Metadata(VAULT_BACKUP, extra=vault_work.check(backup))


@dag(
    schedule=cron("0 4 * * 0"),
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=2), "execution_timeout": timedelta(hours=1)},
    params={"vaults": forms.systems()},
    tags=["recovery", "vault", "backup"],
    doc_md=__doc__,
)
def vault_policy_export() -> None:
    check.expand(backup=export.expand(vault=vaults()))


vault_policy_export()
