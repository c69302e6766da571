"""`recovery backup postgres NAME --type full|incremental|dump` and `recovery backup vault NAME`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from recovery.cli._run import ConfigFile, Json, Verbose, duration, run, size
from recovery.manifest import Manifest, VaultManifest
from recovery.postgres import backup as backups
from recovery.vault import backup as snapshots

Name = Annotated[str, typer.Argument(help="The system, as recovery.yaml names it.")]


class BackupType(StrEnum):
    FULL = "full"
    INCREMENTAL = "incremental"
    DUMP = "dump"


class SnapshotType(StrEnum):
    FULL = "full"
    SNAPSHOT = "snapshot"
    POLICIES = "policies"


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Take a backup now.", no_args_is_help=True)
    group.command("postgres")(postgres)
    group.command("vault")(vault)
    app.add_typer(group, name="backup")


def postgres(
    name: Name,
    kind: Annotated[
        BackupType,
        typer.Option(
            "--type",
            help="full: a base backup; incremental: what changed since the last one (or a full, where that cannot be "
            "trusted); dump: pg_dump of every database.",
        ),
    ],
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Back up a PostgreSQL system and commit the result."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        source = call.installation().source(name)
        with call.progress() as progress:
            made = backups.take(source, kind.value, progress=progress)

        def human(console: Console) -> None:
            _print(console, made.manifest)
            if made.manifest.parent:
                console.print(f"builds on {made.manifest.parent}", highlight=False, soft_wrap=True)

        call.emit(made.summary(), human)


def vault(
    name: Name,
    kind: Annotated[
        SnapshotType,
        typer.Option(
            "--type",
            help="full: a Raft snapshot and the export of policies and configuration; snapshot, policies: one of them.",
        ),
    ] = SnapshotType.FULL,
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Back up a Vault or OpenBao, verify it while it streams, and commit the result."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        source = call.installation().vault_source(name)
        with call.progress() as progress:
            made = snapshots.take(source, kind.value, progress=progress)

        def human(console: Console) -> None:
            _print(console, made.manifest)
            if (found := made.manifest.snapshot) is not None:
                console.print(
                    f"Raft index {found.index}, {sum(found.key_counts.values())} keys in the storage, verified",
                    highlight=False,
                    soft_wrap=True,
                )

        call.emit(made.summary(), human)


def _print(console: Console, found: Manifest | VaultManifest) -> None:
    seconds = max(sum(found.timings_seconds.values()), 0.001)
    console.print(
        f"{found.id}: {size(found.source_bytes)} read, "
        f"{size(found.stored_bytes)} stored in {duration(seconds)} "
        f"({size(int(found.source_bytes / seconds))}/s), {len(found.objects)} objects",
        highlight=False,
        soft_wrap=True,
    )
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
