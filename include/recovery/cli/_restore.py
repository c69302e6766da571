"""`recovery plan` and `recovery restore`: the plan is printed before anything is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recovery.cli._run import ConfigFile, Identity, Json, Run, Verbose, duration, failed, run, size
from recovery.errors import ConfigurationError, PreconditionError
from recovery.postgres import load, owner, plan, restore, tools
from recovery.repository import catalog

Name = Annotated[str, typer.Argument(help="The system, as recovery.yaml names it.")]
To = Annotated[str, typer.Option("--to", help="A backup's id, or `latest`.")]
Database = Annotated[str | None, typer.Option("--database", help="Only this database of a dump.")]
Mapping = Annotated[
    list[str] | None,
    typer.Option("--tablespace", metavar="NAME=DIR", help="Where a tablespace goes, by its name or old path."),
]


def register(app: typer.Typer) -> None:
    plans = typer.Typer(help="Show what a restore would do; touches nothing.", no_args_is_help=True)
    plans.command("postgres")(plan_postgres)
    app.add_typer(plans, name="plan")
    restores = typer.Typer(help="Restore a backup.", no_args_is_help=True)
    restores.command("postgres")(restore_postgres)
    app.add_typer(restores, name="restore")


def plan_postgres(
    name: Name,
    to: To = "latest",
    database: Database = None,
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Which objects a restore would fetch, how many bytes, how long it would take, and what blocks it."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        installation = call.installation()
        entry = catalog.read(installation.store_of(name), name)
        backup = plan.choose(entry, to, kinds=("full", "dump") if to != "latest" else ("dump" if database else "full",))
        blocked = []
        try:
            tools.find(backup.manifest.server.major, configured=installation.configuration.postgres_system(name).tools)
        except PreconditionError as problem:
            blocked.append(str(problem))
        made = plan.make(name, backup, target="not chosen yet", database=database, blocked_by=tuple(blocked))
        call.emit(made.document(), lambda console: _print_plan(console, made))
        failed(bool(blocked))


def restore_postgres(
    name: Name,
    to: To,
    pgdata: Annotated[
        Path | None, typer.Option("--pgdata", metavar="DIR", help="An empty or new data directory (full backups).")
    ] = None,
    into: Annotated[
        str | None, typer.Option("--into", metavar="CONNECTION", help="A running server's connection id (dumps).")
    ] = None,
    database: Database = None,
    tablespace: Mapping = None,
    user: Annotated[
        str | None, typer.Option("--owner", help="As root: the user that the restored files belong to.")
    ] = None,
    config_file: ConfigFile = None,
    identity: Identity = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Restore a full backup into a directory, or a dump into a running server."""
    with run(json=json, config_file=config_file, identity_file=identity, verbose=verbose) as call:
        if (pgdata is None) == (into is None):
            raise ConfigurationError(
                "a restore needs one target",
                remedy="give either --pgdata DIR (a full backup) or --into CONNECTION (a dump)",
            )
        if pgdata is not None:
            if database is not None:
                raise ConfigurationError("--database restores out of a dump", remedy="use it with --into CONNECTION")
            _restore_base(call, name, to, pgdata, tablespace or [], user)
        elif into is not None:
            _restore_dump(call, name, to, into, database)


def _restore_base(call: Run, name: str, to: str, pgdata: Path, mappings: list[str], user: str | None) -> None:
    installation = call.installation()
    store = installation.store_of(name)
    backup = plan.choose(catalog.read(store, name), to)
    found = backup.manifest
    programs = tools.find(found.server.major, configured=installation.configuration.postgres_system(name).tools)
    files_of = owner.choose(user or installation.configuration.sandbox.user)
    places = restore.place_tablespaces(found, _parse_mappings(mappings))
    target = str(pgdata.absolute())
    made = plan.make(name, backup, target=target, tablespaces={str(oid): str(path) for oid, path in places.items()})
    _show(call, made)
    with call.progress() as progress:
        restored = restore.restore_base(
            store,
            backup,
            pgdata,
            identities=installation.identities(),
            tablespaces=places,
            owner=files_of,
            tick=lambda done, expected: progress("restore", done, expected),
        )
    document = made.document() | {"restored": str(restored.pgdata), "fetched_bytes": restored.fetched_bytes}
    as_user = f"runuser -u {files_of.name} -- " if files_of else ""

    def human(console: Console) -> None:
        for line in (
            f"restored to {restored.pgdata}. It has production's settings: before you start it, set archive_mode = off",
            "there unless it is to archive where production did. Then, and once it is open:",
            f"  {as_user}{programs.path('pg_ctl')} -D {restored.pgdata} -w start",
            "  ALTER SYSTEM RESET restore_command; ALTER SYSTEM RESET recovery_target; "
            "ALTER SYSTEM RESET recovery_target_action",
        ):
            console.print(line, highlight=False, soft_wrap=True)

    call.emit(document, human)


def _restore_dump(call: Run, name: str, to: str, into: str, database: str | None) -> None:
    installation = call.installation()
    store = installation.store_of(name)
    backup = plan.choose(catalog.read(store, name), to, kinds=("dump",))
    found = backup.manifest
    made = plan.make(name, backup, target=f"connection {into}", database=database)
    _show(call, made)
    with call.progress() as progress:
        loaded = load.restore_dump(
            store,
            backup,
            installation.connection(into),
            database=database,
            identities=installation.identities(),
            tools=tools.find(found.server.major, configured=installation.configuration.postgres_system(name).tools),
            tick=lambda what, done: progress(f"load {what}", done, None),
        )

    def human(console: Console) -> None:
        console.print(f"restored into {into}: {', '.join(loaded.databases)}", highlight=False, soft_wrap=True)
        for note in loaded.notes:
            console.print(f"note: left out of the globals: {note}", highlight=False, soft_wrap=True)

    call.emit(made.document() | {"databases": loaded.databases, "notes": loaded.notes}, human)


def _show(call: Run, made: plan.Plan) -> None:
    """The plan goes to standard error, before anything is touched."""
    if not call.json:
        _print_plan(call.console, made)


def _print_plan(console: Console, made: plan.Plan) -> None:
    lines = [
        f"backup          {made.backup.id} (PostgreSQL {made.server_version})",
        f"recovery point  {made.recovery_point:%Y-%m-%d %H:%M:%S} UTC",
        f"fetch           {size(made.fetch_bytes)} in {made.objects} objects",
        f"disk needed     {size(made.restored_bytes)}",
        f"predicted time  {duration(made.predicted_seconds)}",
        f"target          {made.target}",
        *(f"tablespace      {oid} -> {path}" for oid, path in made.tablespaces.items()),
        *(f"blocked         {reason}" for reason in made.blocked_by),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _parse_mappings(mappings: list[str]) -> dict[str, str]:
    parsed = {}
    for mapping in mappings:
        name, separator, path = mapping.partition("=")
        if not separator or not name or not path:
            raise ConfigurationError(
                f"--tablespace {mapping!r} is not NAME=DIR", remedy="write --tablespace archive=/new/path"
            )
        parsed[name] = path
    return parsed
