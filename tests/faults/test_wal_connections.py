"""Connections that break while WAL streams: to the server, to the store, in silence; and what a dead store may cost."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from recovery.postgres.wal import receiver
from recovery.postgres.wal import slot as slots
from recovery.postgres.wal import stream as streams
from recovery.postgres.wal.positions import Segment
from recovery.repository import layout
from tests.conftest import s3_repository
from tests.proxy import Proxy
from tests.support import REPOSITORY, Site, s3_connection
from tests.wal import compare, current_lsn, new_site, slot_lsn, streaming, until, wait_stored, write

pytestmark = pytest.mark.faults

INCREMENTAL = ("backup", "postgres", "app038", "--type", "incremental")


@pytest.fixture
def store(objects: SeaweedFS) -> Iterator[Proxy]:
    """An S3 server's network, to be broken."""
    with Proxy(objects.port) as proxy:
        yield proxy
        proxy.hold = False


@pytest.fixture
def s3_site(
    folder: Path, primary: PostgresServer, objects: SeaweedFS, store: Proxy, monkeypatch: pytest.MonkeyPatch
) -> Site:
    """WAL goes to S3 through the proxy. A request fails at once: S3's own retries take up to half a minute."""
    from botocore.config import Config

    from recovery.repository import s3

    config = s3.client_config().merge(Config(retries={"mode": "standard", "total_max_attempts": 1}))
    monkeypatch.setattr(s3, "client_config", lambda: config)
    monkeypatch.setattr(streams, "_LONGEST_PAUSE", 1.0)
    made = new_site(folder, primary, repository=s3_repository(bucket="plain", locked=False))
    made.add(s3_connection(objects, endpoint=store.endpoint))
    return made


@contextmanager
def broken(store: Proxy) -> Iterator[None]:
    """The store refuses every connection."""
    store.refuse = True
    store.break_connections()
    try:
        yield
    finally:
        store.refuse = False


def sender(server: PostgresServer) -> int:
    """The process that sends to the receiver; 0 when there is none."""
    rows = server.execute("SELECT pid FROM pg_stat_replication WHERE application_name = 'recovery'")
    return rows[0][0] if rows else 0


def quick_to_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "_DEAD_SECONDS", 3)
    monkeypatch.setattr(receiver, "_STATUS_SECONDS", 0.5)


@contextmanager
def far_away(server: PostgresServer) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A port that leads to a server, through a process that SIGSTOP silences: nothing passes, and nothing is closed.

    Not a thread: libpq connects without letting other threads run.
    """
    program = (
        f"import sys; from tests.proxy import Proxy\n"
        f"with Proxy({server.port}) as proxy: print(proxy.port, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'include'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline()), process
        finally:
            process.kill()


# The server.


def test_a_password_that_is_changed_is_read_again_for_the_next_connection(
    wal_site: Site, primary: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    primary.execute("CREATE ROLE wal LOGIN REPLICATION PASSWORD 'old'")
    old = replace(wal_site.connections["app038_backup"], login="wal", password="old")
    wal_site.add(old)
    try:
        with streaming(wal_site) as outcome:
            wait_stored(primary)
            primary.execute("ALTER ROLE wal PASSWORD 'new'")
            first = sender(primary)
            primary.execute("SELECT pg_terminate_backend(%s)", (first,))
            until(lambda: "correct the password of connection app038_backup; it goes on" in caplog.text)
            write(primary)
            wal_site.add(replace(old, password="new"))
            until(lambda: sender(primary) not in (0, first))
            written = wait_stored(primary)
        assert outcome[0].reconnects >= 2 and outcome[0].gaps == []
        assert compare(wal_site, primary) >= written
    finally:
        until(lambda: not sender(primary))
        primary.execute("DROP ROLE wal")


def test_an_idle_server_is_not_taken_for_a_dead_one(
    wal_site: Site, primary: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_to_notice(monkeypatch)
    with streaming(wal_site) as outcome:
        wait_stored(primary)
        first = sender(primary)
        time.sleep(5)
        assert first and sender(primary) == first
        wait_stored(primary)
    assert outcome[0].reconnects == 0


def test_a_network_that_falls_silent_is_given_up_and_streaming_goes_on_when_it_is_back(
    wal_site: Site, primary: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quick_to_notice(monkeypatch)
    with far_away(primary) as (port, network):
        wal_site.add(replace(wal_site.connections["app038_backup"], port=port))
        with streaming(wal_site) as outcome:
            wait_stored(primary)
            network.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            write(primary)
            until(lambda: "the server has not answered for 3 s -> it is tried again; it goes on" in caplog.text)
            assert 2.5 < time.monotonic() - began < 15
            network.send_signal(signal.SIGCONT)
            written = wait_stored(primary)
        assert outcome[0].reconnects >= 1 and outcome[0].gaps == []
        assert compare(wal_site, primary) >= written


# The store.

DROPPED = "was dropped, before the server's disk would fill"


def give_up_at_100_mib(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the segments that a receiver holds at a time, as any real bound is."""
    monkeypatch.setattr(slots, "GIB", 1 << 20)
    site.system["wal"] = {"give_up_gib": 100}


