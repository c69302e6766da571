"""`recovery retention`, `recovery hold` and `recovery release`: what stays, why, and what goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from recovery import housekeeping
from recovery.cli._run import ConfigFile, Json, Run, Verbose, failed, run, size, table
from recovery.errors import ConfigurationError
from recovery.installation import Installation
from recovery.repository import catalog, holds
from recovery.repository.catalog import Catalog
from recovery.repository.decision import Plan
from recovery.repository.deletion import Outcome, counted
from recovery.repository.store import ObjectStore
from recovery.vault import catalog as vault_catalog
from recovery.vault import retention as vault_retention
from recovery.vault.catalog import VaultCatalog

Reason = Annotated[str, typer.Option("--reason", help="Why; it stays readable beside the backup.")]
System = Annotated[
    str | None, typer.Option("--system", help="Whose backup, where two systems have one of this id; or vault/NAME.")
]
_Done = tuple[Plan[Any], Outcome | None]
"""A plan, and what became of it where it was applied."""
_STYLES = {"keep": "green", "delete": "red", "locked": "yellow"}


@dataclass(frozen=True)
class _Owner:
    """A system of either kind, with what it has."""

    kind: str
    name: str
    store: ObjectStore
    catalog: Catalog | VaultCatalog

    @property
    def path(self) -> str:
        """Its name where a system of the other kind has the same."""
        return f"{self.kind}/{self.name}"


def register(app: typer.Typer) -> None:
    app.command("retention")(retention)
    app.command("hold")(hold)
    app.command("release")(release)


def retention(
    name: Annotated[str, typer.Argument(help="A system of the configuration.")],
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
        configuration = installation.configuration
        document: dict[str, Any] = {"system": name}
        done: dict[str, _Done] = {}
        for system in configuration.named("postgres", name):
            done["backup"] = _of_postgres(call, installation, system, apply=apply)
            document |= _document(*done["backup"])
        for vault in configuration.named("vault", name):
            done["backup of the Vault"] = _of_vault(call, installation, vault, apply=apply)
            document["vault"] = _document(*done["backup of the Vault"])
        call.emit(document, lambda console: _print(console, done))
        failed(any(plan.problems or (outcome and outcome.failures) for plan, outcome in done.values()))


def _of_postgres(call: Run, installation: Installation, name: str, *, apply: bool) -> _Done:
    store, rules = installation.store_of(name), installation.configuration.postgres_system(name).retention
    if not apply:
        return housekeeping.plan(store, name, rules), None
    with call.progress() as progress:
        return housekeeping.apply(store, name, rules, progress=progress)


def _of_vault(call: Run, installation: Installation, name: str, *, apply: bool) -> _Done:
    if not apply:
        return vault_retention.plan(installation, name), None
    with call.progress() as progress:
        return vault_retention.apply(installation, name, progress=progress)


def _document(plan: Plan[Any], outcome: Outcome | None) -> dict[str, Any]:
    return {**plan.document(), "applied": asdict(outcome) if outcome else None}


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
        owner = _owner(installation, identifier, system)
        placed = holds.place(owner.store, owner.name, identifier, reason=reason, kind=owner.kind)
        _emit_hold(call, owner.name, identifier, placed, f"{identifier} is held: {placed}")


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
        owner = _owner(installation, identifier, system)
        ended = holds.release(owner.store, owner.name, identifier, reason=reason, kind=owner.kind)
        _emit_hold(call, owner.name, identifier, ended, f"{identifier} is released; it was held: {ended}")


def _emit_hold(call: Run, name: str, identifier: str, found: holds.Hold, line: str) -> None:
    document = {"system": name, "id": identifier, **asdict(found)}
    call.emit(document, lambda console: console.print(line, highlight=False, markup=False, soft_wrap=True))


def _owner(installation: Installation, identifier: str, system: str | None) -> _Owner:
    """The system that has this backup."""
    owners = [
        _read(installation, *each) for each in _systems(installation) if system in (None, each[1], "/".join(each))
    ]
    if not owners:
        installation.configuration.named("postgres", system)
    found = [each for each in owners if any(backup.id == identifier for backup in each.catalog.backups)]
    if not found and system is not None:
        owners[0].catalog.find(identifier)
    if not found:
        raise ConfigurationError("no backup has this id", where=identifier, remedy="choose one of `recovery list`")
    if len(found) > 1:
        names = [each.name if sum(each.name == other.name for other in found) == 1 else each.path for each in found]
        raise ConfigurationError(
            f"{len(found)} systems have a backup with this id",
            where=identifier,
            remedy=f"name one of them: --system {' or --system '.join(names)}",
        )
    return found[0]


def _systems(installation: Installation) -> Iterator[tuple[str, str]]:
    """Kind and name."""
    yield from (("postgres", name) for name in installation.configuration.postgres)
    yield from (("vault", name) for name in installation.configuration.vault)


def _read(installation: Installation, kind: str, name: str) -> _Owner:
    if kind == "postgres":
        store = installation.store_of(name)
        return _Owner(kind, name, store, catalog.read(store, name))
    store = installation.vault_store(name)
    return _Owner(kind, name, store, vault_catalog.read(store, name))


def _print(console: Console, done: Mapping[str, _Done]) -> None:
    for heading, (plan, outcome) in done.items():
        lines = table(heading, "recovery point", "stored", "decision", "why")
        for decision in plan.decisions:
            point = _time(decision.backup.manifest.recovery_point)
            word = f"[{_STYLES[decision.word]}]{decision.word}[/]"
            lines.add_row(decision.backup.id, point, size(decision.bytes), word, escape(decision.why))
        console.print(lines)
        for line in [*_rest(plan), *_end(plan, outcome)]:
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _rest(plan: Plan[Any]) -> Iterator[str]:
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


def _end(plan: Plan[Any], outcome: Outcome | None) -> Iterator[str]:
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
