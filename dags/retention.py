"""Delete what no rule of `retention` wants any more, and sweep what interrupted backups left.

A Vault's snapshot stays for as long as a backup of a database needs it, whatever the rules say.

Each system's plan is in the log of its task: what stays and why, what goes, what is locked until when. The task's name
in the grid ends with what was deleted.

**When it is red**: nothing that is needed was deleted; something that may go was not. The last line of the log says
what, and what to do. Clear the task, or wait for tomorrow's run.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from orchestration import forms, vault_work, work
from orchestration.schedules import cron


@task
def systems(params: dict[str, Any] | None = None) -> list[str]:
    return work.retained_systems("postgres", (params or {})["systems"])


@task(map_index_template="{{ system }}{{ done }}", queue="backup")
def retain(system: str, params: dict[str, Any] | None = None) -> str:
    context = get_current_context()
    context["system"] = system
    done = work.retain(system, apply=(params or {})["apply"])
    context["done"] = f": {done}"
    return done


@task
def vaults(params: dict[str, Any] | None = None) -> list[str]:
    return work.retained_systems("vault", (params or {})["systems"])


@task(map_index_template="{{ system }}{{ done }}", queue="backup")
def retain_vault(vault: str, params: dict[str, Any] | None = None) -> str:
    context = get_current_context()
    context["system"] = vault
    done = vault_work.retain(vault, apply=(params or {})["apply"])
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
    tags=["recovery", "postgres", "vault", "retention"],
    doc_md=__doc__,
)
def retention() -> None:
    retain.expand(system=systems())
    retain_vault.expand(vault=vaults())


retention()
