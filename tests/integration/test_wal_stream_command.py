"""`recovery wal stream`: what it answers, how it ends, and each error, on real servers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from recovery.postgres.wal.positions import format_lsn
from tests.conftest import s3_repository
from tests.support import Site, s3_connection
from tests.wal import all_slots_in_use, compare, current_lsn, new_site, slot_lsn, until, write

pytestmark = pytest.mark.usefixtures("signals")

STREAM = ("wal", "stream", "app038")


def test_a_stream_of_some_seconds_ends_by_itself_and_answers_with_what_it_stored(
    wal_site: Site, primary: PostgresServer
) -> None:
    write(primary)
    began = time.monotonic()
    document = wal_site.json(*STREAM, "--for", "2s")
    assert 2 <= time.monotonic() - began < 20
    end = compare(wal_site, primary)
    assert document == {
        "system": "app038",
        "timeline": 1,
        "stored_lsn": format_lsn(end),
        "bytes_stored": document["bytes_stored"],
        "reconnects": 0,
        "gaps": [],
    }
    assert document["bytes_stored"] > 0
    done = wal_site.run(*STREAM, "--for", "1500ms")
    (line,) = done.stdout.splitlines()
    assert line.startswith("stored up to 0/") and " on timeline 1: " in line
    assert "timeline 1: stored up to 0/" in done.stderr and " to go" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stream_that_has_stored_what_came(
    wal_site: Site, primary: PostgresServer, number: signal.Signals
) -> None:
    # After the first piece nothing would be due for an hour.
    wal_site.system["wal"] = {"interval": "1h"}
    process = wal_site.start(*STREAM)
    until(lambda: slot_lsn(primary))
    write(primary)
    written = current_lsn(primary)
    until(lambda: primary.execute("SELECT 1 FROM pg_stat_replication WHERE sent_lsn >= %s", (format_lsn(written),)))
    time.sleep(0.3)
    assert slot_lsn(primary) < written
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "error" not in errors
    assert compare(wal_site, primary) >= written
    assert until(lambda: slot_lsn(primary) >= written)


def no_system(site: Site) -> None:
    site.document["postgres"]["app039"] = site.document["postgres"].pop("app038")


def no_wal(site: Site) -> None:
    del site.system["wal"]


def wrong_password(site: Site) -> None:
    site.add(replace(site.connections["app038_backup"], password="wrong"))


def no_directory(site: Site) -> None:
    (site.folder / "file").touch()
    site.document["repositories"]["main"] = {"directory": {"path": str(site.folder / "file" / "repository")}}


@pytest.mark.parametrize(
    ("spoil", "status", "message"),
    [
        (no_system, 2, "postgres: no PostgreSQL system is named 'app038' -> use one of: app039"),
        (
            no_wal,
            2,
            "postgres.app038.wal: continuous WAL is not configured for this system -> add `wal: {}` to it",
        ),
        (wrong_password, 1, "-> correct the password of connection app038_backup"),
        (no_directory, 1, "/wal/: not a directory -> check the disk and the directory's permissions"),
    ],
)
def test_a_stream_that_cannot_begin_says_why_in_one_line(
    wal_site: Site, spoil: Callable[[Site], None], status: int, message: str
) -> None:
    spoil(wal_site)
    assert message in wal_site.error(*STREAM, "--for", "5s", expect=status)


def test_a_stream_for_no_time_is_a_wrong_call(wal_site: Site, primary: PostgresServer) -> None:
    message = "error: --for 'soon' is not a duration: write a number and ms, s, m, h or d, as in 15m or 1h30m"
    assert wal_site.error(*STREAM, "--for", "soon", expect=2).startswith(message)
    assert not slot_lsn(primary)


def test_a_role_that_may_not_replicate_is_told_how_it_may(bystander: Site) -> None:
    message = 'the role bystander may not start replication -> ALTER ROLE "bystander" REPLICATION'
    assert message in bystander.error(*STREAM, "--for", "5s")


def test_a_server_without_a_free_slot_is_named(wal_site: Site, primary: PostgresServer) -> None:
    with all_slots_in_use(primary):
        message = wal_site.error(*STREAM, "--for", "5s")
    assert "all replication slots are in use -> raise max_replication_slots, or drop an unused slot" in message


def test_a_store_that_takes_nothing_is_named(folder: Path, primary: PostgresServer, objects: SeaweedFS) -> None:
    site = new_site(folder, primary, repository=s3_repository(bucket="nowhere", locked=False))
    site.add(s3_connection(objects))
    assert "s3://nowhere/" in (message := site.error(*STREAM, "--for", "5s")) and "does not exist" in message
    site.document["repositories"]["main"] = s3_repository(bucket="plain", locked=False)
    site.add(s3_connection(objects, secret_key="wrong"))
    message = site.error(*STREAM, "--for", "5s")
    assert "the store refused the credentials (SignatureDoesNotMatch) -> check connection recovery_s3" in message
    # No store, no slot: WAL that nobody will take is not kept.
    assert not slot_lsn(primary)
