"""`recovery plan` and `recovery restore`: the plan is printed before anything is touched."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recovery.cli import _restore_vault
from recovery.cli._run import ConfigFile, Identity, Json, Run, Verbose, duration, failed, run, size
from recovery.drill import evidence
from recovery.errors import ConfigurationError, PreconditionError
from recovery.postgres import load, moment, owner, plan, replay, restore, tools
from recovery.repository import catalog

Name = Annotated[str, typer.Argument(help="The system, as recovery.yaml names it.")]
To = Annotated[
    str, typer.Option("--to", help="latest, a backup's id, a time with its zone, an LSN, xid:N, or name:LABEL.")
]
Timeline = Annotated[
    int | None, typer.Option("--timeline", min=1, help="The timeline to recover along; otherwise the newest stored.")
]
Database = Annotated[str | None, typer.Option("--database", help="Only this database of a dump.")]
Mapping = Annotated[
    list[str] | None,
    typer.Option("--tablespace", metavar="NAME=DIR", help="Where a tablespace goes, by its name or old path."),
]


def register(app: typer.Typer) -> None:
    plans = typer.Typer(help="Show what a restore would do; touches nothing.", no_args_is_help=True)
    plans.command("postgres")(plan_postgres)
    plans.command("vault")(_restore_vault.plan_vault)
    app.add_typer(plans, name="plan")
    restores = typer.Typer(help="Restore a backup.", no_args_is_help=True)
    restores.command("postgres")(restore_postgres)
    restores.command("vault")(_restore_vault.restore_vault)
    restores.command("vault-policies")(_restore_vault.restore_policies)
    app.add_typer(restores, name="restore")


def plan_postgres(
    name: Name,
    to: To = "latest",
    database: Database = None,
    timeline: Timeline = None,
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Which objects a restore would fetch, how many bytes, how long it would take, and what blocks it."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        installation = call.installation()
        store = installation.store_of(name)
        entry = catalog.read(store, name)
        route = (
            None if _of_a_dump(to, database) else moment.find(store, entry, name, moment.parse(to), timeline=timeline)
        )
        chain = route.chain if route is not None else (plan.choose(entry, to, kinds=("dump",)),)
        blocked = []
        try:
            major = chain[-1].manifest.server.major
            tools.find(major, configured=installation.configuration.postgres_system(name).tools)
        except PreconditionError as problem:
            blocked.append(str(problem))
        made = plan.make(
            name,
            chain,
            target="not chosen yet",
            route=route,
            bytes_per_second=evidence.measured_rate(store, name),
            database=database,
            blocked_by=tuple(blocked),
        )
        call.emit(made.document(), lambda console: _print_plan(console, made))
        failed(bool(blocked))


def _of_a_dump(to: str, database: str | None) -> bool:
    return database is not None or to.endswith("-dump")


def restore_postgres(
    name: Name,
    to: To,
    pgdata: Annotated[
        Path | None, typer.Option("--pgdata", metavar="DIR", help="An empty or new data directory (base backups).")
    ] = None,
    into: Annotated[
        str | None, typer.Option("--into", metavar="CONNECTION", help="A running server's connection id (dumps).")
    ] = None,
    database: Database = None,
    timeline: Timeline = None,
    pause: Annotated[
        bool, typer.Option("--pause", help="Stay at the moment instead of opening there on a new timeline.")
    ] = False,
    tablespace: Mapping = None,
    user: Annotated[
        str | None, typer.Option("--owner", help="As root: the user that the restored files belong to.")
    ] = None,
    config_file: ConfigFile = None,
    identity: Identity = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Restore a cluster to a backup or to any moment after it into a directory, or a dump into a running server."""
    with run(json=json, config_file=config_file, identity_file=identity, verbose=verbose) as call:
        if (pgdata is None) == (into is None):
            raise ConfigurationError(
                "a restore needs one target",
                remedy="give either --pgdata DIR (a base backup) or --into CONNECTION (a dump)",
            )
        if pgdata is not None:
            if database is not None:
                raise ConfigurationError("--database restores out of a dump", remedy="use it with --into CONNECTION")
            _restore_base(call, name, to, timeline, pgdata, tablespace or [], user, pause=pause)
        elif into is not None:
            _restore_dump(call, name, to, into, database)


