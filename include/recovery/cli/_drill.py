"""`recovery drill NAME`: restore in isolation, check, write the evidence."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from recovery.cli._run import ConfigFile, Identity, Json, Verbose, duration, failed, run, table
from recovery.drill import postgres as drills
from recovery.drill.evidence import Evidence
from recovery.postgres import plan
from recovery.repository import catalog
from recovery.repository.verify import Verdict


def register(app: typer.Typer) -> None:
    app.command("drill")(drill)


def drill(
    name: Annotated[str, typer.Argument(help="The system, as recovery.yaml names it.")],
    to: Annotated[str, typer.Option("--to", help="A backup's id, or `latest`.")] = "latest",
    config_file: ConfigFile = None,
    identity: Identity = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Restore a base backup in isolation, check it, measure it, and keep the evidence."""
    with run(json=json, config_file=config_file, identity_file=identity, verbose=verbose) as call:
        installation = call.installation()
        backup = plan.choose(catalog.read(installation.store_of(name), name), to)
        with call.progress() as progress:
            found = drills.drill(installation, name, backup, progress=progress)
        call.emit(found.document(), lambda console: _print(console, found))
        failed(found.verdict is not Verdict.OK)


def _print(console: Console, found: Evidence) -> None:
    style = {"ok": "green", "failed": "red"}.get(found.verdict, "yellow")
    console.print(f"{found.backup}: [{style}]{found.verdict}[/]", highlight=False, soft_wrap=True)
    rto = duration(found.rto_seconds) if found.rto_seconds is not None else "not reached"
    console.print(f"RPO {duration(found.rpo_seconds)}, RTO {rto}", highlight=False, soft_wrap=True)
    lines = table("check", "verdict", "detail")
    for check in found.checks:
        lines.add_row(check.name, check.verdict, check.detail)
    console.print(lines)
    console.print(f"evidence: {found.key}", highlight=False, soft_wrap=True)
