"""`recovery retention`, `recovery hold` and `recovery release`: what stays, why, and what goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from recovery import housekeeping
from recovery.cli._run import ConfigFile, Json, Run, Verbose, failed, run, size, table
from recovery.errors import ConfigurationError
from recovery.housekeeping import Outcome, counted
from recovery.installation import Installation
from recovery.repository import catalog, holds
from recovery.repository.retention import Plan

Reason = Annotated[str, typer.Option("--reason", help="Why; it stays readable beside the backup.")]
System = Annotated[str | None, typer.Option("--system", help="Whose backup, where two systems have one of this id.")]
_STYLES = {"keep": "green", "delete": "red", "locked": "yellow"}


def register(app: typer.Typer) -> None:
    app.command("retention")(retention)
    app.command("hold")(hold)
    app.command("release")(release)


def retention(
    name: Annotated[str, typer.Argument(help="A PostgreSQL system of the configuration.")],
    apply: Annotated[
        bool, typer.Option("--apply", help="Delete what the plan lets go; without it nothing is.")
    ] = False,
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """What is kept and why, and what may go. Deletes with --apply only."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        installation = call.installation()
        store, rules = installation.store_of(name), installation.configuration.postgres_system(name).retention
        outcome = None
        if apply:
            with call.progress() as progress:
                plan, outcome = housekeeping.apply(store, name, rules, progress=progress)
        else:
            plan = housekeeping.plan(store, name, rules)
        document = {"system": name, **plan.document(), "applied": asdict(outcome) if outcome else None}
        call.emit(document, lambda console: _print(console, plan, outcome))
        failed(bool(plan.problems or (outcome and outcome.failures)))


def hold(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="A backup.")],
    reason: Reason,
    system: System = None,
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Keep a backup, with all that its restore needs, until it is released."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        installation = call.installation()
        name = _owner(installation, identifier, system)
        placed = holds.place(installation.store_of(name), name, identifier, reason=reason)
        _emit_hold(call, name, identifier, placed, f"{identifier} is held: {placed}")


def release(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="A backup that is held.")],
    reason: Reason,
    system: System = None,
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Let retention decide on a held backup again."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        installation = call.installation()
        name = _owner(installation, identifier, system)
        ended = holds.release(installation.store_of(name), name, identifier, reason=reason)
        _emit_hold(call, name, identifier, ended, f"{identifier} is released; it was held: {ended}")


def _emit_hold(call: Run, name: str, identifier: str, found: holds.Hold, line: str) -> None:
    document = {"system": name, "id": identifier, **asdict(found)}
    call.emit(document, lambda console: console.print(line, highlight=False, markup=False, soft_wrap=True))


def _owner(installation: Installation, identifier: str, system: str | None) -> str:
    """The system that has this backup."""
    if system is not None:
        catalog.read(installation.store_of(system), system).find(identifier)
        return system
    found = [
        name
        for name in installation.configuration.postgres
        if any(backup.id == identifier for backup in catalog.read(installation.store_of(name), name).backups)
    ]
    if not found:
        raise ConfigurationError("no backup has this id", where=identifier, remedy="choose one of `recovery list`")
    if len(found) > 1:
        raise ConfigurationError(
            f"{len(found)} systems have a backup with this id",
            where=identifier,
            remedy=f"name one of them: --system {' or --system '.join(found)}",
        )
    return found[0]


def _print(console: Console, plan: Plan, outcome: Outcome | None) -> None:
    lines = table("backup", "recovery point", "stored", "decision", "why")
    for decision in plan.decisions:
        point = _time(decision.backup.manifest.recovery_point)
        word = f"[{_STYLES[decision.word]}]{decision.word}[/]"
        lines.add_row(decision.backup.id, point, size(decision.bytes), word, escape(decision.why))
    console.print(lines)
    for line in [*_rest(plan), *_end(plan, outcome)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _rest(plan: Plan) -> Iterator[str]:
    """What is no backup."""
    for sweep in plan.sweeps:
        if sweep.objects:
            yield f"delete: {sweep.what}, {sweep.where}: {counted(len(sweep.objects), 'object')}, {size(sweep.bytes)}"
        if sweep.locked_until:
            until = _time(sweep.locked_until)
            yield f"locked: {sweep.what}, {sweep.where}: {counted(len(sweep.locked), 'object')}, the last until {until}"
    for upload in plan.uploads:
        yield f"delete: unfinished upload, {upload.key}: begun {_time(upload.begun)}"
    for problem in plan.problems:
        yield f"left alone: {problem}"


def _end(plan: Plan, outcome: Outcome | None) -> Iterator[str]:
    if outcome is None:
        yield f"{counted(len(plan.doomed), 'backup')} would go, {size(plan.freed_bytes)} in all; --apply deletes them"
        return
    for identifier in outcome.kept_back:
        yield f"kept: {identifier}, which has come to be needed while this ran"
    for failure in outcome.failures:
        yield f"not deleted: {failure}"
    yield str(outcome)


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
