"""`recovery restore vault` and `recovery restore vault-policies`: into a running node, the plan first."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recovery.cli._run import ConfigFile, Identity, Json, Verbose, failed, run, size
from recovery.connections import Connection
from recovery.errors import ConfigurationError
from recovery.installation import Installation
from recovery.vault import catalog, content, policies, restore, shares
from recovery.vault.catalog import Snapshot
from recovery.vault.restore import Plan, Restored
from recovery.vault.session import log_in

Name = Annotated[str, typer.Argument(help="The Vault, as recovery.yaml names it.")]
Id = Annotated[str, typer.Option("--id", metavar="ID", help="A backup of this Vault, or `latest`.")]
Into = Annotated[
    str,
    typer.Option("--into", metavar="ADDRESS", help="The node: http(s)://HOST:PORT, or a connection id with a token."),
]
CaCert = Annotated[Path | None, typer.Option("--ca-cert", metavar="FILE", help="The private CA of an https address.")]


def restore_vault(
    name: Name,
    into: Into,
    identifier: Id = "latest",
    shares_file: Annotated[
        Path | None,
        typer.Option(
            "--shares", metavar="FILE", help="The original unseal shares; otherwise configured, or asked for."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="The node is in use, and all that it holds is to be lost.")
    ] = False,
    production: Annotated[
        str | None, typer.Option("--production", metavar="NAME", help="The node is this Vault itself.")
    ] = None,
    ca_cert: CaCert = None,
    config_file: ConfigFile = None,
    identity: Identity = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Restore a snapshot into a fresh node, unseal it with the original shares, and check it against the manifest."""
    with run(json=json, config_file=config_file, identity_file=identity, verbose=verbose) as call:
        installation = call.installation()
        backup, target = _chosen(installation, name, identifier), _target(installation, into, ca_cert)
        made = restore.plan(installation, backup, target, replace_it=replace, production=production)
        if not json:
            _print_plan(call.console, made)
        escrowed = [] if made.blocked_by else _shares(installation, backup, shares_file)
        with call.progress() as progress:
            done = restore.run(installation, made, target, escrowed, progress=progress)
        document = made.document() | {"checks": done.checks, "unchecked": done.unchecked}
        call.emit(document, lambda console: _print_outcome(console, made, done))
        failed(not done.good)


def plan_vault(
    name: Name,
    into: Into,
    identifier: Id = "latest",
    replace: Annotated[bool, typer.Option("--replace", help="As in `recovery restore vault`.")] = False,
    production: Annotated[
        str | None, typer.Option("--production", metavar="NAME", help="As in `recovery restore vault`.")
    ] = None,
    ca_cert: CaCert = None,
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """What a restore of a snapshot would replace, which seal it has, how many shares it takes, and what blocks it."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        installation = call.installation()
        backup, target = _chosen(installation, name, identifier), _target(installation, into, ca_cert)
        made = restore.plan(installation, backup, target, replace_it=replace, production=production)
        call.emit(made.document(), lambda console: _print_plan(console, made))
        failed(bool(made.blocked_by))


def restore_policies(
    name: Name,
    identifier: Id = "latest",
    into: Annotated[
        str | None,
        typer.Option("--into", metavar="CONNECTION", help="Who may write policies there: a connection id."),
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", metavar="POLICY", help="One of them; all without it. Repeatable.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Write them; without it the plan is only printed.")] = False,
    config_file: ConfigFile = None,
    identity: Identity = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write policies of an export into a running server again. The plan first; it writes with --apply only."""
    with run(json=json, config_file=config_file, identity_file=identity, verbose=verbose) as call:
        installation = call.installation()
        settings = installation.configuration.vault_system(name)
        entry = catalog.read(installation.vault_store(name), name)
        backup = entry.newest_export() if identifier == "latest" else entry.find(identifier)
        tree = content.export_of(installation.vault_store(name), backup, installation.identities())
        with log_in(installation.connection(into or settings.connection)) as session:
            changes = policies.plan(tree, session.client, policy)
            written = policies.apply(session.client, changes) if apply else None

        def human(console: Console) -> None:
            for change in changes:
                console.print(f"{change.action}: {change.name}", highlight=False, markup=False, soft_wrap=True)
                for line in change.diff:
                    console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
            end = f"{len(written)} written and read back" if written is not None else "--apply writes them"
            console.print(end, highlight=False)

        document = {
            "backup": backup.id,
            "changes": [{"name": each.name, "action": each.action, "diff": list(each.diff)} for each in changes],
            "written": written,
        }
        call.emit(document, human)


def _chosen(installation: Installation, name: str, identifier: str) -> Snapshot:
    installation.configuration.vault_system(name)
    return catalog.read(installation.vault_store(name), name).choose(identifier)


def _target(installation: Installation, into: str, ca_cert: Path | None) -> Connection:
    extra = {"ca_cert": str(ca_cert)} if ca_cert else {}
    if "://" in into:
        return Connection(id=into, type="vault", host=into, extra=extra)
    return installation.connection(into)


def _shares(installation: Installation, backup: Snapshot, file: Path | None) -> Sequence[str]:
    """From a file, the configured connection, or a prompt that does not show them."""
    seal = backup.manifest.server.seal
    if seal.type != "shamir":
        return []
    if file is not None:
        return shares.of_file(file)
    settings = installation.configuration.vault_system(backup.manifest.system)
    if settings.shares is not None:
        return shares.of_connection(installation.connection(settings.shares))
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"the unseal shares are needed, {seal.threshold} of {seal.shares}",
            remedy="give --shares FILE, configure vault.NAME.shares, or run this on a terminal",
        )
    return [getpass.getpass(f"unseal share {number} of {seal.threshold}: ") for number in range(1, seal.threshold + 1)]


def _print_plan(console: Console, made: Plan) -> None:
    found = made.backup.manifest
    seal = found.server.seal
    unsealed = (
        f"{seal.type}: {seal.threshold} of its {seal.shares} shares unseal it"
        if seal.type == "shamir"
        else f"{seal.type}: the key service unseals it"
    )
    lines = [
        f"backup          {found.id} ({found.product} {found.server.version})",
        f"recovery point  {found.recovery_point:%Y-%m-%d %H:%M:%S} UTC",
        f"fetch           {size(made.backup.object('snapshot').stored_bytes)}",
        f"seal            {unsealed}",
        f"brings back     cluster {found.server.cluster_id}: {len(found.server.mounts)} mounts, "
        f"{len(found.server.policies)} policies",
        f"target          {made.target}",
        f"replaces        {made.replaces or 'nothing: the node is fresh'}",
        *(f"blocked         {reason}" for reason in made.blocked_by),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_outcome(console: Console, made: Plan, done: Restored) -> None:
    console.print(f"restored into {made.target}, and unsealed", highlight=False, soft_wrap=True)
    for name, problems in done.checks.items():
        word = f"[red]failed[/]: {'; '.join(problems)}" if problems else "[green]ok[/]"
        console.print(f"  {name}: {word}", highlight=False, soft_wrap=True)
    if done.unchecked:
        console.print(f"[yellow]unknown[/]: {done.unchecked}", highlight=False, soft_wrap=True)
    console.print("Its peers join it with `operator raft join`. The throwaway root token is gone; the snapshot's live.")
