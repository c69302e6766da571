"""Restoring logical dumps into a running server: databases that are not there yet, and the roles that they need."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from recovery.connections import Connection
from recovery.errors import PreconditionError, RecoveryError, RestoreError
from recovery.manifest import StoredObject
from recovery.postgres import connect
from recovery.postgres.pg_restore import PgRestore, first_error
from recovery.postgres.tools import Tools
from recovery.repository.catalog import Backup
from recovery.repository.sealing import unseal, unseal_bytes
from recovery.repository.store import ObjectStore

Tick = Callable[[str, int], None]
"""Called with a database's name and the bytes just fetched; it may raise to end the work."""

_MAINTENANCE = "postgres"


@dataclass(frozen=True)
class Loaded:
    """What was made on the target, and what was left out of the globals and why."""

    databases: tuple[str, ...]
    notes: tuple[str, ...]


def restore_dump(
    store: ObjectStore,
    backup: Backup,
    connection: Connection,
    *,
    database: str | None,
    identities: Sequence[Any],
    tools: Tools,
    tick: Tick = lambda name, size: None,
) -> Loaded:
    """Create the dump's databases (or one of them) on the server of `connection`, with the roles that they need.

    Raises PreconditionError when a database exists there already, RestoreError when loading fails: the database that
    failed is dropped again, and the ones before it are named. Tablespaces of the source are not made.
    """
    wanted = [item for item in backup.manifest.objects if item.role == "dump" and database in (None, item.database)]
    names = [str(item.database) for item in wanted]
    fresh = [name for name in names if not _exists_empty(connection, name)]
    notes = _load_globals(store, backup, connection, identities, tools)
    done: list[str] = []
    for item in wanted:
        name = str(item.database)
        try:
            _load(store, backup, item, connection, identities=identities, tools=tools, create=name in fresh, tick=tick)
        except BaseException as problem:
            dropped = _drop(connection, name) if name in fresh else False
            if isinstance(problem, RecoveryError):
                left = (
                    f"restored before it and kept: {', '.join(done)}" if done else "nothing else was changed but roles"
                )
                problem.remedy = (
                    f"{problem.remedy}; {name} was {'dropped again' if dropped else 'left as it is'}, {left}".lstrip(
                        "; "
                    )
                )
            raise
        done.append(name)
    return Loaded(tuple(done), tuple(notes))


def _exists_empty(connection: Connection, database: str) -> bool:
    """Whether the database is there and empty (every server has `postgres`); one with tables in it is refused."""
    with connect.session(connection, database=_MAINTENANCE) as session:
        if session.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone() is None:
            return False
    with connect.session(connection, database=database) as session:
        row = session.execute(
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE nspname NOT IN ('pg_catalog', 'information_schema') AND nspname NOT LIKE 'pg\\_toast%'"
        ).fetchone()
    if row is None or row[0]:
        raise PreconditionError(
            f"the database {database!r} exists already and is not empty",
            where=f"PostgreSQL {connection.host}:{connection.port or 5432}",
            remedy="drop or rename it, or restore into another server",
        )
    return True


def _load_globals(
    store: ObjectStore, backup: Backup, connection: Connection, identities: Sequence[Any], tools: Tools
) -> list[str]:
    """Run the globals, less tablespaces and roles that exist: those keep the target's passwords and rights.

    What an error leaves out is a note, not a failure.
    """
    spaces = backup.manifest.server.tablespaces
    notes = [f"tablespace {space.name}: what lay in it lies in the default tablespace" for space in spaces]
    for sealed in backup.objects("globals"):
        script = _for_target(unseal_bytes(store, sealed, identities=identities), _roles(connection))
        answer = subprocess.run(
            [tools.path("psql"), "--no-psqlrc", "--quiet", "--no-password", "--dbname", _MAINTENANCE],
            input=script,
            capture_output=True,
            env=connect.environment(connection, database=_MAINTENANCE),
            check=False,
        )
        if answer.returncode != 0:
            raise RestoreError(
                f"the globals could not be loaded: {first_error(answer.stderr)}",
                where=f"connection {connection.id}",
                remedy="see the target's log",
            )
        notes += [
            line.partition("ERROR:")[2].strip()
            for line in answer.stderr.decode(errors="replace").splitlines()
            if "ERROR:" in line
        ]
    return notes


def _roles(connection: Connection) -> list[str]:
    """The target's roles, quoted as pg_dumpall quotes them."""
    with connect.session(connection, database=_MAINTENANCE) as session:
        return [name for (name,) in session.execute("SELECT quote_ident(rolname) FROM pg_roles")]


def _for_target(script: bytes, roles: Sequence[str]) -> bytes:
    """pg_dumpall writes each of these commands on a line of its own."""
    left_out = tuple(
        start.encode()
        for start in (
            *(f"CREATE ROLE {role};" for role in roles),
            *(f"ALTER ROLE {role} " for role in roles),
            "CREATE TABLESPACE ",
            "ALTER TABLESPACE ",
        )
    )
    lines = script.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(left_out) and b" ON TABLESPACE " not in line)


def _load(
    store: ObjectStore,
    backup: Backup,
    item: StoredObject,
    connection: Connection,
    *,
    identities: Sequence[Any],
    tools: Tools,
    create: bool,
    tick: Tick,
) -> None:
    name = str(item.database)
    into = _MAINTENANCE if create else name
    arguments = ["--create"] if create else ["--single-transaction"]

    def failure(message: str) -> RestoreError:
        where = f"PostgreSQL {connection.host}:{connection.port or 5432}"
        return RestoreError(f"loading {name} failed: {message}", where=where, remedy="see the target's log")

    program = PgRestore(
        tools,
        "--exit-on-error",
        "--no-password",
        "--no-tablespaces",
        f"--dbname={into}",
        *arguments,
        failure=failure,
        environment=connect.environment(connection, database=into),
    )
    with closing(program):
        unseal(
            store, item.sealed(backup.folder), program, identities=identities, progress=lambda size: tick(name, size)
        )
        program.finish()


def _drop(connection: Connection, database: str) -> bool:
    with connect.session(connection, database=_MAINTENANCE) as session:
        session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))
    return True
