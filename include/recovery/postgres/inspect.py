"""What the server is, and whether it can be backed up as things stand. Read before any byte is copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg.rows import TupleRow

from recovery.config import SUPPORTED_MAJORS, Compression, WalOptions
from recovery.connections import Connection
from recovery.errors import PreconditionError
from recovery.manifest import Database, Server, Tablespace
from recovery.postgres import connect, replication, tools, trust
from recovery.postgres.wal import slot as slots
from recovery.postgres.wal.positions import parse_lsn

Session = psycopg.Connection[TupleRow]

# On a primary the control file's timeline is behind for a moment after a promotion; on a standby there is no other.
_TIMELINE: LiteralString = """
SELECT CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END
"""


def inspect(connection: Connection) -> Server:
    """Read the server's identity, settings, tablespaces and databases; raises PreconditionError."""
    with connect.session(connection) as session:
        number = session.info.server_version
        return Server(
            system_identifier=str(_one(session, "SELECT system_identifier FROM pg_control_system()")),
            version=str(_one(session, "SHOW server_version")).split()[0],
            version_number=number,
            data_checksums=_one(session, "SHOW data_checksums") == "on",
            wal_log_hints=_one(session, "SHOW wal_log_hints") == "on",
            block_bytes=int(_one(session, "SHOW block_size")),
            wal_segment_bytes=int(_one(session, "SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'")),
            in_recovery=bool(_one(session, "SELECT pg_is_in_recovery()")),
            libc_version=_one(
                session, "SELECT max(pg_collation_actual_version(oid)) FROM pg_collation WHERE collprovider = 'c'"
            ),
            icu_version=_one(
                session, "SELECT max(pg_collation_actual_version(oid)) FROM pg_collation WHERE collprovider = 'i'"
            ),
            superuser=str(_one(session, "SELECT rolname FROM pg_roles WHERE oid = 10")),
            preload=_names(
                str(_one(session, "SELECT coalesce(current_setting('shared_preload_libraries', true), '')"))
            ),
            tablespaces=_tablespaces(session),
            databases=_databases(session, connection),
        )


def trust_state(connection: Connection, server: Server) -> trust.State:
    """What the trust engine asks of the server; raises PreconditionError."""
    summarizes = server.major >= trust.FIRST_MAJOR
    with connect.session(connection) as session:
        timeline = int(_one(session, _TIMELINE))
        return trust.State(
            system_identifier=server.system_identifier,
            version_number=server.version_number,
            timeline=timeline,
            data_checksums=server.data_checksums,
            wal_log_hints=server.wal_log_hints,
            summarize_wal=summarizes and _one(session, "SHOW summarize_wal") == "on",
            summarized_from=_summarized_from(session, timeline) if summarizes else None,
        )


def check_base_backup(
    connection: Connection, server: Server, *, compression: Compression, configured_tools: Mapping[int, Path]
) -> None:
    """Refuse what would fail, or what could not be restored; raises PreconditionError with the remedy."""
    where = f"PostgreSQL {connection.host}:{connection.port or 5432}"
    check_restorable(server, where=where, configured_tools=configured_tools)
    with connect.session(connection) as session:
        _check_replication(session, connection, where, "base backup")
        if compression.where == "server" and not _one(
            session, "SELECT 'zstd' = ANY (enumvals) FROM pg_settings WHERE name = 'wal_compression'"
        ):
            raise PreconditionError(
                "the server was built without zstd", where=where, remedy="set base.compression.where: client"
            )
        _check_senders(session, where)
        _check_slots(session, where)
    replication.check_connection(connection, version_number=server.version_number)


def check_wal(connection: Connection, options: WalOptions) -> str:
    """Refuse what keeps WAL from streaming, or has lost some, with PreconditionError; returns how the slot is."""
    where = f"PostgreSQL {connection.host}:{connection.port or 5432}"
    state = slots.read(connection, options.slot)
    slot = state.slot
    with connect.session(connection) as session:
        _check_replication(session, connection, where, "continuous WAL")
        if slot is not None and slot.lost:
            raise PreconditionError(
                f"slot {options.slot} has lost WAL that was not stored yet",
                where=where,
                remedy="raise max_slot_wal_keep_size, and stream: the slot is made anew, and the gap is reported",
            )
        if _one(session, "SELECT setting::int > 0 FROM pg_settings WHERE name = 'idle_replication_slot_timeout'"):
            raise PreconditionError(
                "idle_replication_slot_timeout is set: it drops WAL that waits for a receiver",
                where=where,
                remedy="set idle_replication_slot_timeout = 0; wal.give_up_gib bounds what waits",
            )
        if slot is None:
            _check_slots(session, where)
        if slot is None or not slot.active:
            _check_senders(session, where)
            replication.check_connection(connection, version_number=state.version_number)
    if slot is None:
        return f"slot {options.slot} will be made when WAL first streams"
    stored = f"{slot.retained_bytes / 1e6:.1f} MB are kept for it"
    return f"slot {options.slot} {'streams' if slot.active else 'waits for a receiver'}, {stored}"


