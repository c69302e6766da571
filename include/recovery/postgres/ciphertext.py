"""Which versions of Vault's transit keys the rows of a database carry, read from the ciphertext (`vault:v3:...`)."""

from __future__ import annotations

import psycopg
from psycopg import sql

from recovery.config import EncryptedColumn, KeyOptions
from recovery.connections import Connection
from recovery.errors import PreconditionError, RecoveryError
from recovery.manifest import KeyVersions
from recovery.postgres import connect

CANARY_TABLE = ("recovery", "canary")
CANARY_COLUMN = "ciphertext"
VERSION = r"^vault:v(\d+):"


def columns(options: KeyOptions) -> list[EncryptedColumn]:
    """The columns that hold ciphertext: those of the configuration, and the canary's."""
    canary = options.canary
    own = ".".join((*CANARY_TABLE, CANARY_COLUMN))
    return [
        *([EncryptedColumn(key=canary.key, database=canary.database, column=own)] if canary else []),
        *options.columns,
    ]


def versions(connection: Connection, options: KeyOptions) -> tuple[dict[str, KeyVersions], list[str]]:
    """The oldest and the newest version of each key that rows carry, and a line for each column that cannot be read."""
    found: dict[str, KeyVersions] = {}
    problems = []
    for column in columns(options):
        try:
            carried = _read(connection, column)
        except RecoveryError as problem:
            problems.append(f"the key versions in {column.database}, {column.column} are not known: {problem.what}")
            continue
        if carried is not None:
            before = found.get(column.key, carried)
            found[column.key] = KeyVersions(
                oldest=min(before.oldest, carried.oldest), newest=max(before.newest, carried.newest)
            )
    return found, problems


def _read(connection: Connection, column: EncryptedColumn) -> KeyVersions | None:
    schema, table, name = column.column.split(".")
    version = sql.SQL("substring({}::text FROM {})::integer").format(sql.Identifier(name), sql.Literal(VERSION))
    query = sql.SQL("SELECT min({version}), max({version}) FROM {table}").format(
        version=version, table=sql.Identifier(schema, table)
    )
    with connect.session(connection, database=column.database) as session:
        try:
            row = session.execute(query).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName):
            raise PreconditionError("there is no such column", where=column.column) from None
    return None if row is None or row[0] is None else KeyVersions(oldest=row[0], newest=row[1])
