"""Stream the WAL of PostgreSQL systems into their repositories, as it is written, without an end.

A run streams for half an hour (parameter `minutes`) and hands over to the next; in the seconds between, the replication
slot keeps the WAL on the server. Each system needs a worker slot of the queue `backup` for as long.

**When it is red**: open the red task's log; its last line says what failed, where, and what to do. A stream that breaks
is tried again by itself and loses nothing. `gaps` is red when WAL was lost: the server no longer had what came next (a
lost slot, a bound that was reached). A full backup was then triggered; moments in the gap cannot be restored, and
`recovery wal audit NAME` names the windows that can.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, TriggerRule, dag, task
from airflow.sdk.exceptions import AirflowFailException

from orchestration import forms, work

# Known before the task begins: it runs for as long as anyone will look at it.
NAMED = {"map_index_template": "{{ task.op_kwargs['system'] }}"}


@task
def systems(params: dict[str, Any] | None = None) -> list[str]:
    return work.streamed_systems((params or {})["systems"])


@task(
    **NAMED,
    queue="backup",
    retries=20,
    retry_delay=timedelta(seconds=20),
    execution_timeout=timedelta(hours=25),
)
def stream(system: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    return work.stream_wal(system, minutes=(params or {})["minutes"])


@task
def wanted_fulls(streams: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"systems": [each["system"]], "dump": False} for each in streams if each["gaps"]]


@task
def full_backup(conf: dict[str, Any]) -> None:
    work.trigger("postgres_full_backup", conf)


@task(trigger_rule=TriggerRule.ALL_DONE)
def gaps(streams: list[dict[str, Any]]) -> None:
    lost = [f"{each['system']}: {gap}" for each in streams for gap in each["gaps"]]
    if lost:
        raise AirflowFailException("; ".join(lost))


@dag(
    schedule="@continuous",
    max_active_runs=1,
    params={
        "systems": forms.systems(otherwise="all that have `wal`"),
        "minutes": Param(30, type="integer", minimum=1, maximum=1440, title="Minutes", description="Then hand over."),
    },
    tags=["recovery", "postgres", "wal"],
    doc_md=__doc__,
)
def postgres_wal_archive() -> None:
    streams = stream.expand(system=systems())
    full_backup.expand(conf=wanted_fulls(streams)) >> gaps(streams)


postgres_wal_archive()
