"""App038's roles, databases, tablespace and tables, on a server of the lab."""

from __future__ import annotations

import secrets
from importlib.resources import files

import psycopg
from psycopg import sql

from lab.postgres import PostgresServer
from lab.users import make_directory

DATABASE = "app038"
REPORTING_DATABASE = "app038_reporting"
BACKUP_ROLE = "backup"
CANARY_ROLE = "canary"
SETTINGS = {"shared_preload_libraries": "pg_stat_statements"}

_APPLICATION_ROLE = "app038"
_READ_ONLY_GROUP = "app038_readonly"
_REPORTING_ROLE = "reporting"
_LARGE_OBJECT_BYTES = 300_000


def create(server: PostgresServer) -> None:
    """Create everything but the rows. Passwords that the server object does not know yet are made and put there."""
    for role in (_APPLICATION_ROLE, _REPORTING_ROLE, BACKUP_ROLE, CANARY_ROLE):
        server.passwords.setdefault(role, secrets.token_urlsafe(18))
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        _create_roles(connection, passwords=server.passwords)
        archive = make_directory(server.directory_beside, user=server.user) / "archive"
        make_directory(archive, user=server.user)
        connection.execute(
            sql.SQL("CREATE TABLESPACE app038_archive OWNER {} LOCATION {}").format(
                sql.Identifier(_APPLICATION_ROLE), sql.Literal(str(archive))
            )
        )
        for name in (DATABASE, REPORTING_DATABASE):
            database, owner = sql.Identifier(name), sql.Identifier(_APPLICATION_ROLE)
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, owner))
            connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(database))
            connection.execute(
                sql.SQL("GRANT CONNECT ON DATABASE {} TO {}, {}").format(
                    database, sql.Identifier(BACKUP_ROLE), sql.Identifier(_READ_ONLY_GROUP)
                )
            )
    _create_main(server)
    _create_reporting(server)


def _create_roles(connection: psycopg.Connection, *, passwords: dict[str, str]) -> None:
    attributes = {
        _APPLICATION_ROLE: "LOGIN",
        _REPORTING_ROLE: "LOGIN",
        BACKUP_ROLE: "LOGIN REPLICATION",
        CANARY_ROLE: "LOGIN",
    }
    for role, words in attributes.items():
        connection.execute(
            sql.SQL("CREATE ROLE {} {} PASSWORD {}").format(
                sql.Identifier(role), sql.SQL(words), sql.Literal(passwords[role])
            )
        )
    backup, group = sql.Identifier(BACKUP_ROLE), sql.Identifier(_READ_ONLY_GROUP)
    connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(group))
    connection.execute(sql.SQL("GRANT {} TO {}").format(group, sql.Identifier(_REPORTING_ROLE)))
    connection.execute(sql.SQL("GRANT pg_read_all_data, pg_monitor, pg_checkpoint TO {}").format(backup))
    # pg_read_all_data does not cover large objects: without this a dump by this role fails.
    connection.execute(sql.SQL("ALTER ROLE {} SET lo_compat_privileges = on").format(backup))


def _create_main(server: PostgresServer) -> None:
    canary = sql.Identifier(CANARY_ROLE)
    with psycopg.connect(server.dsn(DATABASE)) as connection:
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(DATABASE), canary))
        connection.execute(sql.SQL("CREATE SCHEMA recovery AUTHORIZATION {}").format(canary))
        extensions = ["pg_trgm", "pg_stat_statements", "pgcrypto"]
        for (name,) in connection.execute(
            "SELECT name FROM pg_available_extensions WHERE name = ANY(%s)", (extensions,)
        ).fetchall():
            connection.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(name)))
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(_APPLICATION_ROLE)))
        connection.execute(files("lab.app038").joinpath("schema.sql").read_bytes())
        connection.execute(
            "INSERT INTO attachments (name, content) VALUES ('catalogue.pdf', lo_from_bytea(0, %s))",
            (secrets.token_bytes(_LARGE_OBJECT_BYTES),),
        )
        _grant_reading(connection)


def _create_reporting(server: PostgresServer) -> None:
    with psycopg.connect(server.dsn(REPORTING_DATABASE)) as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(_APPLICATION_ROLE)))
        connection.execute(
            "CREATE TABLE daily_revenue (day date PRIMARY KEY, orders integer NOT NULL, revenue_cents bigint NOT NULL)"
        )
        connection.execute(
            "INSERT INTO daily_revenue SELECT now()::date - day, 300 + day % 70, 4000000 + day * 137"
            " FROM generate_series(1, 365) AS day"
        )
        _grant_reading(connection)


def _grant_reading(connection: psycopg.Connection) -> None:
    group = sql.Identifier(_READ_ONLY_GROUP)
    connection.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(group))
    connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(group))
    connection.execute(sql.SQL("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO {}").format(group))
