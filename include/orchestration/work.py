"""The bodies of the DAGs' tasks. Each takes and returns plain values; everything else is the library's.

Imports of the library are inside the functions: the DAG processor imports this module again and again, the work happens
in the tasks.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.exceptions import AirflowException, AirflowFailException

if TYPE_CHECKING:
    from recovery.drill.evidence import Evidence
    from recovery.postgres.backup import Kind
    from recovery.repository.decision import Plan
    from recovery.repository.deletion import Outcome

log = logging.getLogger(__name__)

_LINE_SECONDS = 5.0
_WAL_LINE_SECONDS = 60.0
_NOTHING_SECONDS = 60.0


def chosen_systems(wanted: list[str] | None) -> list[str]:
    """The PostgreSQL systems that a run works on: those named in its form, or all of the configuration."""
    with guarded():
        from recovery import config

        configuration = config.load()
        for name in wanted or []:
            configuration.postgres_system(name)
        return list(wanted or configuration.postgres)


def retained_systems(kind: Literal["postgres", "vault"], wanted: list[str] | None) -> list[str]:
    """The systems of one kind among those named in a form, or all of the kind; a name that no kind has is refused."""
    with guarded():
        from recovery import config

        return config.load().named(kind, *(wanted or []))


def streamed_systems(wanted: list[str] | None) -> list[str]:
    """The systems whose WAL is archived. Where there is none, this takes its time: the DAG begins again at once."""
    with guarded():
        from recovery import config

        configuration = config.load()
        chosen = [name for name in chosen_systems(wanted) if configuration.postgres[name].wal is not None]
        if not chosen:
            log.info("no system has `wal` in recovery.yaml: there is nothing to stream")
            time.sleep(_NOTHING_SECONDS)
        return chosen


def stream_wal(system: str, *, minutes: int) -> dict[str, Any]:
    """Stream a system's WAL for some minutes. A server that cannot be reached is no reason to give up the retries."""
    with guarded():
        from orchestration.installation import open_installation
        from recovery.errors import PreconditionError
        from recovery.postgres.wal import stream
        from recovery.postgres.wal.positions import format_lsn

        deadline = time.monotonic() + 60 * minutes
        next_line = 0.0

        def tick(progress: Any) -> None:
            nonlocal next_line
            if time.monotonic() >= next_line:
                behind = max(0, progress.server - progress.stored) / 1e6
                log.info(
                    "timeline %d: stored up to %s, %.1f MB to go",
                    progress.timeline,
                    format_lsn(progress.stored),
                    behind,
                )
                next_line = time.monotonic() + _WAL_LINE_SECONDS

        try:
            outcome = stream.stream(
                lambda: open_installation().source(system), stop=lambda: time.monotonic() >= deadline, tick=tick
            )
        except PreconditionError as problem:
            raise AirflowException(str(problem)) from None
        return logged(
            {
                "system": system,
                "stored_lsn": format_lsn(outcome.progress.stored),
                "bytes_stored": outcome.progress.bytes_stored,
                "reconnects": outcome.reconnects,
                "gaps": [str(gap) for gap in outcome.gaps],
            }
        )


def trigger(dag_id: str, conf: dict[str, Any]) -> None:
    """Start a run of another DAG from within a task; the operator's module is too heavy for a DAG file."""
    from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
    from airflow.sdk import get_current_context

    TriggerDagRunOperator(task_id="trigger", trigger_dag_id=dag_id, conf=conf).execute(get_current_context())


def back_up(system: str, kind: Kind) -> dict[str, Any]:
    """Take a backup and commit it; returns its summary."""
    with guarded():
        from orchestration.installation import open_installation
        from recovery.postgres import backup

        made = backup.take(open_installation().source(system), kind, progress=log_progress())
        return logged(made.summary())


def check(summary: dict[str, Any]) -> dict[str, Any]:
    """Read every object of a new backup back from the store and compare it with what was written. Needs no key."""
    with guarded():
        from orchestration.installation import open_installation
        from recovery.postgres.verify import verify
        from recovery.repository import catalog
        from recovery.repository.verify import Level, Verdict

        installation = open_installation()
        system, identifier = summary["system"], summary["id"]
        found = catalog.read(installation.store_of(system), system).find(identifier)
        report = verify(installation, system, found, Level.CHECKSUM)
        for finding in report.findings:
            log.error("%s: %s", finding.verdict, finding.problem)
        if report.verdict is not Verdict.OK:
            raise AirflowFailException(f"{identifier}: the check ended {report.verdict}: {report.findings[0].problem}")
        log.info("%s: %d objects, %d bytes read back and equal", identifier, report.objects, report.bytes_read)
        return summary


