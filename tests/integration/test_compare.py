"""Comparing a restored copy with its living source: what moved since is told apart from what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from lab.postgres import PostgresServer
from recovery.drill import compare
from recovery.drill.compare import Horizon, TableResult
from recovery.postgres import restore
from recovery.postgres.server import SandboxServer
from recovery.repository.verify import Verdict
from tests.conftest import directory_repository
from tests.support import make_site, new_folder, opened

DATABASE = "proof"
# One table for each test, so that none disturbs another's: all are in the backup.
TABLES = (
    *("inserted", "updated", "deleted", "key_changed", "truncated", "vacuumed", "rolled_back", "recreated"),
    *("copy_updated", "copy_deleted", "copy_dropped", "copy_lost_column", "source_dropped", "many"),
    *("hidden", "forbidden", "added_column", "dropped_column", "renamed_column", "retyped_column", "new_key"),
)


@dataclass
class Pair:
    """The source and its copy, each with a superuser's session; `run` changes one, `compare` looks at both."""

    server: PostgresServer
    sandbox: SandboxServer
    horizon: Horizon

    def on_source(self, *statements: str) -> None:
        for statement in statements:
            self.server.execute(statement, dbname=DATABASE)  # type: ignore[arg-type]

    def on_copy(self, *statements: str) -> None:
        with self.sandbox.connect(DATABASE) as session:
            for statement in statements:
                session.execute(statement)  # type: ignore[call-overload]

    def compare(self) -> dict[str, TableResult]:
        """As a drill does: with the role that makes backups on the source, and as superuser on the copy."""
        with (
            psycopg.connect(self.server.dsn(DATABASE, user="backup"), autocommit=True) as source,
            self.sandbox.connect(DATABASE) as restored,
        ):
            results = compare.compare_database(DATABASE, source, restored, self.horizon)
        return {result.table.removeprefix("proof."): result for result in results}

    def result(self, table: str) -> TableResult:
        return self.compare()[table]


@pytest.fixture(scope="module")
def pair(server: PostgresServer) -> Iterator[Pair]:
    server.execute("CREATE DATABASE proof")
    server.execute("CREATE SCHEMA proof", dbname=DATABASE)
    for name in TABLES:
        rows = 60_000 if name == "many" else 50
        server.execute(
            f"CREATE TABLE proof.{name} AS SELECT n AS id, 'row ' || n AS note FROM generate_series(1, {rows}) AS n",  # type: ignore[arg-type]
            dbname=DATABASE,
        )
        server.execute(f"ALTER TABLE proof.{name} ADD PRIMARY KEY (id)", dbname=DATABASE)  # type: ignore[arg-type]
    for statement in (
        "CREATE TABLE proof.keyless AS SELECT n % 10 AS n FROM generate_series(1, 100) AS n",
        "CREATE TABLE proof.copy_keyless AS TABLE proof.keyless",
        "CREATE TABLE proof.objects AS"
        " SELECT lo_from_bytea(0, decode(repeat('ab', 9000), 'hex')) AS id FROM generate_series(1, 6)",
    ):
        server.execute(statement, dbname=DATABASE)  # type: ignore[arg-type]
    try:
        with new_folder() as folder:
            site = make_site(folder, server, repository=directory_repository(folder))
            made = site.backup()
            places = restore.place_tablespaces(made.manifest, {}, below=folder / "spaces")
            site.restore(made, folder / "data", tablespaces=places)
            with opened(site, made, folder / "data") as sandbox:
                with sandbox.connect() as session:
                    horizon = Horizon.read(session)
                yield Pair(server, sandbox, horizon)
    finally:
        server.execute("DROP DATABASE proof WITH (FORCE)")


def test_an_untouched_copy_is_equal_in_every_table(pair: Pair) -> None:
    results = pair.compare()
    assert {result.verdict for result in results.values()} == {Verdict.OK}
    assert all((result.moved, result.different) == (0, 0) for result in results.values())
    assert results["many"].rows == 60_000
    assert {"large objects", "keyless", *TABLES} <= results.keys()


# Moved since: counted, and ok.


