"""`recovery config check`: the file, then every system that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum

import typer
from rich.console import Console

from recovery import config
from recovery.cli._run import ConfigFile, Identity, Json, Verbose, failed, run, table
from recovery.config import Configuration
from recovery.errors import ConfigurationError, RecoveryError
from recovery.installation import Installation
from recovery.manifest import Server
from recovery.postgres import inspect
from recovery.repository.deletion import counted
from recovery.vault.inspect import check_storage, describe
from recovery.vault.session import log_in
from recovery.vault.shares import of_connection

# As the DAG postgres_incremental_backup runs.
_BETWEEN_INCREMENTALS = timedelta(hours=6)


class State(StrEnum):
    OK = "ok"
    FAILED = "failed"
    ABSENT = "absent"


@dataclass(frozen=True)
class Reached:
    what: str
    state: State
    detail: str


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="The configuration file.", no_args_is_help=True)
    group.command("check")(check)
    app.add_typer(group, name="config")


def check(
    config_file: ConfigFile = None, identity: Identity = None, json: Json = False, verbose: Verbose = False
) -> None:
    """Validate recovery.yaml, then reach every system that it names."""
    with run(json=json, config_file=config_file, identity_file=identity, verbose=verbose) as call:
        installation = call.installation()
        results = list(_reach_all(installation))

        def human(console: Console) -> None:
            console.print(f"{config.config_path(config_file)}: valid", highlight=False)
            lines = table("system", "state", "detail")
            for result in results:
                style = {"ok": "green", "failed": "red"}.get(result.state, "yellow")
                lines.add_row(result.what, f"[{style}]{result.state}[/]", result.detail)
            console.print(lines)

        call.emit({"valid": True, "systems": [asdict(result) for result in results]}, human)
        failed(any(result.state is State.FAILED for result in results))


def _reach_all(installation: Installation) -> Iterator[Reached]:
    configuration = installation.configuration
    for name in configuration.repositories:
        yield _reach(f"repository {name}", lambda name=name: _repository(installation, name))  # type: ignore[misc]
    for name in configuration.postgres:
        yield _reach(f"postgres {name}", lambda name=name: _postgres(installation, name))  # type: ignore[misc]
        if configuration.postgres[name].base.connection is not None:
            yield _reach(f"base {name}", lambda name=name: _base(installation, name))  # type: ignore[misc]
        if (lock := _lock(configuration, name)) is not None:
            yield lock
        if configuration.postgres[name].wal is not None:
            yield _reach(f"wal {name}", lambda name=name: _wal(installation, name))  # type: ignore[misc]
    for name in configuration.vault:
        yield _reach(f"vault {name}", lambda name=name: _vault(installation, name))  # type: ignore[misc]
        if configuration.vault[name].shares is not None:
            yield _shares(installation, name)
    yield _identity(installation)


def _reach(what: str, probe: Callable[[], str]) -> Reached:
    try:
        return Reached(what, State.OK, probe())
    except RecoveryError as problem:
        return Reached(what, State.FAILED, str(problem))


def _lock(configuration: Configuration, name: str) -> Reached | None:
    """A full must stay locked for as long as incrementals that stand on it, and moments of the window, need it."""
    system = configuration.postgres[name]
    repository = configuration.repositories[system.repository]
    lock = repository.s3.object_lock if repository.s3 else None
    if lock is None:
        return None
    chain = system.incremental.max_chain * _BETWEEN_INCREMENTALS
    needed = chain + (system.retention.window or timedelta())
    most = int((timedelta(days=lock.days) - (system.retention.window or timedelta())) / _BETWEEN_INCREMENTALS)
    if needed <= timedelta(days=lock.days):
        return Reached(
            f"lock {name}",
            State.OK,
            f"{counted(lock.days, 'day')}, and a full is needed for less than {counted(needed.days + 1, 'day')}",
        )
    remedy = f"set object_lock.days to {needed.days + 1} or more"
    remedy += f", or incremental.max_chain to {most} or less" if most > 0 else ""
    return Reached(
        f"lock {name}",
        State.FAILED,
        f"Object Lock ends after {counted(lock.days, 'day')}, and a full is needed longer: "
        f"{system.incremental.max_chain} incrementals every six hours, and the window after them -> {remedy}",
    )


def _repository(installation: Installation, name: str) -> str:
    store = installation.store(name)
    store.check()
    return store.description


def _postgres(installation: Installation, name: str) -> str:
    source = installation.source(name)
    if source.base_connection is None:
        return _base(installation, name)
    with source.logged_in() as reader:
        return _described(inspect.inspect(reader.connection))


def _base(installation: Installation, name: str) -> str:
    with installation.source(name).read_for("full").logged_in() as reader:
        server, settings = inspect.inspect(reader.connection), reader.settings
        inspect.check_base_backup(
            reader.connection, server, compression=settings.base.compression, configured_tools=settings.tools
        )
        return _described(server)


def _described(server: Server) -> str:
    role = ", a standby" if server.in_recovery else ""
    return f"PostgreSQL {server.version}, system {server.system_identifier}{role}"


def _wal(installation: Installation, name: str) -> str:
    source = installation.source(name)
    assert source.settings.wal is not None
    with source.logged_in() as reader:
        return inspect.check_wal(reader.connection, source.settings.wal)


def _vault(installation: Installation, name: str) -> str:
    """As a backup would: every right that it needs, but for reading the snapshot itself."""
    source = installation.vault_source(name)
    with log_in(source.connection) as session:
        server = describe(session.client)
        check_storage(session.client)
    seal = f"{server.seal.type} seal, {server.seal.threshold} of {server.seal.shares}"
    return f"{source.settings.product} {server.version}, cluster {server.cluster_id}, {seal}"


def _shares(installation: Installation, name: str) -> Reached:
    """Only drills and restores are rightly given the shares."""
    what, connection = f"shares {name}", installation.configuration.vault[name].shares
    assert connection is not None
    try:
        found = of_connection(installation.connection(connection))
    except ConfigurationError as problem:
        return Reached(what, State.ABSENT, f"no snapshot can be unsealed here: {problem}")
    return Reached(what, State.OK, f"{len(found)} shares")


def _identity(installation: Installation) -> Reached:
    """A worker that only makes backups rightly has no identity; one that is here must open what is made here."""
    try:
        publics = {
            str(identity.to_public()) for identity in installation.identities() if hasattr(identity, "to_public")
        }
    except ConfigurationError as problem:
        return Reached("identity", State.ABSENT, f"no backup can be opened here: {problem}")
    except RecoveryError as problem:
        return Reached("identity", State.FAILED, str(problem))
    recipients = installation.configuration.encryption.recipients
    fitting = publics & set(recipients)
    if publics and not fitting:
        return Reached(
            "identity", State.FAILED, "the identity fits none of encryption.recipients -> give the one that does"
        )
    return Reached("identity", State.OK, "opens backups made for " + (", ".join(sorted(fitting)) or "an SSH recipient"))
