"""`recovery list`: every recovery point that the repositories hold, and which snapshot of a Vault belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from recovery import recovery_set
from recovery.cli._run import ConfigFile, Json, Verbose, duration, failed, run, size, table
from recovery.errors import RecoveryError
from recovery.installation import Installation
from recovery.postgres.wal import audit
from recovery.recovery_set import Pairing
from recovery.repository import catalog, holds
from recovery.repository.catalog import Catalog
from recovery.vault import catalog as vault_catalog
from recovery.vault.catalog import VaultCatalog


def register(app: typer.Typer) -> None:
    app.command("list")(list_)


@dataclass(frozen=True)
class _Postgres:
    entry: Catalog
    held: dict[str, holds.Hold]
    windows: list[audit.Window]
    pairings: dict[str, Pairing]
    """Of each base backup, where a Vault holds the keys of this database."""

    def document(self) -> dict[str, Any]:
        return {
            "windows": [window.document() for window in self.windows],
            "backups": [
                backup.summary()
                | {"hold": asdict(hold) if (hold := self.held.get(backup.id)) else None}
                | {"vault": pairing.document() if (pairing := self.pairings.get(backup.id)) else None}
                for backup in self.entry.backups
            ],
            "problems": [str(problem) for problem in self.entry.problems],
        }


def list_(
    name: Annotated[str | None, typer.Argument(help="A system; all of them without it.")] = None,
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """The catalog: every recovery point, oldest first, and the windows in which any moment can be restored."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        installation = call.installation()
        configuration = installation.configuration
        vaults = {
            system: vault_catalog.read(installation.vault_store(system), system)
            for system in configuration.named("vault", name)
        }
        held = {system: holds.read(installation.vault_store(system), system, kind="vault") for system in vaults}
        systems = {system: _read(installation, system) for system in configuration.named("postgres", name)}
        document = {
            "postgres": {system: found.document() for system, found in systems.items()},
            "vault": {
                system: {
                    "backups": [
                        backup.summary() | {"hold": asdict(hold) if (hold := held[system].get(backup.id)) else None}
                        for backup in entry.backups
                    ],
                    "problems": [str(problem) for problem in entry.problems],
                }
                for system, entry in vaults.items()
            },
        }
        call.emit(document, lambda console: _print(console, systems, vaults, held))
        entries: list[Catalog | VaultCatalog] = [*(found.entry for found in systems.values()), *vaults.values()]
        failed(any(entry.problems for entry in entries))


def _read(installation: Installation, name: str) -> _Postgres:
    store = installation.store_of(name)
    entry = catalog.read(store, name)
    keys = installation.configuration.postgres[name].keys
    pairings = {}
    if keys is not None:
        snapshots = vault_catalog.read(installation.vault_store(keys.vault), keys.vault).snapshots
        pairings = {
            backup.id: recovery_set.choose(backup.manifest.recovery_point, backup.manifest.key_versions, snapshots)
            for backup in entry.backups
        }
    return _Postgres(entry, holds.read(store, name), audit.recoverable(store, entry, name), pairings)


def _print(
    console: Console,
    systems: dict[str, _Postgres],
    vaults: dict[str, VaultCatalog],
    held: dict[str, dict[str, holds.Hold]],
) -> None:
    if systems:
        _print_postgres(console, systems)
    if vaults:
        _print_vaults(console, vaults)
        for system, found in held.items():
            for identifier, hold in sorted(found.items()):
                console.print(f"held: {system} {identifier}: {hold}", highlight=False, markup=False, soft_wrap=True)
    for problem in _problems(systems, vaults):
        console.print(f"[red]damaged[/]: {problem}", highlight=False, soft_wrap=True)


def _print_postgres(console: Console, systems: dict[str, _Postgres]) -> None:
    with_vault = any(found.pairings for found in systems.values())
    lines = table("system", "id", "recovery point", "age", "source", "stored", "server", *["Vault"] * with_vault)
    for system, found in systems.items():
        for backup in found.entry.backups:
            item = backup.manifest
            lines.add_row(
                *(system, item.id, *_moment(item.recovery_point)),
                *(size(item.source_bytes), size(item.stored_bytes), item.server.version),
                *([_pairing(found.pairings.get(item.id))] if with_vault else []),
            )
        if not found.entry.backups:
            lines.add_row(system, "[red]no backup[/]")
    console.print(lines)
    for system, found in systems.items():
        for window in found.windows:
            console.print(f"any moment: {system} {window}", highlight=False, markup=False, soft_wrap=True)
        for identifier, hold in sorted(found.held.items()):
            console.print(f"held: {system} {identifier}: {hold}", highlight=False, markup=False, soft_wrap=True)


def _print_vaults(console: Console, vaults: dict[str, VaultCatalog]) -> None:
    lines = table("Vault", "id", "recovery point", "age", "source", "stored", "server", "Raft index")
    for system, entry in vaults.items():
        for backup in entry.backups:
            item = backup.manifest
            lines.add_row(
                *(system, item.id, *_moment(item.recovery_point)),
                *(size(item.source_bytes), size(item.stored_bytes), f"{item.product} {item.server.version}"),
                str(item.snapshot.index) if item.snapshot else "",
            )
        if not entry.backups:
            lines.add_row(system, "[red]no backup[/]")
    console.print(lines)


def _moment(point: datetime) -> tuple[str, str]:
    age = (datetime.now(UTC) - point).total_seconds()
    return f"{point:%Y-%m-%d %H:%M:%S} UTC", duration(age)


def _pairing(found: Pairing | None) -> str:
    if found is None:
        return ""
    if found.snapshot is None:
        return f"[red]none[/]: {found.risk}"
    if found.apart_seconds >= 0:
        return f"{found.snapshot.id}, {duration(found.apart_seconds)} later"
    return f"{found.snapshot.id}, [yellow]{duration(-found.apart_seconds)} earlier[/]"


def _problems(systems: dict[str, _Postgres], vaults: dict[str, VaultCatalog]) -> Iterator[RecoveryError]:
    for found in systems.values():
        yield from found.entry.problems
    for entry in vaults.values():
        yield from entry.problems
