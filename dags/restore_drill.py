"""Restore the newest base backup of each PostgreSQL system in isolation, check every row, keep evidence.

Where a Vault holds the keys of its rows (`keys` in recovery.yaml), its snapshot is restored beside it, and rows of the
database are opened across the two. A Vault that belongs to no database is drilled alone.

**When it is red**: the backup did not prove itself, or the drill could not run; the task's last line says which. The
evidence in the repository has every check and its finding. A backup that failed its drill is not to be relied on:
take a new one (`postgres_full_backup`) and drill again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Metadata, Param, dag, get_current_context, task

from orchestration import forms, vault_work, work
from orchestration.assets import POSTGRES_DRILL, VAULT_DRILL
from orchestration.schedules import cron


@task
def systems(params: dict[str, Any] | None = None) -> list[str]:
    return work.chosen_systems((params or {})["systems"])


@task(map_index_template="{{ system }}", queue="drill", outlets=[POSTGRES_DRILL])
def drill(system: str, params: dict[str, Any] | None = None) -> Any:
    get_current_context()["system"] = system
    yield Metadata(POSTGRES_DRILL, extra=work.drill(system, (params or {})["to"]))


@task
def lone_vaults(params: dict[str, Any] | None = None) -> list[str]:
    return [] if (params or {})["systems"] else vault_work.lone_vaults()


@task(map_index_template="{{ system }}", queue="drill", outlets=[VAULT_DRILL])
def drill_vault(vault: str) -> Any:
    get_current_context()["system"] = vault
    yield Metadata(VAULT_DRILL, extra=vault_work.drill(vault))


@dag(
    schedule=cron("0 5 * * *"),
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": timedelta(minutes=5), "execution_timeout": timedelta(hours=12)},
    params={
        "systems": forms.systems(),
        "to": Param("latest", type="string", title="Backup", description="`latest`, or the id of a base backup."),
    },
    tags=["recovery", "postgres", "vault", "drill"],
    doc_md=__doc__,
)
def restore_drill() -> None:
    drill.expand(system=systems())
    drill_vault.expand(vault=lone_vaults())


restore_drill()
