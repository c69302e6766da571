"""Is the restored database the one that was backed up? Every table's row count and an order-independent checksum.

The source lives on while it is compared. Where a table differs, its rows are looked at one by one, and a row that moved
since the backup is told apart from a row that is wrong: a physical restore keeps each row's xmin, so the restored
server itself knows which of the source's transactions were committed at the recovery point. A source row written by
one of those must be there, unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from recovery.repository.verify import Verdict

Session = psycopg.Connection[TupleRow]

_ROWS_PER_BUCKET = 20_000
_FROZEN_XID = 2
_XIDS = 1 << 32
# Text forms must not depend on either server's settings. row_security off: a policy that would hide rows is an error.
_SETTINGS = {
    "search_path": "pg_catalog",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "row_security": "off",
    "lock_timeout": "30s",
}
_TABLES = """
SELECT n.nspname, c.relname,
       (SELECT array_agg(a.attname ORDER BY k.place)
          FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(number, place)
          JOIN pg_attribute a ON a.attnum = k.number
         WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid),
       (SELECT jsonb_object_agg(a.attname, format_type(a.atttypid, a.atttypmod)) FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND c.relispopulated
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
 ORDER BY 1, 2
"""


@dataclass(frozen=True)
class Table:
    schema: str
    name: str
    key: tuple[str, ...]
    """The primary key's columns; empty without one: the whole row is its key then."""
    columns: tuple[tuple[str, str], ...]
    """Their names and types, ordered by name."""

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    def within(self, other: Table) -> Table:
        """What of this table can be compared with `other`, whose columns may have changed since."""
        columns = tuple(column for column in self.columns if column in other.columns)
        comparable = self.key == other.key and {name for name, _ in columns}.issuperset(self.key)
        return Table(self.schema, self.name, self.key if comparable else (), columns)


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """One table: the restored rows and checksum; source rows that moved since; rows that are wrong."""

    database: str
    table: str
    verdict: Verdict
    rows: int
    checksum: str
    moved: int = 0
    different: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Horizon:
    """The restored server's next transaction id, read before anything is written there: later ids are its own."""

    next_xid: int

    @classmethod
    def read(cls, restored: Session) -> Horizon:
        row = restored.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
        assert row is not None
        return cls(int(row[0]))


def compare_database(database: str, source: Session, restored: Session, horizon: Horizon) -> list[TableResult]:
    """Compare every permanent table and materialized view of one database, and its large objects."""
    for session in (source, restored):
        for name, value in _SETTINGS.items():
            session.execute("SELECT set_config(%s, %s, false)", (name, value))
    with ThreadPoolExecutor(2, thread_name_prefix="compare") as sides:
        here, there = sides.map(_tables, (restored, source))
        results = []
        for place in here | there:
            if place not in there:
                results.append(_dropped(database, here[place]))
            elif place not in here:
                results.append(_missing(database, there[place], source, restored, horizon))
            else:
                results.append(
                    _lost_columns(database, here[place], there[place], source, restored, horizon)
                    or _compare(database, here[place].within(there[place]), source, restored, horizon, sides)
                )
        results.append(_compare_large_objects(database, source, restored, horizon, sides))
    return results


def _tables(session: Session) -> dict[tuple[str, str], Table]:
    return {
        (schema, name): Table(schema, name, tuple(key or ()), tuple(sorted((columns or {}).items())))
        for schema, name, key, columns in session.execute(_TABLES)
    }


def _dropped(database: str, table: Table) -> TableResult:
    return TableResult(
        database=database,
        table=str(table),
        verdict=Verdict.OK,
        rows=0,
        checksum="0",
        detail="dropped on the source since the backup",
    )


def _lost_columns(
    database: str, ours: Table, theirs: Table, source: Session, restored: Session, horizon: Horizon
) -> TableResult | None:
    """A column that only the source has was made or altered since, or was lost; its pg_attribute row's xmin tells."""
    names = [name for name, _ in set(theirs.columns) - set(ours.columns)]
    if not names:
        return None
    rows = source.execute(
        "SELECT a.attname, a.xmin::text::bigint FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE nspname = %s AND relname = %s AND attname = ANY (%s)",
        (theirs.schema, theirs.name, names),
    ).fetchall()
    old = _Committed(restored, horizon).at_recovery_point({xmin for _, xmin in rows})
    lost = sorted(name for name, xmin in rows if xmin in old)
    if not lost:
        return None
    return TableResult(
        database=database,
        table=str(ours),
        verdict=Verdict.FAILED,
        rows=0,
        checksum="",
        different=1,
        detail=f"columns are missing or differ: {', '.join(lost)}",
    )


def _compare(
    database: str, table: Table, source: Session, restored: Session, horizon: Horizon, sides: ThreadPoolExecutor
) -> TableResult:
    rows, checksum, moved, different = 0, "", 0, 0
    try:
        (rows, checksum), theirs = sides.map(lambda session: _fingerprint(session, table), (restored, source))
        if (rows, checksum) != theirs:
            moved, different = _look_closer(table, max(rows, theirs[0]), source, restored, horizon)
    except psycopg.Error as problem:
        return TableResult(
            database=database,
            table=str(table),
            verdict=Verdict.UNKNOWN,
            rows=rows,
            checksum=checksum,
            detail=_first_line(problem),
        )
    verdict = Verdict.FAILED if different else Verdict.OK
    detail = (
        f"{different} rows that were committed before the recovery point are missing or changed" if different else ""
    )
    return TableResult(
        database=database,
        table=str(table),
        verdict=verdict,
        rows=rows,
        checksum=checksum,
        moved=moved,
        different=different,
        detail=detail,
    )


def _missing(database: str, table: Table, source: Session, restored: Session, horizon: Horizon) -> TableResult:
    """A table that only the source has: made since, or lost. Its pg_class row's xmin tells."""
    row = source.execute(
        "SELECT c.xmin::text::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE nspname = %s AND relname = %s",
        (table.schema, table.name),
    ).fetchone()
    if row is None or not _Committed(restored, horizon).at_recovery_point({row[0]}):
        return TableResult(
            database=database,
            table=str(table),
            verdict=Verdict.OK,
            rows=0,
            checksum="0",
            detail="made since the backup",
        )
    return TableResult(
        database=database,
        table=str(table),
        verdict=Verdict.FAILED,
        rows=0,
        checksum="0",
        different=1,
        detail="the table is missing",
    )


def _row() -> sql.Identifier:
    """An alias that no column is likely to have: a column of the same name would be meant instead of the row."""
    return sql.Identifier("recovery whole row")


def _hash(table: Table) -> sql.Composed:
    return _hash_of([name for name, _ in table.columns])


def _hash_of(columns: Sequence[str]) -> sql.Composed:
    named = sql.SQL(", ").join(sql.SQL("{}.{}").format(_row(), sql.Identifier(column)) for column in columns)
    return sql.SQL("hashtextextended(ROW({})::text, 0)").format(named)


def _fingerprint(session: Session, table: Table) -> tuple[int, str]:
    query = sql.SQL("SELECT count(*), coalesce(sum({hash}::numeric), 0)::text FROM ONLY {table} AS {row}").format(
        hash=_hash(table), table=sql.Identifier(table.schema, table.name), row=_row()
    )
    row = session.execute(query).fetchone()
    assert row is not None
    return int(row[0]), str(row[1])


def _look_closer(table: Table, rows: int, source: Session, restored: Session, horizon: Horizon) -> tuple[int, int]:
    """(moved, different) rows of one table, read in buckets of keys so that memory stays bounded."""
    buckets = max(1, rows // _ROWS_PER_BUCKET)
    committed = _Committed(restored, horizon)
    moved = different = 0
    ours, theirs = (_bucket_sums(session, table, buckets) for session in (restored, source))
    for bucket in range(buckets):
        if ours.get(bucket) == theirs.get(bucket):
            continue
        mine, its = (_bucket_rows(session, table, buckets, bucket) for session in (restored, source))
        suspects = {key: (xmin, content) for key, (xmin, content) in its.items() if mine.get(key, (0, 0))[1] != content}
        old = committed.at_recovery_point({xmin for xmin, _ in suspects.values()})
        wrong = sum(xmin in old for xmin, _ in suspects.values())
        different += wrong
        moved += len(suspects) - wrong + len(mine.keys() - its.keys())
    return moved, different


def _key(table: Table) -> sql.Composed:
    return _hash_of(table.key) if table.key else _hash(table)


def _bucket(table: Table, buckets: int) -> sql.Composed:
    return sql.SQL("(({key} % {n}) + {n}) % {n}").format(key=_key(table), n=sql.Literal(buckets))


def _bucket_sums(session: Session, table: Table, buckets: int) -> dict[int, tuple[int, str]]:
    query = sql.SQL(
        "SELECT {bucket}, count(*), sum({hash}::numeric)::text FROM ONLY {table} AS {row} GROUP BY 1"
    ).format(
        bucket=_bucket(table, buckets), hash=_hash(table), table=sql.Identifier(table.schema, table.name), row=_row()
    )
    return {int(bucket): (int(count), total) for bucket, count, total in session.execute(query)}


def _bucket_rows(session: Session, table: Table, buckets: int, bucket: int) -> dict[tuple[int, int], tuple[int, int]]:
    """(key, nth of equal keys, oldest first) → (xmin, content). Of equal rows the ones written since come last."""
    query = sql.SQL(
        "SELECT {key}, row_number() OVER (PARTITION BY {key} ORDER BY age({row}.xmin) DESC), "
        "{row}.xmin::text::bigint, {hash} "
        "FROM ONLY {table} AS {row} WHERE {bucket} = {wanted}"
    ).format(
        key=_key(table),
        hash=_hash(table),
        row=_row(),
        table=sql.Identifier(table.schema, table.name),
        bucket=_bucket(table, buckets),
        wanted=sql.Literal(bucket),
    )
    return {(key, place): (xmin, content) for key, place, xmin, content in session.execute(query)}


@dataclass(frozen=True)
class _Committed:
    restored: Session
    horizon: Horizon

    def at_recovery_point(self, xids: set[int]) -> set[int]:
        """Those of the source's 32-bit transaction ids that the restored server knows as committed."""
        whole = {xid: self._widen(xid) for xid in xids}
        asked = [wide for wide in whole.values() if wide is not None]
        status = dict(self._statuses(asked))
        return {
            xid
            for xid, wide in whole.items()
            # An id that is too old to be remembered was committed long ago, or its row would be gone.
            if wide is not None and status[wide] in ("committed", None)
        }

    def _widen(self, xid: int) -> int | None:
        """The 64-bit id, counted back from the horizon (manual, 66.1); None when it lies after it."""
        if xid <= _FROZEN_XID:
            return xid
        back = (self.horizon.next_xid - xid) % _XIDS
        return self.horizon.next_xid - back if 0 < back < _XIDS // 2 else None

    def _statuses(self, xids: Sequence[int]) -> Iterator[tuple[int, str | None]]:
        query = "SELECT x, pg_xact_status(x::text::xid8) FROM unnest(%s::bigint[]) AS x"
        for xid, status in self.restored.execute(query, (list(xids),)):
            yield int(xid), status


def _compare_large_objects(
    database: str, source: Session, restored: Session, horizon: Horizon, sides: ThreadPoolExecutor
) -> TableResult:
    """As rows are: one that differs is wrong when the source has not written it since the recovery point."""
    try:
        ours, theirs = sides.map(_large_objects, (restored, source))
        suspects = {oid for oid, content in theirs.items() if ours.get(oid) != content}
        written = _written(source, suspects, absent=suspects - ours.keys())
        old = _Committed(restored, horizon).at_recovery_point(set().union(*written.values()))
    except psycopg.Error as problem:
        return TableResult(
            database=database,
            table="large objects",
            verdict=Verdict.UNKNOWN,
            rows=0,
            checksum="",
            detail=_first_line(problem),
        )
    different = sum(xmins <= old for xmins in written.values())
    return TableResult(
        database=database,
        table="large objects",
        verdict=Verdict.FAILED if different else Verdict.OK,
        rows=len(ours),
        checksum=str(sum(ours.values())),
        moved=len(suspects) - different + len(ours.keys() - theirs.keys()),
        different=different,
        detail=f"{different} large objects are missing or differ" if different else "",
    )


def _written(source: Session, oids: set[int], *, absent: set[int]) -> dict[int, set[int]]:
    """The transactions that wrote each large object: its pages, and its existence where that is in question."""
    if not oids:
        return {}
    query = (
        "SELECT loid::bigint, xmin::text::bigint FROM pg_largeobject WHERE loid = ANY (%s::oid[]) "
        "UNION SELECT oid::bigint, xmin::text::bigint FROM pg_largeobject_metadata WHERE oid = ANY (%s::oid[])"
    )
    found: dict[int, set[int]] = {}
    for oid, xmin in source.execute(query, (list(oids), list(absent))):
        found.setdefault(int(oid), set()).add(xmin)
    return found


def _large_objects(session: Session) -> dict[int, int]:
    return dict(
        session.execute(
            "SELECT oid::bigint, hashtextextended(encode(lo_get(oid), 'hex'), 0) FROM pg_largeobject_metadata"
        )
    )


def _first_line(problem: psycopg.Error) -> str:
    return str(problem).strip().splitlines()[0]
