"""Back up what has changed in PostgreSQL systems since their newest full or incremental backup, and check the result.

Where an incremental cannot be trusted, or the server refuses it, a full backup is taken in the same run; the backup's
notes and the log of the task say why.

**When it is red**: open the red task's log; its last line says what failed, where, and what to do. Nothing half-made
counts: a backup exists only when its manifest was written. `is being written by` means that another base backup of
the system is still running; nothing is lost, the next run covers both.

A server sends one base backup at a time, whichever DAG or person asks for it: the lease in the repository sees to
that. An Airflow pool would have to be made for each system, and would not know of backups taken with the command.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Metadata, dag, get_current_context, task, task_group

from orchestration import forms, work
from orchestration.assets import POSTGRES_BACKUP
from orchestration.schedules import cron

NAMED = {"map_index_template": "{{ system }}"}


@task
def systems(params: dict[str, Any] | None = None) -> list[str]:
    return work.chosen_systems((params or {})["systems"])


@task(**NAMED, queue="backup")
def incremental(system: str) -> dict[str, Any]:
    get_current_context()["system"] = system
    return work.back_up(system, "incremental")


@task(**NAMED, queue="backup", outlets=[POSTGRES_BACKUP])
def check(backup: dict[str, Any]) -> Any:
    get_current_context()["system"] = backup["system"]
    yield Metadata(POSTGRES_BACKUP, extra=work.check(backup))


@task_group
def protect(system: str) -> None:
    check(incremental(system))


@dag(
    schedule=cron("30 */6 * * *"),
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=2), "execution_timeout": timedelta(hours=12)},
    params={
        "systems": forms.systems(),
    },
    tags=["recovery", "postgres", "backup"],
    doc_md=__doc__,
)
def postgres_incremental_backup() -> None:
    protect.expand(system=systems())


postgres_incremental_backup()
