"""Delete what no rule of `retention` wants any more, and sweep what interrupted backups left.

Each system's plan is in the log of its task: what stays and why, what goes, what is locked until when. The task's name
in the grid ends with what was deleted.

**When it is red**: nothing that is needed was deleted; something that may go was not. The last line of the log says
what, and what to do. Clear the task, or wait for tomorrow's run.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from orchestration import forms, work
from orchestration.schedules import cron


@task
def systems(params: dict[str, Any] | None = None) -> list[str]:
    return work.chosen_systems((params or {})["systems"])


@task(map_index_template="{{ system }}{{ done }}", queue="backup")
def retain(system: str, params: dict[str, Any] | None = None) -> str:
    context = get_current_context()
    context["system"] = system
    done = work.retain(system, apply=(params or {})["apply"])
    context["done"] = f": {done}"
    return done


@dag(
    schedule=cron("0 5 * * *"),
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": timedelta(minutes=5), "execution_timeout": timedelta(hours=12)},
    params={
        "systems": forms.systems(),
        "apply": Param(True, type="boolean", title="Apply", description="Delete. Otherwise the plan is only logged."),
    },
    tags=["recovery", "postgres", "retention"],
    doc_md=__doc__,
)
def retention() -> None:
    retain.expand(system=systems())


retention()
