"""What an incremental costs when some pages changed, and what restoring a chain costs beside restoring a full."""

from __future__ import annotations

import shutil
from typing import Any

import psycopg

from benchmarks._bench import Bench, document
from benchmarks._measure import Run, figure, verdict, worker
from benchmarks._site import site
from lab.postgres import PostgresServer
from recovery.postgres.wal.positions import format_lsn, parse_lsn

GOAL_TIME, GOAL_BYTES = 0.10, 0.03
_SHARES = (0.01, 0.02, 0.04)
_CHAIN = 8
_WAL_BYTES = 2_000_000_000


def incremental(bench: Bench) -> dict[str, Any]:
    """A full, then an incremental after each share of all pages was touched once, at random places."""
    with bench.server() as server:
        folder = bench.fresh("site")
        environment = site(folder, server, where="client")
        runs = {"full": worker("base", environment=environment, inner=True)}
        for share in _SHARES:
            _touch(server, share)
            runs[f"incremental, {share:.0%} of the pages"] = worker("incremental", environment=environment, inner=True)
        shutil.rmtree(folder)
    full, first, *_, last = runs.values()
    return document(
        bench,
        figures=[figure(name, [run]) for name, run in runs.items()],
        ratios=[
            verdict(f"time: incremental ({_SHARES[0]:.0%}) / full", first.seconds / full.seconds, goal=GOAL_TIME),
            verdict(f"bytes: incremental ({_SHARES[0]:.0%}) / full", _bytes(first) / _bytes(full), goal=GOAL_BYTES),
            verdict(f"bytes: {_SHARES[-1]:.0%} / {_SHARES[0]:.0%}", _bytes(last) / _bytes(first), goal=None),
            verdict(f"time: {_SHARES[-1]:.0%} / {_SHARES[0]:.0%}", last.seconds / first.seconds, goal=None),
        ],
    )


def chain(bench: Bench) -> dict[str, Any]:
    """Restore the full alone, the end of eight incrementals on it, and the end of two GB of WAL after those."""
    with bench.server() as server:
        folder = bench.fresh("site")
        environment = site(folder, server, where="client", wal=True)
        (folder / "repository").mkdir()
        worker("base", environment=environment)
        runs = {"restore of the full": _restored(bench, environment)}
        for _ in range(_CHAIN):
            _touch(server, _SHARES[0])
            worker("incremental", environment=environment)
        runs[f"restore of the full and {_CHAIN} incrementals"] = _restored(bench, environment)
        _drop_slot(server)  # A run that was broken off may have left it in the database, which is kept.
        server.execute("SELECT pg_create_physical_replication_slot('recovery', true)")
        worker("incremental", environment=environment)
        worker("wal", format_lsn(_write_wal(server, _WAL_BYTES)), environment=environment)
        _drop_slot(server)
        runs[f"the same, and {_WAL_BYTES / 1e9:.0f} GB of WAL"] = _restored(bench, environment, to="latest")
        shutil.rmtree(folder)
    full, whole, with_wal = runs.values()
    return document(
        bench,
        figures=[figure(name, [run]) for name, run in runs.items()],
        ratios=[
            verdict("chain / full", whole.seconds / full.seconds, goal=None),
            verdict("chain and WAL / full", with_wal.seconds / full.seconds, goal=None),
        ],
    )


def _restored(bench: Bench, environment: dict[str, str], *, to: str = "end") -> Run:
    target = bench.folder / "restored"
    shutil.rmtree(target, ignore_errors=True)
    run = worker("restore", str(target), to, environment=environment, inner=True)
    shutil.rmtree(target)
    return run


def _bytes(run: Run) -> int:
    stored: int = run.answer["bytes"]
    return stored


def _drop_slot(server: PostgresServer) -> None:
    server.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'recovery'")


def _write_wal(server: PostgresServer, size: int) -> int:
    """Rows of every page are updated until there are so many bytes of WAL; returns where they end."""
    begin = end = _lsn(server)
    while end < begin + size:
        server.execute("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 20 = 0")
        end = _lsn(server)
    return end


def _lsn(server: PostgresServer) -> int:
    return parse_lsn(server.execute("SELECT pg_current_wal_flush_lsn()")[0][0])


def _touch(server: PostgresServer, share: float) -> None:
    """Change `share` of all pages: a row on each of half as many pages of one table, and its index pages."""
    with psycopg.connect(server.dsn(), autocommit=True) as session:
        row = session.execute(
            "SELECT (sum(pg_database_size(oid)) / 8192)::bigint, pg_relation_size('pgbench_accounts') / 8192 "
            "FROM pg_database WHERE datallowconn"
        ).fetchone()
        assert row is not None
        pages, of_the_table = row
        session.execute(
            "UPDATE pgbench_accounts SET abalance = abalance + 1 FROM ("
            "SELECT DISTINCT ('(' || floor(random() * %s)::bigint || ',1)')::tid AS place FROM generate_series(1, %s)"
            ") AS chosen WHERE pgbench_accounts.ctid = chosen.place",
            (of_the_table, int(pages * share / 2)),
        )
        session.execute("CHECKPOINT")
