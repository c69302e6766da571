"""`recovery verify`: are backups still what was written?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from recovery.cli._run import ConfigFile, Identity, Json, Run, Verbose, failed, run, size
from recovery.errors import ConfigurationError
from recovery.installation import Installation
from recovery.postgres import verify as postgres_verify
from recovery.repository import catalog
from recovery.repository.layout import ID_PATTERN
from recovery.repository.verify import Level, Report, Stored, Verdict
from recovery.vault import catalog as vault_catalog
from recovery.vault import verify as vault_verify
from recovery.vault.catalog import VaultCatalog

_VAULT_KINDS = ("full", "snapshot", "policies")
Check = Callable[..., Report]
Chosen = tuple[Stored, int, Check]
"""A backup, its stored bytes, and what verifies it (it takes `level` and `progress`)."""


def register(app: typer.Typer) -> None:
    app.command("verify")(verify)


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
        reports = [_verify(call, chosen, level) for chosen in _chosen(call.installation(), what)]

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


def _verify(call: Run, chosen: Chosen, level: Level) -> Report:
    backup, total, check = chosen
    with call.progress() as progress:
        return check(level=level, progress=lambda done: progress(f"verify {backup.id}", done, total))


def _chosen(installation: Installation, what: str | None) -> list[Chosen]:
    """The backups with this id, or the newest of each kind of the named systems."""
    configuration = installation.configuration
    if what is not None and ID_PATTERN.fullmatch(what):
        found = [*_with_id_of_postgres(installation, what), *_with_id_of_vault(installation, what)]
        if not found:
            raise ConfigurationError("no backup has this id", where=what, remedy="choose one of `recovery list`")
        return found
    chosen: list[Chosen] = []
    for system in configuration.named("postgres", what):
        entry = catalog.read(installation.store_of(system), system)
        kinds = ("full", "incremental", "dump")
        chosen += [_of_postgres(installation, system, each) for kind in kinds if (each := entry.newest(kind))]
        if entry.problems:
            raise entry.problems[0]
    for system in configuration.named("vault", what):
        snapshots = vault_catalog.read(installation.vault_store(system), system)
        newest = {backup.manifest.kind: backup for backup in snapshots.backups}
        chosen += [_of_vault(installation, system, newest[kind]) for kind in _VAULT_KINDS if kind in newest]
        if snapshots.problems:
            raise snapshots.problems[0]
    if not chosen:
        raise ConfigurationError(
            "there is no backup to verify",
            where=what or "every system",
            remedy="take one: recovery backup postgres NAME --type full",
        )
    return chosen


def _with_id_of_postgres(installation: Installation, identifier: str) -> Iterator[Chosen]:
    for system in installation.configuration.postgres:
        entry = catalog.read(installation.store_of(system), system)
        if _has(entry, identifier):
            yield _of_postgres(installation, system, entry.find(identifier))


def _with_id_of_vault(installation: Installation, identifier: str) -> Iterator[Chosen]:
    for system in installation.configuration.vault:
        entry = vault_catalog.read(installation.vault_store(system), system)
        if _has(entry, identifier):
            yield _of_vault(installation, system, entry.find(identifier))


def _has(entry: catalog.Catalog | VaultCatalog, identifier: str) -> bool:
    return any(backup.id == identifier for backup in entry.backups) or any(
        f"/{identifier}/" in problem.where for problem in entry.problems
    )


def _of_postgres(installation: Installation, system: str, backup: catalog.Backup) -> Chosen:
    return backup, backup.manifest.stored_bytes, partial(postgres_verify.verify, installation, system, backup)


def _of_vault(installation: Installation, system: str, backup: vault_catalog.Snapshot) -> Chosen:
    return backup, backup.manifest.stored_bytes, partial(vault_verify.verify, installation, system, backup)
