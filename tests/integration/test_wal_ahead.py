"""`wal fetch` ahead of the server: what is spooled, what never is, and that no fault of the spool stops a recovery."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.postgres import PostgresServer
from recovery.postgres.wal.positions import Segment
from tests.conftest import directory_repository
from tests.support import Result, Site, new_folder
from tests.wal import archive_of, new_server, new_site, slot_lsn, streaming, until, wait_stored

SIZE = 16 << 20
SEGMENTS = 12

pytestmark = pytest.mark.usefixtures("signals")


@dataclass
class Stored:
    """A dozen finished segments in a repository, and a folder that passes for their cluster's data directory."""

    site: Site
    server: PostgresServer
    names: list[str]
    pgdata: Path
    spool: Path

    def fetch(self, name: str, *options: object, expect: int = 0) -> Result[str]:
        path = self.pgdata / "pg_wal" / "RECOVERYXLOG"
        path.unlink(missing_ok=True)
        done = self.site.run(
            *("wal", "fetch", "app038", name, "pg_wal/RECOVERYXLOG", "--spool", self.spool, *options),
            expect=expect,
            directory=self.pgdata,
        )
        if expect == 0:
            assert path.read_bytes() == (self.server.data_dir / "pg_wal" / name).read_bytes()
        return done

    def spooled(self) -> list[str]:
        return sorted(path.name for folder in self.spool.iterdir() for path in folder.iterdir())

    def folder(self) -> Path:
        (found,) = self.spool.iterdir()
        return found


@pytest.fixture(scope="module")
def archived() -> Iterator[tuple[Site, PostgresServer, list[str]]]:
    with new_folder() as folder, new_server(folder, "ahead", wal_keep_size="1GB") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        with streaming(site):
            until(lambda: slot_lsn(server))
            for _ in range(SEGMENTS):
                server.execute("SELECT pg_logical_emit_message(true, 'test', 'x')")
                server.execute("SELECT pg_switch_wal()")
            wait_stored(server)
        names = [segment.name(SIZE) for segment in sorted(archive_of(site, server).index().segments)]
        assert len(names) >= SEGMENTS
        yield site, server, names


@pytest.fixture
def stored(archived: tuple[Site, PostgresServer, list[str]], folder: Path) -> Stored:
    site, server, names = archived
    pgdata, spool = folder / "pgdata", folder / "spool"
    (pgdata / "pg_wal").mkdir(parents=True)
    (pgdata / "global").mkdir()
    (pgdata / "global" / "pg_control").write_bytes((server.data_dir / "global" / "pg_control").read_bytes())
    spool.mkdir()
    return Stored(site, server, names, pgdata, spool)


def test_the_next_segments_are_fetched_with_the_first_and_then_only_moved(stored: Stored) -> None:
    first, *others = stored.names
    stored.fetch(first, "--ahead", 4)
    assert stored.spooled() == others[:3]
    assert stored.folder().stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in stored.folder().iterdir()} == {0o600}
    kept = {path.name: path.stat().st_ino for path in stored.folder().iterdir()}
    stored.fetch(others[0], "--ahead", 4)
    assert (stored.pgdata / "pg_wal" / "RECOVERYXLOG").stat().st_ino == kept[others[0]], "it was moved"
    for name in others[1:]:
        stored.fetch(name, "--ahead", 4)
    assert len(stored.spooled()) <= 3


def test_a_segment_in_the_spool_needs_no_store(stored: Stored) -> None:
    stored.fetch(stored.names[0], "--ahead", 8)
    repository = stored.site.folder / "repository"
    repository.rename(hidden := repository.with_name("hidden"))
    try:
        stored.fetch(stored.names[1], "--ahead", 8)
        stored.fetch(stored.names[2], "--ahead", 8)
    finally:
        hidden.rename(repository)


def test_without_ahead_nothing_is_spooled_and_the_default_is_eight(stored: Stored) -> None:
    stored.fetch(stored.names[0], "--ahead", 1)
    assert not list(stored.spool.iterdir())
    stored.fetch(stored.names[0])
    assert stored.spooled() == stored.names[1:8]


