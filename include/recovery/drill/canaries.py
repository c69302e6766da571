"""Do the two halves of a recovery set belong together? Rows of the restored database, opened by the restored Vault."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from recovery import recovery_set
from recovery.config import EncryptedColumn, KeyOptions
from recovery.drill.evidence import Check
from recovery.errors import PreconditionError, VaultError
from recovery.manifest import KeyVersions, TransitKey
from recovery.postgres.ciphertext import VERSION
from recovery.repository.verify import Verdict
from recovery.vault import canary
from recovery.vault.canary import Canary

if TYPE_CHECKING:
    import hvac

Connect = Callable[[str], psycopg.Connection[Any]]


def check(connect: Connect, client: hvac.Client, options: KeyOptions, keys: Mapping[str, TransitKey]) -> list[Check]:
    """Decrypt the canaries, and one row for each key version in the configured columns.

    `keys` are the restored Vault's transit keys; `client` is logged in there with every right.
    """
    found = []
    if options.canary is not None:
        with connect(options.canary.database) as session:
            rows = canary.read(session)
        found.append(_canaries(rows, client, keys))
    for column in options.columns:
        found.append(_column(connect, client, column, keys))
    if not found:
        detail = "neither a canary nor a column is configured: nothing shows that the two halves belong together"
        found.append(Check("canaries", Verdict.UNKNOWN, detail))
    return found


def _canaries(rows: Sequence[Canary], client: hvac.Client, keys: Mapping[str, TransitKey]) -> Check:
    if not rows:
        detail = "the restored database holds no canary: is the DAG vault_canary (recovery vault canary) running?"
        return Check("canaries", Verdict.UNKNOWN, detail)
    problems = list(_closed(rows, client, keys))
    versions = ", ".join(f"{row.key} v{row.version}" for row in rows)
    return Check("canaries", Verdict.FAILED if problems else Verdict.OK, "; ".join(problems) or f"opened: {versions}")


def _closed(rows: Sequence[Canary], client: hvac.Client, keys: Mapping[str, TransitKey]) -> Iterator[str]:
    for row in rows:
        plain = _open(client, row.key, row.version, row.ciphertext, keys)
        if isinstance(plain, str):
            yield plain
        elif hashlib.sha256(plain).hexdigest() != row.sha256:
            yield f"the row of {row.key} version {row.version} opens, and holds something else"


def _open(client: hvac.Client, key: str, version: int, text: str, keys: Mapping[str, TransitKey]) -> bytes | str:
    """What a ciphertext holds, or why it stays closed."""
    if (reason := recovery_set.misfit(keys, {key: KeyVersions(oldest=version, newest=version)})) is not None:
        return reason
    try:
        return canary.decrypt(client, key, text)
    except (VaultError, PreconditionError) as refusal:
        return f"the Vault's half is wrong: its {key} does not open a row of version {version} ({refusal.what})"


def _column(connect: Connect, client: hvac.Client, column: EncryptedColumn, keys: Mapping[str, TransitKey]) -> Check:
    name = f"column {column.database}: {column.column}"
    try:
        rows = _one_of_each_version(connect, column)
    except psycopg.Error as problem:
        return Check(name, Verdict.UNKNOWN, " ".join(str(problem).split()))
    opened = [_open(client, column.key, version, text, keys) for version, text in rows]
    problems = [each for each in opened if isinstance(each, str)]
    versions = ", ".join(f"v{version}" for version, _ in rows) or "no row"
    return Check(name, Verdict.FAILED if problems else Verdict.OK, "; ".join(problems) or f"opened: {versions}")


def _one_of_each_version(connect: Connect, column: EncryptedColumn) -> list[tuple[int, str]]:
    schema, table, name = column.column.split(".")
    query = sql.SQL(
        "SELECT DISTINCT ON (version) version, text FROM "
        "(SELECT substring({column}::text FROM {pattern})::integer AS version, {column}::text AS text FROM {table}) "
        "AS t WHERE version IS NOT NULL ORDER BY version"
    ).format(column=sql.Identifier(name), pattern=sql.Literal(VERSION), table=sql.Identifier(schema, table))
    with connect(column.database) as session:
        return [(int(version), str(text)) for version, text in session.execute(query)]
