"""Back up PostgreSQL systems in full: a base backup and a dump of every database, each checked after it is committed.

**When it is red**: open the red task's log; its last line says what failed, where, and what to do. Nothing half-made
counts: a backup exists only when its manifest was written. Clear the task, or trigger the DAG again.

A server sends one base backup at a time, whichever DAG or person asks for it: the lease in the repository sees to
that. An Airflow pool would have to be made for each system, and would not know of backups taken with the command.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Metadata, Param, TriggerRule, dag, get_current_context, task, task_group
from airflow.sdk.exceptions import AirflowSkipException

from orchestration import forms, work
from orchestration.assets import POSTGRES_BACKUP
from orchestration.schedules import cron

NAMED = {"map_index_template": "{{ system }}"}


@task
def systems(params: dict[str, Any] | None = None) -> list[str]:
    return work.chosen_systems((params or {})["systems"])


@task(**NAMED, queue="backup")
def base_backup(system: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    get_current_context()["system"] = system
    if not (params or {})["base"]:
        raise AirflowSkipException("no base backup was asked for")
    return work.back_up(system, "full")


# After the base backup, whatever became of it: the two are independent, and the server is read once at a time.
@task(**NAMED, queue="backup", trigger_rule=TriggerRule.ALL_DONE)
def dump(system: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    get_current_context()["system"] = system
    if not (params or {})["dump"]:
        raise AirflowSkipException("no dump was asked for")
    return work.back_up(system, "dump")


@task(**NAMED, queue="backup", outlets=[POSTGRES_BACKUP])
def check(backup: dict[str, Any]) -> Any:
    get_current_context()["system"] = backup["system"]
    yield Metadata(POSTGRES_BACKUP, extra=work.check(backup))


@task_group
def protect(system: str) -> None:
    base, dumped = base_backup(system), dump(system)
    check.override(task_id="check_base")(base)
    check.override(task_id="check_dump")(dumped)
    base >> dumped


@dag(
    schedule=cron("0 2 * * *"),
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=2), "execution_timeout": timedelta(hours=12)},
    params={
        "systems": forms.systems(),
        "base": Param(True, type="boolean", title="Base backup", description="The whole cluster, physically."),
        "dump": Param(True, type="boolean", title="Dump", description="pg_dump of every database, and the globals."),
    },
    tags=["recovery", "postgres", "backup"],
    doc_md=__doc__,
)
def postgres_full_backup() -> None:
    protect.expand(system=systems())


postgres_full_backup()