def flood(server: PostgresServer) -> None:
    """More WAL than the bound, in a second or two; before the checkpoint the server would keep it anyway."""
    server.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 1 << 20)) FROM generate_series(1, 140)")
    server.execute("CHECKPOINT")


def test_a_store_that_takes_nothing_costs_the_slot_at_the_bound_and_what_the_server_drops_then_is_a_gap(
    s3_site: Site,
    store: Proxy,
    primary: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site, request = s3_site, layout.full_request("app038")
    give_up_at_100_mib(site, monkeypatch)
    primary.execute("CHECKPOINT")
    with streaming(site) as outcome:
        wait_stored(primary)
        site.run("backup", "postgres", "app038", "--type", "full")
        stored = wait_stored(primary)
        with broken(store):
            # Less than the bound: the slot keeps it.
            write(primary, rows=1000)
            until(lambda: "no answer from" in caplog.text)
            time.sleep(2)
            assert slot_lsn(primary)
            flood(primary)
            until(lambda: not slot_lsn(primary))
            until(lambda: DROPPED in caplog.text)
            until(lambda: _has_removed(primary, stored))
        until(lambda: slot_lsn(primary), seconds=60)
        written = wait_stored(primary)
    assert compare(site, primary) >= written
    (gap,) = outcome[0].gaps
    assert gap.begin <= stored < gap.end <= written
    (record,) = [record for record in caplog.records if "A full backup is requested" in record.message]
    assert record.levelno == logging.ERROR and str(gap) in record.message
    assert request in site.keys()
    (finding, *_) = site.json("wal", "audit", "app038", expect=1)["findings"]
    assert finding["what"].startswith("gap: ")
    shown = site.run(*INCREMENTAL).stdout
    assert "-full: " in shown
    assert f"instead of an incremental one: a full backup was requested: {gap}" in shown
    assert request not in site.keys()


def _has_removed(server: PostgresServer, lsn: int) -> bool:
    """After a checkpoint; the summarizer of WAL may still need what that would remove."""
    server.execute("CHECKPOINT")
    return not (server.data_dir / "pg_wal" / Segment.at(1, lsn, 16 << 20).name(16 << 20)).exists()


def test_a_store_that_is_slow_but_answers_costs_the_slot_too(
    s3_site: Site, store: Proxy, primary: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_at_100_mib(s3_site, monkeypatch)
    monkeypatch.setattr(streams, "_BOUND_SECONDS", 1.0)
    with streaming(s3_site):
        wait_stored(primary)
        store.bytes_per_second = 450_000
        try:
            until(lambda: _noise(primary) or not slot_lsn(primary), seconds=60)
        finally:
            store.bytes_per_second = None
        until(lambda: slot_lsn(primary), seconds=60)
        wait_stored(primary)


def _noise(server: PostgresServer) -> None:
    """WAL that does not compress away."""
    server.execute(
        "SELECT pg_logical_emit_message(true, 'test', string_agg(md5(random()::text), '')) FROM generate_series(1, 500000)"
    )
    server.execute("CHECKPOINT")


def test_what_the_server_still_has_when_the_store_is_back_is_no_gap(
    s3_site: Site, store: Proxy, primary: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_at_100_mib(s3_site, monkeypatch)
    primary.execute("CHECKPOINT")
    with streaming(s3_site) as outcome:
        wait_stored(primary)
        with broken(store):
            flood(primary)
            until(lambda: not slot_lsn(primary))
        until(lambda: slot_lsn(primary), seconds=60)
        written = wait_stored(primary)
    assert outcome[0].gaps == []
    assert compare(s3_site, primary) >= written


def test_a_fast_shutdown_does_not_wait_for_a_store_that_is_silent(
    s3_site: Site, store: Proxy, primary: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "_STORE_SECONDS", 3)
    with streaming(s3_site) as outcome:
        wait_stored(primary)
        store.hold = True
        write(primary)
        written = current_lsn(primary)
        time.sleep(1)
        assert sender(primary) and slot_lsn(primary) < written
        said = primary.log.stat().st_size
        began = time.monotonic()
        primary.stop()
        took = time.monotonic() - began
        # The lab kills a server that has not stopped after 15 s: it must have ended by itself.
        assert "database system is shut down" in primary.log.read_bytes()[said:].decode()
        assert took < 14
        primary.start()
        store.hold = False
        until(lambda: sender(primary), seconds=60)
        wait_stored(primary)
    assert outcome[0].gaps == []
    assert compare(s3_site, primary) >= written
