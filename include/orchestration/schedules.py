"""When DAGs run."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import CronTriggerTimetable


def cron(expression: str) -> CronTriggerTimetable:
    """At these moments, UTC, from the first one after the DAG was deployed.

    Without the zero delta Airflow starts at once whatever it missed within a tenth of the period: on a new
    installation a drill of a backup that is not there yet, holding back the run that an operator triggers.
    """
    return CronTriggerTimetable(expression, timezone="UTC", run_immediately=timedelta(0))
