"""`recovery list` and `recovery verify`: what the repository holds, and whether it is still what was written."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from recovery.cli._run import ConfigFile, Identity, Json, Run, Verbose, duration, failed, run, size, table
from recovery.errors import ConfigurationError
from recovery.installation import Installation
from recovery.postgres import verify as postgres_verify
from recovery.postgres.wal import audit
from recovery.repository import catalog, holds
from recovery.repository.layout import ID_PATTERN
from recovery.repository.verify import Level, Report, Verdict


def register(app: typer.Typer) -> None:
    app.command("list")(list_)
    app.command("verify")(verify)


def list_(
    name: Annotated[str | None, typer.Argument(help="A system; all of them without it.")] = None,
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """The catalog: every recovery point, oldest first, and the windows in which any moment can be restored."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        installation = call.installation()
        stores = {system: installation.store_of(system) for system in _systems(installation, name)}
        found = {system: catalog.read(store, system) for system, store in stores.items()}
        held = {system: holds.read(store, system) for system, store in stores.items()}
        windows = {system: audit.recoverable(store, found[system], system) for system, store in stores.items()}
        document = {
            system: {
                "windows": [window.document() for window in windows[system]],
                "backups": [
                    backup.summary() | {"hold": asdict(hold) if (hold := held[system].get(backup.id)) else None}
                    for backup in entry.backups
                ],
                "problems": [str(problem) for problem in entry.problems],
            }
            for system, entry in found.items()
        }
        call.emit(document, lambda console: _print_list(console, found, held, windows))
        failed(any(entry.problems for entry in found.values()))


def _print_list(
    console: Console,
    found: dict[str, catalog.Catalog],
    held: dict[str, dict[str, holds.Hold]],
    windows: dict[str, list[audit.Window]],
) -> None:
    now = datetime.now(UTC)
    lines = table("system", "id", "recovery point", "age", "source", "stored", "server")
    for system, entry in found.items():
        for backup in entry.backups:
            item = backup.manifest
            age = (now - item.recovery_point).total_seconds()
            lines.add_row(
                system,
                item.id,
                f"{item.recovery_point:%Y-%m-%d %H:%M:%S} UTC",
                duration(age),
                size(item.source_bytes),
                size(item.stored_bytes),
                item.server.version,
            )
        if not entry.backups:
            lines.add_row(system, "[red]no backup[/]", "", "", "", "", "")
    console.print(lines)
    for system, entry in found.items():
        for window in windows[system]:
            console.print(f"any moment: {system} {window}", highlight=False, markup=False, soft_wrap=True)
        for identifier, hold in sorted(held[system].items()):
            console.print(f"held: {system} {identifier}: {hold}", highlight=False, markup=False, soft_wrap=True)
        for problem in entry.problems:
            console.print(f"[red]damaged[/]: {problem}", highlight=False, soft_wrap=True)


def verify(
    what: Annotated[
        str | None, typer.Argument(metavar="[NAME|ID]", help="A system (its newest backups), or one backup.")
    ] = None,
    level: Annotated[
        Level, typer.Option(help="exists, checksum (no key needed), or opens (reads everything).")
    ] = Level.CHECKSUM,
    config_file: ConfigFile = None,
    identity: Identity = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check that backups are still what was written."""
    with run(json=json, config_file=config_file, identity_file=identity, verbose=verbose) as call:
        installation = call.installation()
        reports = [_verify(call, installation, system, backup, level) for system, backup in _chosen(installation, what)]

        def human(console: Console) -> None:
            for report in reports:
                style = {"ok": "green", "failed": "red"}.get(report.verdict, "yellow")
                console.print(
                    f"{report.backup}: [{style}]{report.verdict}[/] "
                    f"({report.level}, {report.objects} objects, {size(report.bytes_read)})",
                    highlight=False,
                    soft_wrap=True,
                )
                for finding in report.findings:
                    console.print(f"  {finding.verdict}: {finding.problem}", highlight=False, soft_wrap=True)

        call.emit([asdict(report) for report in reports], human)
        failed(any(report.verdict is not Verdict.OK for report in reports))


def _verify(call: Run, installation: Installation, system: str, backup: catalog.Backup, level: Level) -> Report:
    with call.progress() as progress:
        total = backup.manifest.stored_bytes
        return postgres_verify.verify(
            installation, system, backup, level, progress=lambda done: progress(f"verify {backup.id}", done, total)
        )


def _systems(installation: Installation, name: str | None) -> list[str]:
    if name is None:
        return list(installation.configuration.postgres)
    installation.configuration.postgres_system(name)
    return [name]


def _chosen(installation: Installation, what: str | None) -> list[tuple[str, catalog.Backup]]:
    """The backup with this id, or the newest of each kind of the named systems."""
    if what is not None and ID_PATTERN.fullmatch(what):
        for system in installation.configuration.postgres:
            entry = catalog.read(installation.store_of(system), system)
            if any(backup.id == what for backup in entry.backups) or any(
                f"/{what}/" in problem.where for problem in entry.problems
            ):
                return [(system, entry.find(what))]
        raise ConfigurationError("no backup has this id", where=what, remedy="choose one of `recovery list`")
    chosen: list[tuple[str, Any]] = []
    for system in _systems(installation, what):
        entry = catalog.read(installation.store_of(system), system)
        chosen += [
            (system, backup) for kind in ("full", "incremental", "dump") if (backup := entry.newest(kind)) is not None
        ]
        if entry.problems:
            raise entry.problems[0]
    if not chosen:
        raise ConfigurationError(
            "there is no backup to verify",
            where=what or "every system",
            remedy="take one: recovery backup postgres NAME --type full",
        )
    return chosen
