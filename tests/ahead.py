"""`recovery wal fetch` in tests: WAL of two timelines in a bucket, and calls that fetch it ahead into a spool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from recovery.postgres.wal.archive import Archive, Index
from recovery.postgres.wal.positions import parse_lsn
from tests.support import Site, new_folder, s3_connection
from tests.wal import (
    archive_of,
    new_server,
    new_site,
    point_at,
    slot_lsn,
    standby_of,
    streaming,
    until,
    wait_stored,
    write,
)

SIZE = 16 << 20
BEFORE, AFTER = 12, 6


@dataclass
class Switched:
    """A bucket with the WAL of two timelines, a primary's and its promoted standby's; and the full backup restored."""

    site: Site
    server: PostgresServer
    backup: str
    pgdata: Path
    archive: Archive
    index: Index
    end: int
    """The LSN up to which all is stored."""

    def names(self, timeline: int) -> list[str]:
        """Of the whole segments."""
        return [each.name(SIZE) for each in sorted(self.index.segments) if each.timeline == timeline]

    @property
    def open_segment(self) -> str:
        return max(self.index.pieces).name(SIZE)

    def content(self, file: str) -> bytes | None:
        return self.archive.read_file(file, identities=self.site.installation().identities())


@dataclass
class Fetching:
    """Calls of the command in the restored data directory, with a spool below `parent`."""

    switched: Switched
    parent: Path

    @property
    def path(self) -> Path:
        return self.switched.pgdata / "pg_wal" / "RECOVERYXLOG"

    @property
    def spool(self) -> Path:
        (found,) = self.parent.glob("recovery-wal-*")
        return found

    def arguments(self, file: str, *options: object) -> tuple[object, ...]:
        return ("wal", "fetch", "app038", file, "pg_wal/RECOVERYXLOG", "--spool", self.parent, *options)

    def __call__(self, file: str, *options: object, expect: int = 0) -> str:
        """What it says; what it places is compared."""
        self.path.unlink(missing_ok=True)
        done = self.switched.site.run(*self.arguments(file, *options), expect=expect, directory=self.switched.pgdata)
        assert done.stdout == "" and self.path.exists() == (expect == 0)
        if expect == 0:
            assert self.path.read_bytes() == self.switched.content(file)
            assert self.path.stat().st_mode & 0o777 == 0o600
        assert [each.name for each in self.path.parent.glob(".*")] == []
        return done.stderr

    def held(self) -> list[str]:
        return sorted(each.name for each in self.spool.iterdir())


@contextmanager
def switched_wal(objects: SeaweedFS, repository: dict[str, Any]) -> Iterator[Switched]:
    with new_folder() as folder, new_server(folder, "first") as first:
        site = new_site(folder, first, repository=repository)
        site.add(s3_connection(objects))
        write(first)
        with standby_of(first, folder, "second") as second:
            with streaming(site):
                until(lambda: slot_lsn(first))
                made = site.json("backup", "postgres", "app038", "--type", "full")["id"]
                fill_segments(first, BEFORE)
                end = wait_stored(first)
            until(lambda: parse_lsn(second.execute("SELECT pg_last_wal_replay_lsn()")[0][0]) >= end)
            first.kill()
            second.execute("SELECT pg_promote()")
            until(lambda: not second.execute("SELECT pg_is_in_recovery()")[0][0])
            point_at(site, second)
            with streaming(site):
                until(lambda: slot_lsn(second))
                fill_segments(second, AFTER)
                write(second, rows=10)
                end = wait_stored(second)
            site.run("restore", "postgres", "app038", "--to", made, "--pgdata", folder / "pgdata")
            archive = archive_of(site, second)
            yield Switched(site, second, made, folder / "pgdata", archive, archive.index(), end)


def fill_segments(server: PostgresServer, count: int) -> None:
    for _ in range(count):
        write(server, rows=1000)
        server.execute("SELECT pg_switch_wal()")