def drill(system: str, to: str) -> dict[str, Any]:
    """Restore a backup in isolation and check it, together with its Vault's snapshot where one holds its keys.

    The evidence is stored before a bad verdict fails the task.
    """
    with guarded():
        from orchestration.installation import open_installation
        from recovery.drill.choose import What, what
        from recovery.drill.postgres import drill as run_drill
        from recovery.postgres import plan
        from recovery.repository import catalog

        installation = open_installation()
        backup = plan.choose(catalog.read(installation.store_of(system), system), to)
        together = what(installation.configuration, system) is What.SET
        return judged(run_drill(installation, system, backup, together=together, progress=log_progress()))


def judged(found: Evidence) -> dict[str, Any]:
    """Log what a drill found, and fail the task where that is not ok; returns what its event carries."""
    from recovery.repository.verify import Verdict

    for item in found.checks:
        level = logging.INFO if item.verdict is Verdict.OK else logging.ERROR
        log.log(level, "%s: %s: %s", item.name, item.verdict, item.detail)
    for loose in found.loose:
        log.warning("%s: %s -> %s", loose.what, loose.name, loose.remedy)
    if found.verdict is not Verdict.OK:
        reasons = "; ".join(f"{item.name}: {item.detail}" for item in found.checks if item.verdict is not Verdict.OK)
        raise AirflowFailException(
            f"{found.backup}: the drill ended {found.verdict}: {reasons} (evidence: {found.key})"
        )
    return logged(
        {
            "system": found.system,
            "backup": found.backup,
            "snapshot": found.snapshot,
            "evidence": found.key,
            "verdict": str(found.verdict),
            "rpo_seconds": found.rpo_seconds,
            "rto_seconds": found.rto_seconds,
        }
    )


def retain(system: str, *, apply: bool) -> str:
    """Log what retention keeps and why, and delete what may go if `apply` says so; returns what was done in a line."""
    with guarded():
        from orchestration.installation import open_installation
        from recovery import housekeeping

        installation = open_installation()
        store, rules = installation.store_of(system), installation.configuration.postgres_system(system).retention
        if apply:
            return retained(*housekeeping.apply(store, system, rules, progress=log_progress()))
        return retained(housekeeping.plan(store, system, rules))


def retained(plan: Plan[Any], outcome: Outcome | None = None) -> str:
    """Log a plan of retention and, where it was applied, what became of it; returns that in a line."""
    from recovery.repository.deletion import counted

    for decision in plan.decisions:
        log.info("%s: %s: %s", decision.backup.id, decision.word, decision.why)
    for sweep in plan.sweeps:
        log.info("%s, %s: %d objects go, %d are locked", sweep.what, sweep.where, len(sweep.objects), len(sweep.locked))
    for problem in plan.problems:
        log.error("left alone: %s", problem)
    if outcome is None:
        return f"{counted(len(plan.doomed), 'backup')} would go"
    if outcome.failures:
        raise AirflowFailException(f"{outcome}: {outcome.failures[0]}")
    log.info("%s", outcome)
    return str(outcome)


def logged(values: dict[str, Any]) -> dict[str, Any]:
    log.info(", ".join(f"{key}={value}" for key, value in values.items()))
    return values


def log_progress() -> Any:
    """A line every few seconds: a task log is not a terminal."""
    next_line = time.monotonic() + _LINE_SECONDS

    def progress(what: str, done: int, expected: int | None) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            share = f" ({100 * done / expected:.0f} %)" if expected else ""
            log.info("%s: %.1f MB%s", what, done / 1e6, share)
            next_line = time.monotonic() + _LINE_SECONDS

    return progress


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Errors in one line; what no retry can mend fails at once; a task that is ended cleans up before it dies.

    Airflow ends a task with SIGTERM, to which a Python task does not react by itself, and SIGKILL five seconds later.
    Raised as KeyboardInterrupt in the main thread, uploads are aborted and sandbox servers stopped in between.
    """
    from recovery.errors import ConfigurationError, PreconditionError

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt("the task was ended from outside")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except (ConfigurationError, PreconditionError) as problem:
        raise AirflowFailException(str(problem)) from None
    finally:
        signal.signal(signal.SIGTERM, before)