def check_restorable(server: Server, *, where: str, configured_tools: Mapping[int, Path]) -> tools.Tools:
    """The server's major must be supported, and its programs must be at hand."""
    if server.major not in SUPPORTED_MAJORS:
        known = ", ".join(str(major) for major in SUPPORTED_MAJORS)
        raise PreconditionError(
            f"PostgreSQL {server.version} is not supported", where=where, remedy=f"upgrade to one of {known}"
        )
    return tools.find(server.major, configured=configured_tools)


def dumpable(server: Server, *, exclude: list[str]) -> list[Database]:
    """The databases that a dump covers: all that allow connections, less the excluded ones."""
    return [database for database in server.databases if database.name not in exclude]


def _check_replication(session: Session, connection: Connection, where: str, what: str) -> None:
    if not _one(session, "SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user"):
        raise PreconditionError(
            f"the role {connection.login} may not start replication",
            where=where,
            remedy=f'ALTER ROLE "{connection.login}" REPLICATION',
        )
    if _one(session, "SHOW wal_level") == "minimal":
        raise PreconditionError(
            f"wal_level is minimal: no {what} is possible", where=where, remedy="set wal_level = replica and restart"
        )


def _check_senders(session: Session, where: str) -> None:
    used: LiteralString = "SELECT count(*) FROM pg_stat_replication"
    _check_room(session, where, "max_wal_senders", used, "replication connections")


def _check_slots(session: Session, where: str) -> None:
    used: LiteralString = "SELECT count(*) FROM pg_replication_slots"
    _check_room(session, where, "max_replication_slots", used, "replication slots")


def _check_room(session: Session, where: str, setting: str, used_query: LiteralString, what: str) -> None:
    limit = int(_one(session, "SELECT setting FROM pg_settings WHERE name = %s", setting))
    used = int(_one(session, used_query))
    if used >= limit:
        raise PreconditionError(
            f"all {limit} {what} are in use ({setting} = {limit})",
            where=where,
            remedy=f"raise {setting}, or end one that is not needed",
        )


def _summarized_from(session: Session, timeline: int) -> int | None:
    """See trust.State. Before a first summary is written, where it will begin: the summarizer need only catch up."""
    rows = session.execute("SELECT start_lsn, end_lsn FROM pg_available_wal_summaries() WHERE tli = %s", (timeline,))
    written = trust.unbroken_from((parse_lsn(start), parse_lsn(end)) for start, end in rows)
    if written is not None:
        return written
    begin = _one(
        session, "SELECT summarized_lsn::text FROM pg_get_wal_summarizer_state() WHERE summarized_tli = %s", timeline
    )
    return parse_lsn(begin) if begin else None


def _tablespaces(session: Session) -> list[Tablespace]:
    rows = session.execute(
        "SELECT oid, spcname, pg_tablespace_location(oid), pg_tablespace_size(oid) FROM pg_tablespace "
        "WHERE pg_tablespace_location(oid) <> '' ORDER BY oid"
    )
    return [Tablespace(oid=int(oid), name=name, path=path, bytes=int(size)) for oid, name, path, size in rows]


def _databases(session: Session, connection: Connection) -> list[Database]:
    rows = session.execute(
        "SELECT datname, pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider, datcollversion, "
        "pg_database_size(oid) FROM pg_database WHERE datallowconn AND datname <> 'template1' ORDER BY datname"
    ).fetchall()
    return [
        Database(
            name=name,
            encoding=encoding,
            collate=collate or "",
            ctype=ctype or "",
            locale_provider={"c": "libc", "i": "icu", "b": "builtin"}.get(kind, kind),
            collation_version=collation_version,
            bytes=int(size),
            extensions=_extensions(connection, name),
        )
        for name, encoding, collate, ctype, kind, collation_version, size in rows
    ]


def _extensions(connection: Connection, database: str) -> dict[str, str]:
    with connect.session(connection, database=database) as session:
        return dict(session.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1").fetchall())


def _names(setting: str) -> list[str]:
    return [name.strip().strip('"') for name in setting.split(",") if name.strip()]


def _one(session: Session, query: LiteralString, *values: object) -> Any:
    row = session.execute(query, values or None).fetchone()
    return row[0] if row else None
