"""`recovery drill NAME`: restore in isolation, check, write the evidence."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from recovery.cli._run import ConfigFile, Identity, Json, Verbose, duration, failed, run, table
from recovery.drill import choose, postgres, vault
from recovery.drill.choose import What
from recovery.drill.evidence import Evidence
from recovery.postgres import plan
from recovery.repository import catalog
from recovery.repository.verify import Verdict
from recovery.vault import catalog as vault_catalog


def register(app: typer.Typer) -> None:
    app.command("drill")(drill)


def drill(
    name: Annotated[str, typer.Argument(help="The system, as recovery.yaml names it.")],
    to: Annotated[str, typer.Option("--to", help="A backup's id, or `latest`.")] = "latest",
    what: Annotated[
        What | None,
        typer.Option(
            "--what",
            help="postgres or vault: that one alone; set: both, and the canaries across them. Otherwise the most that "
            "is configured.",
        ),
    ] = None,
    snapshot: Annotated[
        str | None, typer.Option("--snapshot", metavar="ID", help="set: this snapshot instead of the one that fits.")
    ] = None,
    config_file: ConfigFile = None,
    identity: Identity = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Restore a base backup, a Vault's snapshot or both in isolation, check them, measure, and keep the evidence."""
    with run(json=json, config_file=config_file, identity_file=identity, verbose=verbose) as call:
        installation = call.installation()
        chosen = choose.what(installation.configuration, name, what)
        with call.progress() as progress:
            if chosen is What.VAULT:
                backup_of_vault = vault_catalog.read(installation.vault_store(name), name).choose(to)
                found = vault.drill(installation, name, backup_of_vault, progress=progress)
            else:
                backup = plan.choose(catalog.read(installation.store_of(name), name), to)
                together = chosen is What.SET
                found = postgres.drill(
                    installation, name, backup, together=together, snapshot=snapshot, progress=progress
                )
        call.emit(found.document(), lambda console: _print(console, found))
        failed(found.verdict is not Verdict.OK)


def _print(console: Console, found: Evidence) -> None:
    style = {"ok": "green", "failed": "red"}.get(found.verdict, "yellow")
    beside = f" with {found.snapshot}" if found.kind == "set" and found.snapshot else ""
    console.print(f"{found.backup}{beside}: [{style}]{found.verdict}[/]", highlight=False, soft_wrap=True)
    rto = duration(found.rto_seconds) if found.rto_seconds is not None else "not reached"
    console.print(f"RPO {duration(found.rpo_seconds)}, RTO {rto}", highlight=False, soft_wrap=True)
    lines = table("check", "verdict", "detail")
    for check in found.checks:
        lines.add_row(check.name, check.verdict, check.detail)
    console.print(lines)
    for loose in found.loose:
        console.print(f"{loose.what}: {loose.name} -> {loose.remedy}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"evidence: {found.key}", highlight=False, soft_wrap=True)