@pytest.mark.parametrize(
    ("table", "statement", "moved"),
    [
        ("inserted", "INSERT INTO proof.inserted SELECT n, 'new' FROM generate_series(1001, 1003) AS n", 3),
        ("updated", "UPDATE proof.updated SET note = 'changed' WHERE id <= 7", 7),
        ("deleted", "DELETE FROM proof.deleted WHERE id > 45", 5),
        ("key_changed", "UPDATE proof.key_changed SET id = 5000 WHERE id = 1", 2),
        ("truncated", "TRUNCATE proof.truncated", 50),
        ("many", "UPDATE proof.many SET note = 'changed' WHERE id % 20000 = 0", 3),
        ("keyless", "INSERT INTO proof.keyless VALUES (3), (3)", 2),
    ],
)
def test_rows_that_the_source_has_written_since_are_counted_and_are_no_fault(
    pair: Pair, table: str, statement: str, moved: int
) -> None:
    pair.on_source(statement)
    result = pair.result(table)
    assert (result.verdict, result.moved, result.different) == (Verdict.OK, moved, 0)


def test_vacuum_freezes_rows_and_moves_none(pair: Pair) -> None:
    pair.on_source("VACUUM (FREEZE, FULL) proof.vacuumed", "VACUUM (FREEZE) proof.vacuumed")
    result = pair.result("vacuumed")
    assert (result.verdict, result.moved) == (Verdict.OK, 0)


def test_what_was_rolled_back_on_the_source_moves_nothing(pair: Pair) -> None:
    with psycopg.connect(pair.server.dsn(DATABASE)) as session:
        session.execute("UPDATE proof.rolled_back SET note = 'never'")
        session.rollback()
    assert pair.result("rolled_back").moved == 0


def test_a_table_made_since_is_no_fault_and_neither_is_one_dropped_since(pair: Pair) -> None:
    pair.on_source("CREATE TABLE proof.made_since AS SELECT 1 AS one", "DROP TABLE proof.source_dropped")
    results = pair.compare()
    assert (results["made_since"].verdict, results["made_since"].detail) == (Verdict.OK, "made since the backup")
    dropped = results["source_dropped"]
    assert (dropped.verdict, dropped.detail) == (Verdict.OK, "dropped on the source since the backup")


def test_a_table_that_was_made_anew_since_is_no_fault(pair: Pair) -> None:
    pair.on_source("DROP TABLE proof.recreated", "CREATE TABLE proof.recreated (id int PRIMARY KEY, note text)")
    pair.on_source("INSERT INTO proof.recreated VALUES (1, 'another'), (99, 'new')")
    assert pair.result("recreated").verdict is Verdict.OK


@pytest.mark.parametrize(
    ("table", "statement"),
    [
        ("added_column", "ALTER TABLE proof.added_column ADD COLUMN extra integer DEFAULT 7"),
        ("dropped_column", "ALTER TABLE proof.dropped_column DROP COLUMN note"),
        ("renamed_column", "ALTER TABLE proof.renamed_column RENAME COLUMN note TO remark"),
        ("retyped_column", "ALTER TABLE proof.retyped_column ALTER COLUMN note TYPE varchar(500)"),
        ("new_key", "ALTER TABLE proof.new_key DROP CONSTRAINT new_key_pkey"),
    ],
)
def test_a_migration_since_the_backup_is_no_fault(pair: Pair, table: str, statement: str) -> None:
    pair.on_source(statement, f"INSERT INTO proof.{table} (id) VALUES (777)")
    result = pair.result(table)
    assert (result.verdict, result.moved, result.different) == (Verdict.OK, 1, 0), result


# Wrong: rows of the recovery point that the copy does not have as they were.


