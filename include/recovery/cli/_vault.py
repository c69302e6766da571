"""`recovery vault diff`, `recovery vault export` and `recovery vault canary`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recovery.cli._run import ConfigFile, Identity, Json, Verbose, run
from recovery.errors import ConfigurationError
from recovery.installation import Installation
from recovery.vault import canaries, catalog, content, diff
from recovery.vault import export as exports
from recovery.vault.session import log_in

Name = Annotated[str, typer.Argument(help="The Vault, as recovery.yaml names it.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="A Vault's policies and configuration, and its canary.", no_args_is_help=True)
    group.command("diff")(diff_)
    group.command("export")(export)
    group.command("canary")(canary)
    app.add_typer(group, name="vault")


def diff_(
    name: Name,
    before: Annotated[str | None, typer.Argument(metavar="[ID]", help="An export; without it the newest one.")] = None,
    after: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A later export; without it the live server.")
    ] = None,
    config_file: ConfigFile = None,
    identity: Identity = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """What changed in policies and configuration between two exports, or between an export and the live server."""
    with run(json=json, config_file=config_file, identity_file=identity, verbose=verbose) as call:
        installation = call.installation()
        first, old = _export(installation, name, before)
        second, new = _export(installation, name, after) if after is not None else ("live", _live(installation, name))
        changes = diff.compare(old, new)

        def human(console: Console) -> None:
            console.print(diff.render(changes), end="", highlight=False, markup=False, soft_wrap=True)
            console.print(f"{first} to {second}: {len(changes)} files differ", highlight=False, soft_wrap=True)

        call.emit({"before": first, "after": second, "changes": [asdict(change) for change in changes]}, human)


def export(
    name: Name,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="A new directory, or an earlier export's.")],
    identifier: Annotated[str, typer.Option("--id", metavar="ID", help="An export, or `live`.")] = "latest",
    config_file: ConfigFile = None,
    identity: Identity = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write an export as files: policies as .hcl, the configuration as JSON, fit for a repository of their own."""
    with run(json=json, config_file=config_file, identity_file=identity, verbose=verbose) as call:
        installation = call.installation()
        if identifier == "live":
            source, tree = "live", _live(installation, name)
        else:
            source, tree = _export(installation, name, None if identifier == "latest" else identifier)
        exports.write_tree(tree, output)
        call.emit(
            {"export": source, "directory": str(output), "files": sorted(tree)},
            lambda console: console.print(f"{source}: {len(tree)} files in {output}", highlight=False, soft_wrap=True),
        )


def canary(
    name: Annotated[str, typer.Argument(help="A PostgreSQL system with keys.canary.")],
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the canary of a database anew: a row that its Vault's transit key encrypts, which drills decrypt."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        kept = canaries.refresh(call.installation(), name)

        def human(console: Console) -> None:
            console.print(f"canary written with version {kept.version} of {kept.key}", highlight=False, soft_wrap=True)
            if kept.due:
                console.print(f"a snapshot of {kept.vault} is due: {kept.due}", highlight=False, soft_wrap=True)

        call.emit(asdict(kept), human)


def _export(installation: Installation, name: str, identifier: str | None) -> tuple[str, exports.Tree]:
    store = installation.vault_store(name)
    entry = catalog.read(store, name)
    backup = entry.newest_export() if identifier is None else entry.find(identifier)
    if backup.manifest.kind == "snapshot":
        raise ConfigurationError("it holds no export", where=backup.id, remedy="choose a `full` or `policies` one")
    return backup.id, content.export_of(store, backup, installation.identities())


def _live(installation: Installation, name: str) -> exports.Tree:
    settings = installation.configuration.vault_system(name)
    with log_in(installation.connection(settings.connection)) as session:
        return exports.collect(session.client, product=settings.product)