def test_the_open_segment_and_what_is_not_stored_are_never_spooled(stored: Stored) -> None:
    stored.fetch(stored.names[-1], "--ahead", 8)
    assert stored.spooled() == []
    last = Segment.parse(stored.names[-1], SIZE)
    assert last is not None
    # The open one is put together from pieces anew at every call: it goes on growing.
    open_segment = last.next()
    stored.site.run("wal", "fetch", "app038", open_segment.name(SIZE), stored.pgdata / "open", "--spool", stored.spool)
    assert stored.spooled() == []
    stored.fetch(open_segment.next().name(SIZE), expect=1)


def test_another_timeline_or_a_history_empties_the_spool(stored: Stored) -> None:
    stored.fetch(stored.names[0], "--ahead", 4)
    assert stored.spooled()
    stored.fetch("00000002.history", expect=1)
    assert not list(stored.spool.rglob("0000*"))
    stored.fetch(stored.names[0], "--ahead", 4)
    stored.fetch(stored.names[6], "--ahead", 3)
    assert stored.spooled() == stored.names[7:9], "what lies before what is asked for is of no use"


@pytest.mark.parametrize("damage", ["cut", "empty", "another", "link"])
def test_a_spooled_file_that_is_not_the_segment_is_fetched_anew(stored: Stored, damage: str) -> None:
    stored.fetch(stored.names[0], "--ahead", 3)
    spooled, other = stored.folder() / stored.names[1], stored.folder() / stored.names[2]
    if damage == "cut":
        os.truncate(spooled, SIZE // 2)
    elif damage == "empty":
        os.truncate(spooled, 0)
    elif damage == "another":
        spooled.write_bytes(other.read_bytes())
    else:
        spooled.unlink()
        spooled.symlink_to(other)
    stored.fetch(stored.names[1], "--ahead", 3)


def test_a_damaged_next_segment_is_said_when_it_is_asked_for(stored: Stored) -> None:
    archive = archive_of(stored.site, stored.server)
    segment = Segment.parse(stored.names[1], SIZE)
    assert segment is not None
    path = stored.site.folder / "repository" / archive.segment_key(segment)
    whole = path.read_bytes()
    path.chmod(0o600)
    try:
        path.write_bytes(whole[:-20])
        assert stored.fetch(stored.names[0], "--ahead", 4).stderr == ""
        done = stored.fetch(stored.names[1], "--ahead", 4, expect=126)
        assert stored.names[1] in done.stderr and done.stderr.startswith("error: ")
    finally:
        path.write_bytes(whole)


def test_a_spool_that_cannot_be_trusted_or_used_is_a_warning_and_no_more(stored: Stored) -> None:
    stored.fetch(stored.names[0], "--ahead", 2)
    folder = stored.folder()
    folder.chmod(0o755)
    told = stored.fetch(stored.names[1], "--ahead", 2).stderr
    assert told == (
        f"warning: {folder}: this directory is not the caller's alone, and nothing is fetched ahead -> "
        "remove it, or name another place with --spool\n"
    )
    folder.chmod(0o700)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "nothing is fetched ahead (another call uses it)" in stored.fetch(stored.names[2], "--ahead", 2).stderr
    finally:
        os.close(handle)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    (elsewhere := stored.spool.with_name("elsewhere")).mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    assert "warning: " in stored.fetch(stored.names[3], "--ahead", 4).stderr
    assert not list(elsewhere.iterdir())


def test_a_spool_that_is_not_there_does_not_stop_the_recovery(stored: Stored) -> None:
    stored.spool.rmdir()
    told = stored.fetch(stored.names[0], "--ahead", 4).stderr
    assert "warning: " in told and "the recovery goes on, one segment at a time" in told


def test_a_recovery_of_many_segments_asks_the_store_less_often(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    from recovery.postgres.wal import fetch as fetches

    opened = []
    find = fetches.Source._cluster
    monkeypatch.setattr(fetches.Source, "_cluster", lambda source: opened.append(time.monotonic()) or find(source))
    for name in stored.names:
        stored.fetch(name, "--ahead", 8)
    assert len(opened) <= -(-len(stored.names) // 7) + 1
