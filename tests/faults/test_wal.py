"""Receivers, stores and servers that die while WAL streams: what was acknowledged is there, and restores are equal.

WAL_KILLS=200 STORE_KILLS=20 FAILOVERS=5 pytest tests/faults/test_wal.py is the full count; by default a few of each.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from recovery.postgres.server import SandboxServer
from recovery.postgres.wal.positions import format_lsn
from tests.conftest import directory_repository, s3_repository
from tests.support import OWNER, Site, s3_connection
from tests.wal import archive_of, new_server, new_site, point_at, slot_lsn, standby_of, until, wait_stored

WAL_KILLS = int(os.environ.get("WAL_KILLS", "5"))
STORE_KILLS = int(os.environ.get("STORE_KILLS", "1"))
FAILOVERS = int(os.environ.get("FAILOVERS", "1"))

pytestmark = pytest.mark.faults


class Load:
    """Sessions that commit one row at a time. `returned` holds the numbers whose commit has returned."""

    def __init__(self, server: PostgresServer, *, sessions: int = 2, prefix: int = 0) -> None:
        self.returned: set[int] = set()
        self._server, self._stopped = server, threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(prefix + number * 10_000_000,), daemon=True)
            for number in range(sessions)
        ]

    def __enter__(self) -> Load:
        self._server.execute("CREATE TABLE IF NOT EXISTS ledger (number bigint PRIMARY KEY, filler text)")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(20)

    def _run(self, number: int) -> None:
        # A server that dies ends the session: what it had not confirmed by then is not counted.
        with contextlib.suppress(psycopg.Error), psycopg.connect(self._server.dsn(), autocommit=True) as session:
            while not self._stopped.is_set():
                session.execute("INSERT INTO ledger VALUES (%s, repeat('x', 200))", (number,))
                self.returned.add(number)
                number += 1


@contextmanager
def receiver(site: Site) -> Iterator[subprocess.Popen[str]]:
    process = site.start("wal", "stream", "app038")
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def restored_numbers(site: Site, folder: Path) -> set[int]:
    """The ledger as a restore of the latest point has it."""
    target = folder / f"restored-{time.monotonic_ns()}"
    document = site.json("restore", "postgres", "app038", "--to", "latest", "--pgdata", target)
    assert document["reached"] is not None
    found = site.catalog().newest("full")
    assert found is not None
    sandbox = SandboxServer(
        target, tools=site.tools(found.manifest), superuser=found.manifest.server.superuser, owner=OWNER
    )
    with sandbox, sandbox.connect() as session:
        numbers = {number for (number,) in session.execute("SELECT number FROM ledger")}
    shutil.rmtree(target)
    return numbers


def stored_up_to(site: Site, server: PostgresServer, start: int) -> int:
    index = archive_of(site, server).index()
    history = index.history(1)
    assert history is not None
    return index.reach(history, start)


def test_a_receiver_that_is_killed_again_and_again_loses_no_acknowledged_byte(folder: Path) -> None:
    chance = random.Random(38)
    with new_server(folder, "primary") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        site.system["wal"] = {"interval": "50ms"}
        server.execute("CREATE TABLE ledger (number bigint PRIMARY KEY, filler text)")
        with receiver(site):
            until(lambda: slot_lsn(server))
            site.run("backup", "postgres", "app038", "--type", "full")
        start = slot_lsn(server)
        with Load(server) as load:
            for _ in range(WAL_KILLS):
                with receiver(site):
                    time.sleep(chance.uniform(0.7, 2.0))
                acknowledged = slot_lsn(server)
                stored = stored_up_to(site, server, start)
                assert stored >= acknowledged, (format_lsn(stored), format_lsn(acknowledged))
        with receiver(site):
            wait_stored(server)
        assert restored_numbers(site, folder) == load.returned
        assert len(load.returned) > 500 * WAL_KILLS


def test_a_store_that_is_killed_and_comes_back_costs_nothing_but_time(folder: Path) -> None:
    with new_server(folder, "primary") as server, SeaweedFS(folder / "objects") as objects:
        objects.create_bucket("plain")
        site = new_site(folder, server, repository=s3_repository(bucket="plain", locked=False))
        site.add(s3_connection(objects))
        server.execute("CREATE TABLE ledger (number bigint PRIMARY KEY, filler text)")
        with receiver(site) as process:
            until(lambda: slot_lsn(server))
            site.run("backup", "postgres", "app038", "--type", "full")
            with Load(server) as load:
                for _ in range(STORE_KILLS):
                    time.sleep(2)
                    objects.kill()
                    time.sleep(2)
                    objects.start()
                    before = slot_lsn(server)
                    until(lambda before=before: slot_lsn(server) > before, seconds=90)
            until(lambda: wait_stored(server), seconds=90)
            assert process.poll() is None
        assert restored_numbers(site, folder) == load.returned


def test_no_transaction_that_waited_for_the_receiver_is_lost_with_the_servers_disk(folder: Path) -> None:
    chance = random.Random(17)
    with new_server(folder, "primary") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        site.system["wal"] = {"interval": "10ms"}
        server.execute("CREATE TABLE ledger (number bigint PRIMARY KEY, filler text)")
        with receiver(site):
            until(lambda: slot_lsn(server))
            site.run("backup", "postgres", "app038", "--type", "full")
        server.execute("ALTER SYSTEM SET synchronous_standby_names = 'recovery'")
        server.execute("SELECT pg_reload_conf()")
        with Load(server, sessions=4) as load:
            for _ in range(WAL_KILLS):
                with receiver(site):
                    time.sleep(chance.uniform(1.0, 2.5))
            with receiver(site):
                time.sleep(2)
                server.kill()
        shutil.rmtree(server.data_dir)
        missing = load.returned - restored_numbers(site, folder)
        assert not missing and len(load.returned) > 20 * WAL_KILLS


def test_failovers_under_load_lose_nothing_that_the_new_primary_has(folder: Path) -> None:
    primary = new_server(folder, "primary0", wal_keep_size="1GB")
    primary.start()
    servers: list[Any] = [primary]
    site = new_site(folder, primary, repository=directory_repository(folder))
    try:
        primary.execute("CREATE TABLE ledger (number bigint PRIMARY KEY, filler text)")
        with receiver(site):
            until(lambda: slot_lsn(primary))
            site.run("backup", "postgres", "app038", "--type", "full")
        for number in range(1, FAILOVERS + 1):
            standby = standby_of(primary, folder, f"primary{number}")
            standby.start()
            servers.append(standby)
            with receiver(site), Load(primary, prefix=number * 100_000_000):
                time.sleep(3)
                primary.kill()
            standby.execute("SELECT pg_promote()")
            until(lambda standby=standby: not standby.execute("SELECT pg_is_in_recovery()")[0][0])
            point_at(site, standby)
            primary = standby
        with receiver(site):
            until(lambda: slot_lsn(primary))
            wait_stored(primary)
        kept = {row[0] for row in primary.execute("SELECT number FROM ledger")}
        assert kept and restored_numbers(site, folder) == kept
        assert site.json("wal", "audit", "app038", expect=0)["windows"]
    finally:
        for server in servers:
            server.kill()