@pytest.mark.parametrize(
    ("table", "statement", "different"),
    [
        ("copy_updated", "UPDATE proof.copy_updated SET note = 'rotten' WHERE id IN (3, 33)", 2),
        ("copy_deleted", "DELETE FROM proof.copy_deleted WHERE id = 8", 1),
        ("copy_keyless", "DELETE FROM proof.copy_keyless WHERE n = 4", 10),
    ],
)
def test_a_row_that_the_copy_has_lost_or_changed_fails(pair: Pair, table: str, statement: str, different: int) -> None:
    pair.on_copy(statement)
    result = pair.result(table)
    assert (result.verdict, result.different) == (Verdict.FAILED, different)
    assert f"{different} rows that were committed before the recovery point are missing or changed" in result.detail


def test_a_rotten_row_is_found_among_rows_that_have_moved(pair: Pair) -> None:
    pair.on_source("UPDATE proof.many SET note = 'changed' WHERE id BETWEEN 100 AND 199")
    pair.on_copy("UPDATE proof.many SET note = 'rotten' WHERE id = 31415")
    result = pair.result("many")
    assert (result.verdict, result.different) == (Verdict.FAILED, 1)
    assert result.moved >= 100


def test_a_table_that_the_copy_has_lost_fails(pair: Pair) -> None:
    pair.on_copy("DROP TABLE proof.copy_dropped")
    result = pair.result("copy_dropped")
    assert (result.verdict, result.detail) == (Verdict.FAILED, "the table is missing")


def test_a_column_that_the_copy_has_lost_fails(pair: Pair) -> None:
    pair.on_copy("ALTER TABLE proof.copy_lost_column DROP COLUMN note")
    result = pair.result("copy_lost_column")
    assert (result.verdict, result.detail) == (Verdict.FAILED, "columns are missing or differ: note")


# Not known: never ok.


def test_rows_that_a_policy_hides_are_unknown(pair: Pair) -> None:
    pair.on_source("ALTER TABLE proof.hidden ENABLE ROW LEVEL SECURITY")
    result = pair.result("hidden")
    assert result.verdict is Verdict.UNKNOWN
    assert "row-level security" in result.detail


def test_a_table_that_may_not_be_read_is_unknown(pair: Pair) -> None:
    pair.on_source("REVOKE pg_read_all_data FROM backup")
    try:
        result = pair.result("forbidden")
    finally:
        pair.on_source("GRANT pg_read_all_data TO backup")
    assert result.verdict is Verdict.UNKNOWN
    assert "permission denied" in result.detail


# Large objects.


def test_large_objects_move_and_rot_like_rows(pair: Pair) -> None:
    with pair.sandbox.connect(DATABASE) as session:
        ids = [oid for (oid,) in session.execute("SELECT id FROM proof.objects ORDER BY id")]
    before = pair.result("large objects")
    assert before.verdict is Verdict.OK
    pair.on_source(
        f"SELECT lo_put({ids[0]}, 10, 'written since')",
        f"SELECT lo_unlink({ids[1]})",
        "SELECT lo_from_bytea(0, 'new')",
        f"SELECT lowrite(lo_open({ids[2]}, 131072), 'x') FROM (SELECT lo_truncate(lo_open({ids[2]}, 131072), 0)) AS t",
    )
    moved = pair.result("large objects")
    assert (moved.verdict, moved.moved, moved.different) == (Verdict.OK, 4, 0)
    pair.on_copy(f"SELECT lo_put({ids[3]}, 10, 'rotten')", f"SELECT lo_unlink({ids[4]})")
    rotten = pair.result("large objects")
    assert (rotten.verdict, rotten.different) == (Verdict.FAILED, 2)
    assert rotten.detail == "2 large objects are missing or differ"


@pytest.mark.parametrize("next_xid", [1000, 3, 2**32 + 5, 2**33 + 2**31])
def test_transaction_ids_are_counted_back_from_the_horizon_also_across_their_wrap(next_xid: int) -> None:
    committed = compare._Committed(None, Horizon(next_xid))  # type: ignore[arg-type]
    for back in (1, 7, 900):
        wide = next_xid - back
        narrow = wide % 2**32
        if wide > 2 and narrow > 2:
            assert committed._widen(narrow) == wide
    for ahead in (0, 1, 500):
        narrow = (next_xid + ahead) % 2**32
        if narrow > 2:
            assert committed._widen(narrow) is None
    assert committed._widen(2) == 2
