"""Restores to a moment: what was there at that moment is there, and what cannot be reached exactly is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lab.postgres import PostgresServer
from recovery.postgres.server import SandboxServer
from tests.conftest import directory_repository
from tests.support import OWNER, Site, new_folder
from tests.wal import current_lsn, new_server, new_site, slot_lsn, streaming, until, wait_stored, write


@dataclass
class Past:
    """A cluster whose rows say when they came: `moments` maps a count of marks to the time and LSN of that state."""

    site: Site
    server: PostgresServer
    moments: dict[int, tuple[datetime, str]] = field(default_factory=dict)
    xids: dict[int, int] = field(default_factory=dict)

    def mark(self) -> int:
        number = len(self.moments) + 1
        row = self.server.execute(
            "INSERT INTO marks VALUES (%s) RETURNING pg_current_xact_id()::text::bigint", (number,)
        )
        self.xids[number] = row[0][0]
        time.sleep(0.05)
        row = self.server.execute("SELECT clock_timestamp(), pg_current_wal_lsn()")
        self.moments[number] = row[0][0], str(row[0][1])
        time.sleep(0.05)
        return number


@pytest.fixture(scope="module")
def past() -> Iterator[Past]:
    """A full, marks, an incremental, marks, a named point, marks; then the stream ends."""
    with new_folder() as folder, new_server(folder, "past", summarize_wal="on") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        made = Past(site, server)
        server.execute("CREATE TABLE marks (number int)")
        with streaming(site):
            until(lambda: slot_lsn(server))
            site.run("backup", "postgres", "app038", "--type", "full")
            for _ in range(3):
                made.mark()
            write(server, rows=200_000)
            site.run("backup", "postgres", "app038", "--type", "incremental")
            made.mark()
            server.execute("SELECT pg_create_restore_point('before the bad deploy')")
            made.mark()
            made.mark()
            wait_stored(server)
        yield made


def marks(past: Past, pgdata: Path) -> int:
    """How many marks a restored directory holds."""
    found = past.site.catalog().newest("full", "incremental")
    assert found is not None
    server = SandboxServer(
        pgdata, tools=past.site.tools(found.manifest), superuser=found.manifest.server.superuser, owner=OWNER
    )
    with server, server.connect() as session:
        row = session.execute("SELECT count(*), max(number) FROM marks").fetchone()
    assert row is not None and row[0] == row[1]
    return int(row[0])


def restored(past: Past, folder: Path, to: str, *more: str) -> Any:
    return past.site.json("restore", "postgres", "app038", "--to", to, "--pgdata", folder / "pgdata", *more)


@pytest.mark.parametrize("number", [1, 3, 4, 5])
def test_a_time_brings_back_what_was_committed_by_then(past: Past, folder: Path, number: int) -> None:
    moment, _ = past.moments[number]
    document = restored(past, folder, moment.isoformat())
    assert marks(past, folder / "pgdata") == number
    assert document["chain"] == [backup.id for backup in past.site.catalog().backups][: 1 if number <= 3 else 2]
    assert document["reached"]["timeline"] == 2 and document["wal_segments"] > 0


def test_an_lsn_a_transaction_a_name_and_latest(past: Past, folder: Path) -> None:
    for to, number in (
        (past.moments[5][1], 5),
        (f"xid:{past.xids[2]}", 2),
        ("name:before the bad deploy", 4),
        ("latest", 6),
    ):
        target = folder / to.replace("/", "-").replace(":", "-")
        past.site.run("restore", "postgres", "app038", "--to", to, "--pgdata", target)
        assert marks(past, target) == number, to


def test_a_restore_left_paused_stays_at_its_moment_when_it_is_started(past: Past, folder: Path) -> None:
    moment, _ = past.moments[2]
    text = past.site.run(
        "restore", "postgres", "app038", "--to", moment.isoformat(), "--pgdata", folder / "pgdata", "--pause"
    ).stdout
    assert "paused at" in text and "pg_wal_replay_resume()" in text
    found = past.site.catalog().newest("full")
    assert found is not None
    server = SandboxServer(
        folder / "pgdata",
        tools=past.site.tools(found.manifest),
        superuser=found.manifest.server.superuser,
        owner=OWNER,
        paused=True,
    )
    with server, server.connect() as session:
        assert session.execute("SELECT count(*), pg_is_in_recovery() FROM marks").fetchall() == [(2, True)]


def test_the_result_has_no_trace_of_the_restores_settings(past: Past, folder: Path) -> None:
    restored(past, folder, "latest")
    pgdata = folder / "pgdata"
    assert "recovery" not in (pgdata / "postgresql.auto.conf").read_text()
    left = {path.name for path in pgdata.iterdir()}
    assert not left & {"recovery.signal", "recovery.spool", "recovery.incomplete", "recovery.staging"}


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("future", "it is in the future"),
        ("after", "it is after the last WAL that is stored"),
        ("before", "it is before the first backup that WAL leads on from"),
        ("FFFF/0", "it is after the last WAL that is stored"),
        ("0/1", "it is before the first backup that WAL leads on from"),
    ],
)
def test_a_moment_that_cannot_be_reached_is_refused_with_the_windows(
    past: Past, folder: Path, to: str, reason: str
) -> None:
    now = datetime.now(UTC)
    times = {"future": now + timedelta(hours=1), "after": now, "before": now - timedelta(days=1)}
    text = times[to].isoformat() if to in times else to
    message = past.site.error("restore", "postgres", "app038", "--to", text, "--pgdata", folder / "pgdata")
    assert f"{text} cannot be reached exactly: {reason} -> the recoverable windows: 20" in message
    assert not (folder / "pgdata").exists()
    assert reason in past.site.error("plan", "postgres", "app038", "--to", text)


def test_a_time_without_a_zone_is_refused_with_the_zone_that_it_would_take(past: Past) -> None:
    message = past.site.error("plan", "postgres", "app038", "--to", "2026-11-24 10:00:00", expect=2)
    assert "has no time zone -> write 2026-11-24 10:00:00Z for UTC, or 2026-11-24T10:00:00" in message


@pytest.mark.parametrize("to", ["yesterday", "xid:0", "xid:x", "name:", "", "0/0/0"])
def test_what_names_no_moment_is_told_what_does(past: Past, to: str) -> None:
    assert f"--to {to!r} names no moment -> give latest, a backup's id" in past.site.error(
        "plan", "postgres", "app038", "--to", to, expect=2
    )


def test_a_transaction_that_never_was_is_not_passed_off_as_one(past: Past, folder: Path) -> None:
    message = past.site.error("restore", "postgres", "app038", "--to", "xid:999999", "--pgdata", folder / "pgdata")
    assert "the stored WAL ends before xid 999999 -> nothing was kept" in message
    assert list((folder / "pgdata").iterdir()) == []


def test_a_timeline_that_is_not_stored_is_refused(past: Past) -> None:
    message = past.site.error("plan", "postgres", "app038", "--to", "latest", "--timeline", "7")
    assert "does not hold timeline 7 and its history -> it has WAL of: 1" in message


def test_a_gap_bounds_the_windows_and_a_moment_in_it_is_refused(past: Past, folder: Path) -> None:
    from tests.wal import archive_of

    archive = archive_of(past.site, past.server)
    index = archive.index()
    victim = sorted(index.segments)[-1]
    key = archive.segment_key(victim)
    data, metadata = archive.store.get(key), archive.store.head(key).metadata
    archive.store.delete(key)
    try:
        report = past.site.json("wal", "audit", "app038", expect=1)
        assert [item["what"].partition(":")[0] for item in report["findings"]] == ["gap"]
        lsn = victim.start(archive.segment_bytes) + 100
        text = f"0/{lsn:X}"
        message = past.site.error("plan", "postgres", "app038", "--to", text)
        assert f"{text} cannot be reached exactly: it " in message
    finally:
        archive.store.put(key, data, metadata=metadata)
    assert past.site.json("wal", "audit", "app038")["findings"] == []
    assert current_lsn(past.server)


@pytest.mark.parametrize("level", ["checksum", "opens"])
def test_the_audit_reads_every_segment_and_names_the_one_that_rotted(past: Past, level: str) -> None:
    from tests.wal import archive_of

    assert past.site.json("wal", "audit", "app038", "--level", level)["findings"] == []
    archive = archive_of(past.site, past.server)
    victim = min(archive.index().segments)
    key = archive.segment_key(victim)
    path = archive.store.path(key)  # type: ignore[attr-defined]
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        (finding,) = past.site.json("wal", "audit", "app038", "--level", level, expect=1)["findings"]
        assert finding["verdict"] == "failed" and victim.name(archive.segment_bytes) in finding["what"]
    finally:
        path.write_bytes(before)


def test_a_rotten_segment_stops_a_restore_and_is_named(past: Past, folder: Path) -> None:
    from tests.wal import archive_of

    archive = archive_of(past.site, past.server)
    victim = max(archive.index().segments)
    path = archive.store.path(archive.segment_key(victim))  # type: ignore[attr-defined]
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        message = past.site.error("restore", "postgres", "app038", "--to", "latest", "--pgdata", folder / "pgdata")
        assert victim.name(archive.segment_bytes) in message and "the object cannot be decrypted" in message
        assert list((folder / "pgdata").iterdir()) == []
    finally:
        path.write_bytes(before)
