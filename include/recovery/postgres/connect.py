"""How this project connects to PostgreSQL: connection strings, session settings that no inherited timeout can break."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import conninfo
from psycopg.rows import TupleRow

from recovery.connections import Connection
from recovery.errors import PreconditionError

APPLICATION_NAME = "recovery"
# libpq parameters that an Airflow connection may carry in its extra, and the variables that programs read them from.
_EXTRAS = {
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "channel_binding": "PGCHANNELBINDING",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "gssencmode": "PGGSSENCMODE",
    "passfile": "PGPASSFILE",
}
_VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "application_name": "PGAPPNAME",
    "connect_timeout": "PGCONNECT_TIMEOUT",
} | _EXTRAS
_CONNECT_TIMEOUT_SECONDS = 10
# An inherited timeout (ALTER ROLE, postgresql.conf) has ended long backups: each session switches them off for itself.
_TIMEOUTS = {
    "statement_timeout": 0,
    "lock_timeout": 0,
    "idle_in_transaction_session_timeout": 0,
    "idle_session_timeout": 140000,
    "transaction_timeout": 170000,
}


def parameters(connection: Connection, *, database: str | None = None) -> dict[str, Any]:
    """libpq parameters, the password included. `database` overrides the connection's own.

    `host` may name several, separated by commas, and the extra `ports` a port for each (manual, 32.1.1.3).
    """
    found: dict[str, Any] = {
        "host": connection.host,
        "port": connection.extra.get("ports") or connection.port,
        "user": connection.login,
        "password": connection.password,
        "dbname": database or connection.schema or "postgres",
        "application_name": APPLICATION_NAME,
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
    }
    found |= {key: connection.extra[key] for key in _EXTRAS if key in connection.extra}
    return {key: value for key, value in found.items() if value not in (None, "")}


def connect(connection: Connection, *, database: str | None = None) -> psycopg.Connection[TupleRow]:
    """An autocommit session with the timeouts off; raises PreconditionError that says why there is none."""
    try:
        session = psycopg.connect(**parameters(connection, database=database), autocommit=True)
    except psycopg.OperationalError as problem:
        raise refused(connection, str(problem)) from None
    for name in timeouts(session.info.server_version):
        session.execute(f"SET {name} = 0")
    return session


@contextlib.contextmanager
def session(connection: Connection, *, database: str | None = None) -> Iterator[psycopg.Connection[TupleRow]]:
    """A session for a few questions; raises PreconditionError also for what the server refuses to answer."""
    with connect(connection, database=database) as opened:
        try:
            yield opened
        except psycopg.Error as problem:
            remedy = "see the server's log, then run it again"
            if isinstance(problem, psycopg.errors.InsufficientPrivilege):
                remedy = f'GRANT pg_monitor, pg_read_all_data TO "{connection.login}"'
            first = str(problem).strip().splitlines()[0]
            raise PreconditionError(first, where=_where(connection), remedy=remedy) from None


def timeouts(version_number: int) -> list[str]:
    """The timeout settings that a server of this version knows."""
    return [name for name, since in _TIMEOUTS.items() if version_number >= since]


def replication_conninfo(connection: Connection, *, version_number: int) -> bytes:
    """The connection string of a base backup's session."""
    return _replication(connection, [*timeouts(version_number), "wal_sender_timeout"])


def wal_conninfo(connection: Connection, *, version_number: int) -> bytes:
    """The connection string of a WAL stream: here the server must notice a receiver that is gone, to free its slot."""
    return _replication(connection, timeouts(version_number))


def _replication(connection: Connection, switched_off: Sequence[str]) -> bytes:
    options = " ".join(f"-c {name}=0" for name in switched_off)
    values = parameters(connection)
    values.pop("dbname")
    return conninfo.make_conninfo(**values, replication="true", options=options).encode()


def environment(connection: Connection, *, database: str | None = None) -> dict[str, str]:
    """The environment for PostgreSQL's own programs: the password travels here, never in an argument."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "AIRFLOW_CONN_"))}
    return inherited | {_VARIABLES[key]: str(value) for key, value in parameters(connection, database=database).items()}


def _where(connection: Connection) -> str:
    return f"PostgreSQL {connection.host}:{connection.port or 5432} as {connection.login}"


def refused(connection: Connection, message: str) -> PreconditionError:
    """libpq's message about a failed connection, as one line with a remedy."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL:" in line or "failed:" in line] or lines or ["no answer"]
    text = telling[-1].rpartition("FATAL:")[2].rpartition("failed:")[2].strip()
    where = _where(connection)
    if "password authentication failed" in text or "no password supplied" in text:
        remedy = f"correct the password of connection {connection.id}"
    elif "must be superuser or replication role" in text or "permission denied to start WAL sender" in text:
        text = f"the role {connection.login} may not start replication"
        remedy = f'ALTER ROLE "{connection.login}" REPLICATION'
    elif "no pg_hba.conf entry" in text:
        remedy = "allow this host, role and database (`replication` for base backups) in pg_hba.conf"
    elif "max_wal_senders" in text or "number of requested standby connections" in text:
        remedy = "raise max_wal_senders, or end a replication connection that is not needed"
    elif "permission denied for database" in text:
        remedy = f'GRANT CONNECT ON DATABASE ... TO "{connection.login}"'
    elif "does not exist" in text:
        remedy = f"correct the role or database of connection {connection.id}"
    else:
        remedy = f"check that the server runs and that connection {connection.id} names its address"
    return PreconditionError(text, where=where, remedy=remedy)
