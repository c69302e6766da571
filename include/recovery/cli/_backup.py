"""`recovery backup postgres NAME --type full|incremental|dump`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from recovery.cli._run import ConfigFile, Json, Verbose, duration, run, size
from recovery.postgres import backup as backups


class BackupType(StrEnum):
    FULL = "full"
    INCREMENTAL = "incremental"
    DUMP = "dump"


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Take a backup now.", no_args_is_help=True)
    group.command("postgres")(postgres)
    app.add_typer(group, name="backup")


def postgres(
    name: Annotated[str, typer.Argument(help="The system, as recovery.yaml names it.")],
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
        found = made.manifest
        seconds = sum(found.timings_seconds.values())

        def human(console: Console) -> None:
            console.print(
                f"{found.id}: {size(found.source_bytes)} read, "
                f"{size(found.stored_bytes)} stored in {duration(seconds)} "
                f"({size(int(found.source_bytes / seconds))}/s), {len(found.objects)} objects",
                highlight=False,
                soft_wrap=True,
            )
            if found.parent:
                console.print(f"builds on {found.parent}", highlight=False, soft_wrap=True)
            for note in found.notes:
                console.print(f"note: {note}", highlight=False, soft_wrap=True)

        call.emit(made.summary(), human)
