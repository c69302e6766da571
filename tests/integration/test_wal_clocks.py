"""Moments that clocks disagree about: told from one that a backup cannot reach."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from lab.postgres import PostgresServer
from tests.support import Site
from tests.wal import slot_lsn, streaming, until, wait_stored


@pytest.mark.parametrize("commits", [True, False])
def test_a_moment_before_a_backups_true_end_is_told_from_a_clock_that_was_slow(
    wal_site: Site, primary: PostgresServer, folder: Path, *, commits: bool
) -> None:
    primary.execute("CREATE TABLE IF NOT EXISTS ticks (at timestamptz DEFAULT clock_timestamp())")
    with streaming(wal_site):
        until(lambda: slot_lsn(primary))
        with committing(primary) if commits else contextlib.nullcontext():
            made = wal_site.backup()
        primary.execute("INSERT INTO ticks DEFAULT VALUES")
        wait_stored(primary)
    early = made.manifest.finished_at - timedelta(hours=1)
    path = folder / "repository" / made.folder / "manifest.json"
    path.chmod(0o600)
    path.write_bytes(made.manifest.model_copy(update={"finished_at": early}).encode())
    # Of the last one PostgreSQL itself must tell: the checkpoint's time is known to the second only.
    for before in (timedelta(minutes=30), timedelta(seconds=0)) if commits else (timedelta(minutes=30),):
        to = (made.manifest.started_at - before).isoformat()
        message = wal_site.error("restore", "postgres", "app038", "--to", to, "--pgdata", folder / "pgdata")
        assert f"{made.id}: time {to} lies before the end of the backup -> nothing was kept; is a clock" in message
        assert list((folder / "pgdata").iterdir()) == []


@contextmanager
def committing(server: PostgresServer) -> Iterator[None]:
    """A session that commits again and again."""
    done = threading.Event()

    def work() -> None:
        with psycopg.connect(server.dsn(), autocommit=True) as session:
            while not done.is_set():
                session.execute("INSERT INTO ticks DEFAULT VALUES")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
