"""`recovery wal fetch`, PostgreSQL's `restore_command`: each exit status, and a real recovery with it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from lab.objectstore import SeaweedFS
from lab.ports import LOOPBACK, free_port
from lab.postgres import PostgresServer
from recovery.cli import _wal
from recovery.postgres.wal import fetch as fetches
from recovery.postgres.wal.positions import Segment
from tests.conftest import directory_repository
from tests.proxy import Proxy
from tests.support import make_site, s3_connection
from tests.wal import Stored, archive_of, configure, restore_command, until

pytestmark = pytest.mark.usefixtures("signals")


def on_the_server(stored: Stored, name: str) -> bytes:
    return (stored.server.data_dir / "pg_wal" / name).read_bytes()


def test_a_stored_segment_is_fetched_whole(stored: Stored) -> None:
    found = stored.fetch(stored.segment)
    assert found == on_the_server(stored, stored.segment)
    assert (stored.pgdata / "pg_wal" / "RECOVERYXLOG").stat().st_mode & 0o777 == 0o600


def test_the_open_segment_is_put_together_and_filled_with_zeros(stored: Stored) -> None:
    found = stored.fetch(stored.open_segment)
    whole = on_the_server(stored, stored.open_segment)
    assert found == whole[: stored.open_bytes] + bytes(len(whole) - stored.open_bytes)


def test_what_is_not_stored_is_status_1(stored: Stored) -> None:
    size = 16 << 20
    newest = Segment.parse(stored.open_segment, size)
    assert newest is not None
    for name in (newest.next().name(size), "00000002.history", "00000001000000000000000F.00000028.backup", "nonsense"):
        stored.fetch(name, expect=1)


def test_a_history_is_fetched_as_it_was_stored(stored: Stored) -> None:
    archive, text = archive_of(stored.site, stored.server), b"1\t0/3000000\tno recovery target specified\n"
    archive.put_history(2, text)
    try:
        assert stored.fetch("00000002.history") == text
    finally:
        archive.store.delete(archive.history_key(2))


def test_a_store_that_does_not_answer_is_never_the_end_of_wal(
    stored: Stored, objects: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_attempt(monkeypatch)
    monkeypatch.setattr(fetches, "_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(_wal, "_PATIENCE_SECONDS", 1.0)
    dead = f"http://{LOOPBACK}:{free_port()}"
    stored.site.add(s3_connection(objects, endpoint=dead))
    began = time.monotonic()
    assert f"no answer from {dead} -> check the endpoint" in stored.refused()
    assert time.monotonic() - began >= 1.0


def test_a_store_that_comes_back_in_time_gives_the_file(
    stored: Stored, objects: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_attempt(monkeypatch)
    monkeypatch.setattr(fetches, "_PAUSE_SECONDS", 0.1)
    with Proxy(objects.port) as proxy:
        stored.site.add(s3_connection(objects, endpoint=proxy.endpoint))
        proxy.refuse = True
        threading.Timer(1.5, lambda: setattr(proxy, "refuse", False)).start()
        began = time.monotonic()
        assert stored.fetch(stored.segment) == on_the_server(stored, stored.segment)
        assert time.monotonic() - began >= 1.4


def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's own retries take up to half a minute."""
    from botocore.config import Config

    from recovery.repository import s3

    config = s3.client_config().merge(Config(retries={"mode": "standard", "total_max_attempts": 1}))
    monkeypatch.setattr(s3, "client_config", lambda: config)


def test_an_identity_that_opens_nothing_stops_recovery(stored: Stored) -> None:
    other = make_site(stored.pgdata, None, repository=directory_repository(stored.pgdata))
    stored.site.add(other.connections["recovery_identity"])
    message = stored.refused()
    assert stored.segment in message and "no identity" in message
    del stored.site.connections["recovery_identity"]
    assert "connection recovery_identity: the connection is not defined" in stored.refused()


def test_a_rotten_segment_stops_recovery(stored: Stored) -> None:
    archive = archive_of(stored.site, stored.server)
    segment = Segment.parse(stored.segment, archive.segment_bytes)
    assert segment is not None
    key = archive.segment_key(segment)
    data, metadata = archive.store.get(key), archive.store.head(key).metadata
    try:
        archive.store.put(key, data[:-1] + bytes([data[-1] ^ 1]), metadata=metadata)
        message = stored.refused()
    finally:
        archive.store.put(key, data, metadata=metadata)
    assert key in message and "the object cannot be decrypted" in message


def test_a_file_that_cannot_be_written_stops_recovery_and_is_not_the_end_of_wal(stored: Stored) -> None:
    arguments = ("wal", "fetch", "app038", stored.segment, "pg_wal/nowhere/RECOVERYXLOG", "--ahead", "1")
    assert "No such file or directory" in stored.site.error(*arguments, expect=126, directory=stored.pgdata)


def test_an_interrupted_fetch_is_not_the_end_of_wal_and_sigterm_kills_it(stored: Stored, objects: SeaweedFS) -> None:
    for number, status in ((signal.SIGINT, 126), (signal.SIGTERM, -signal.SIGTERM)):
        with socket.create_server((LOOPBACK, 0)) as silent:
            silent.settimeout(30)
            endpoint = f"http://{LOOPBACK}:{silent.getsockname()[1]}"
            stored.site.add(s3_connection(objects, endpoint=endpoint))
            process = stored.site.start("wal", "fetch", "app038", stored.segment, stored.site.folder / "never")
            with silent.accept()[0]:
                os.killpg(process.pid, number)
                _, errors = process.communicate(timeout=30)
        assert process.returncode == status, errors
        assert errors.splitlines() == (["error: KeyboardInterrupt"] if number == signal.SIGINT else [])


def test_outside_a_data_directory_the_only_cluster_is_meant_and_of_two_none(stored: Stored) -> None:
    site, store = stored.site, stored.site.store()
    path = site.folder / "fetched"
    site.run("wal", "fetch", "app038", stored.segment, path)
    assert path.read_bytes() == on_the_server(stored, stored.segment)
    store.put("postgres/app038/1/wal/00000002.history", b"another cluster's")
    try:
        message = site.error("wal", "fetch", "app038", stored.segment, path, expect=126)
        assert "app038: 2 clusters were backed up under this name -> run this in the data directory" in message
        stored.fetch(stored.segment)
    finally:
        store.delete("postgres/app038/1/wal/00000002.history")


def test_postgresql_recovers_with_it_to_the_last_commit(stored: Stored, folder: Path) -> None:
    target = folder / "pgdata"
    (full,) = stored.site.catalog().backups
    stored.site.run("restore", "postgres", "app038", "--to", full.id, "--pgdata", target)
    configure(target, restore_command=restore_command(stored.site, folder), recovery_target_timeline="current")
    with PostgresServer(target, name="recovered", passwords=stored.server.passwords) as recovered:
        until(lambda: not recovered.execute("SELECT pg_is_in_recovery()")[0][0], seconds=60)
        assert recovered.execute("SELECT count(*) FROM load") == [(stored.rows,)]
        assert recovered.execute("SELECT timeline_id FROM pg_control_checkpoint()") == [(2,)]
        log = recovered.log.read_text()
    assert f'restored log file "{stored.open_segment}" from archive' in log