def _restore_base(
    call: Run,
    name: str,
    to: str,
    timeline: int | None,
    pgdata: Path,
    mappings: list[str],
    user: str | None,
    *,
    pause: bool,
) -> None:
    installation = call.installation()
    settings = installation.configuration.postgres_system(name)
    store = installation.store_of(name)
    route = moment.find(store, catalog.read(store, name), name, moment.parse(to), timeline=timeline)
    if pause and (route.archive is None or route.moment.kind == "latest"):
        raise ConfigurationError(
            "--pause stays at a moment in the WAL, and this restore names none",
            remedy="leave it out, or give --to a time, an LSN, a transaction or a name",
        )
    found = route.backup.manifest
    programs = tools.find(found.server.major, configured=settings.tools)
    files_of = owner.choose(user or installation.configuration.sandbox.user)
    places = restore.place_tablespaces(found, _parse_mappings(mappings))
    target = str(pgdata.absolute())
    spaces = {str(oid): str(path) for oid, path in places.items()}
    rate = evidence.measured_rate(store, name)
    made = plan.make(name, route.chain, target=target, route=route, bytes_per_second=rate, tablespaces=spaces)
    _show(call, made)
    with call.progress() as progress:
        restored, reached = replay.restore_to(
            store,
            route,
            pgdata,
            identities=installation.identities(),
            tablespaces=places,
            tools=programs,
            owner=files_of,
            preload=settings.preload,
            pause=pause,
            fetched=lambda done, expected: progress("restore", done, expected),
            replayed=lambda done, expected: progress("replay WAL", done, expected),
        )
    document = made.document() | {
        "restored": str(restored.pgdata),
        "fetched_bytes": restored.fetched_bytes,
        "reached": asdict(reached) if reached else None,
    }
    as_user = f"runuser -u {files_of.name} -- " if files_of else ""
    start = f"  {as_user}{programs.path('pg_ctl')} -D {restored.pgdata} -w start"

    def human(console: Console) -> None:
        for line in (
            *_outcome(restored.pgdata, reached, pause=pause),
            start,
            *_afterwards(reached, route.moment.kind, pause=pause),
        ):
            console.print(line, highlight=False, soft_wrap=True)

    call.emit(document, human)


def _outcome(pgdata: Path, reached: replay.Reached | None, *, pause: bool) -> list[str]:
    lines = [f"restored to {pgdata}"]
    if reached is not None:
        last = f"; its last transaction committed at {reached.last_commit}" if reached.last_commit else ""
        state = "paused at" if pause else f"opened on timeline {reached.timeline} after"
        lines.append(f"recovered, and {state} {reached.lsn}{last}. It is stopped again.")
    return [
        *lines,
        "It has production's settings: before you start it, set archive_mode = off there unless it is to archive where "
        "production did. Then:",
    ]


def _afterwards(reached: replay.Reached | None, kind: str, *, pause: bool) -> list[str]:
    if reached is None:
        return ["and once it is open:", f"  {_resets('recovery_target')}"]
    if pause:
        return [
            "It pauses there again. To open it:",
            f"  SELECT pg_wal_replay_resume(); {_resets('recovery_target_timeline', f'recovery_target_{kind}')}",
        ]
    return []


def _resets(*targets: str) -> str:
    settings = ("restore_command", *targets, "recovery_target_action")
    return "; ".join(f"ALTER SYSTEM RESET {name}" for name in settings)


def _restore_dump(call: Run, name: str, to: str, into: str, database: str | None) -> None:
    installation = call.installation()
    store = installation.store_of(name)
    backup = plan.choose(catalog.read(store, name), to, kinds=("dump",))
    found = backup.manifest
    made = plan.make(name, [backup], target=f"connection {into}", database=database)
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
        *(f"builds on       {member.id}" for member in made.chain[-2::-1]),
        f"recovery point  {made.moment or f'{made.recovery_point:%Y-%m-%d %H:%M:%S} UTC'}",
        f"fetch           {size(made.fetch_bytes)} in {made.objects} objects",
        *([f"WAL             {size(made.wal_bytes)} in {made.wal_segments} segments"] if made.wal_segments else []),
        f"disk needed     {size(made.disk_bytes)}",
        f"predicted time  {duration(made.predicted_seconds)}, from {made.predicted_from}",
        f"target          {made.target}",
        *(f"tablespace      {oid} -> {path}" for oid, path in made.tablespaces.items()),
        *(f"note            {note}" for note in made.notes),
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
