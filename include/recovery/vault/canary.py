"""The canary: rows in a database that are encrypted with a transit key of its Vault, one for each version of the key.

A drill that restores both sides decrypts them: that is the proof that the two belong together. Each run writes the row
of the key's newest version anew; rows of older versions stay for as long as the key decrypts them.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from recovery.connections import Connection
from recovery.errors import PreconditionError, VaultError
from recovery.manifest import TransitKey
from recovery.postgres import connect
from recovery.postgres.ciphertext import CANARY_TABLE, VERSION
from recovery.vault.session import errors_of

if TYPE_CHECKING:
    import hvac

_POLICY = "include/config/vault/canary.hcl"
_TABLE = sql.Identifier(*CANARY_TABLE)
_CREATE = sql.SQL("""
CREATE TABLE IF NOT EXISTS {} (
    key text, version integer, ciphertext text NOT NULL, sha256 text NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (key, version)
)
""").format(_TABLE)
_WRITE = sql.SQL("""
INSERT INTO {} (key, version, ciphertext, sha256) VALUES (%s, %s, %s, %s)
ON CONFLICT (key, version)
DO UPDATE SET ciphertext = excluded.ciphertext, sha256 = excluded.sha256, written_at = now()
""").format(_TABLE)
_RETIRE = sql.SQL("DELETE FROM {} WHERE key = %s AND version < %s").format(_TABLE)
_READ = sql.SQL("SELECT key, version, ciphertext, sha256 FROM {} ORDER BY key, version").format(_TABLE)


@dataclass(frozen=True)
class Canary:
    """One row: the ciphertext, and the SHA-256 (hex) of what it must decrypt to."""

    key: str
    version: int
    ciphertext: str
    sha256: str


@dataclass(frozen=True)
class Refreshed:
    """What a run did: the version that was written, and how many rows of versions that are out of use went."""

    key: str
    version: int
    retired: int


def refresh(client: hvac.Client, connection: Connection, key: str, *, database: str) -> Refreshed:
    """Write the row of the key's newest version; raises PreconditionError (a right is missing), VaultError."""
    plain = secrets.token_bytes(32)
    ciphertext = _encrypt(client, key, plain)
    found = re.match(VERSION, ciphertext)
    if found is None:
        raise VaultError("the transit engine answers no ciphertext", where=f"{client.url}: {key}")
    version, least = int(found[1]), _key(client, key).min_decryption_version
    with connect.session(connection, database=database) as session:
        try:
            session.execute(_CREATE)
            session.execute(_WRITE, (key, version, ciphertext, hashlib.sha256(plain).hexdigest()))
            retired = session.execute(_RETIRE, (key, least)).rowcount
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidSchemaName) as problem:
            raise PreconditionError(
                str(problem).strip().splitlines()[0],
                where=f"PostgreSQL {connection.host}:{connection.port or 5432}, {database}",
                remedy=f'as a superuser: CREATE SCHEMA {CANARY_TABLE[0]} AUTHORIZATION "{connection.login}"',
            ) from None
    return Refreshed(key, version, retired)


def read(session: psycopg.Connection[tuple[object, ...]]) -> list[Canary]:
    """The rows of a database; none where there is no table."""
    try:
        rows = session.execute(_READ).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return []
    return [Canary(str(key), int(str(version)), str(text), str(digest)) for key, version, text, digest in rows]


def decrypt(client: hvac.Client, key: str, ciphertext: str) -> bytes:
    """What a ciphertext holds; raises VaultError with the engine's reason."""
    mount, name = split(key)
    with errors_of(client.url):
        answer = client.secrets.transit.decrypt_data(name=name, ciphertext=ciphertext, mount_point=mount)
    return base64.b64decode(answer["data"]["plaintext"])


def split(key: str) -> tuple[str, str]:
    """`transit/app038` as mount and name."""
    mount, _, name = key.rpartition("/")
    return mount, name


def _encrypt(client: hvac.Client, key: str, plain: bytes) -> str:
    mount, name = split(key)
    with errors_of(client.url, remedy=f"make the key {key}, and give the connection's role the policy {_POLICY}"):
        answer = client.secrets.transit.encrypt_data(
            name=name, plaintext=base64.b64encode(plain).decode(), mount_point=mount
        )
    return str(answer["data"]["ciphertext"])


def _key(client: hvac.Client, key: str) -> TransitKey:
    mount, name = split(key)
    with errors_of(client.url, remedy=f"give the connection's role the policy {_POLICY}"):
        found = client.secrets.transit.read_key(name=name, mount_point=mount)["data"]
    return TransitKey(
        latest_version=found["latest_version"],
        min_decryption_version=found["min_decryption_version"],
        min_available_version=found.get("min_available_version", 0),
    )
