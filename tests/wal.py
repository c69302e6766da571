"""Streaming WAL in tests: servers whose disks may be lost, streams in threads, and what a repository holds of a server."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.objectstore import SeaweedFS
from lab.postgres import SUPERUSER, PostgresServer
from lab.users import blocking_directory, make_directory, service_user
from recovery.postgres.wal import stream as streams
from recovery.postgres.wal.archive import Archive
from recovery.postgres.wal.positions import parse_lsn
from tests.support import OWNER, Site, make_site, new_folder, s3_connection

SETTINGS = {"max_wal_size": "512MB", "checkpoint_timeout": "1h", "wal_keep_size": "0", "max_slot_wal_keep_size": "-1"}


def new_server(folder: Path, name: str, **settings: str) -> PostgresServer:
    """A small cluster with a table to write to; not started."""
    server = PostgresServer(folder / name, major=17, name=name, settings=SETTINGS | settings)
    server.passwords["backup"] = server.passwords[SUPERUSER]
    return server


def new_site(folder: Path, server: PostgresServer, *, repository: dict[str, Any]) -> Site:
    site = make_site(folder, server, repository=repository)
    point_at(site, server)
    site.system["wal"] = {}
    return site


def point_at(site: Site, server: PostgresServer) -> None:
    """The system's connection now leads to this server, as its superuser."""
    from dataclasses import replace

    connection = site.connections["app038_backup"]
    site.add(
        replace(connection, host=server.host, port=server.port, login=SUPERUSER, password=server.passwords[SUPERUSER])
    )


@contextmanager
def streaming(site: Site) -> Iterator[list[streams.Outcome]]:
    """A stream in this process while the block runs; its outcome is in the list afterwards, its error is raised."""
    stopped, results, problems = threading.Event(), [], []

    def work() -> None:
        try:
            results.append(streams.stream(lambda: site.installation().source("app038"), stop=stopped.is_set))
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield results
    finally:
        stopped.set()
        thread.join(60)
        assert not thread.is_alive()
    if problems:
        raise problems[0]


def until(condition: Callable[[], Any], *, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def current_lsn(server: PostgresServer) -> int:
    return parse_lsn(server.execute("SELECT pg_current_wal_flush_lsn()")[0][0])


def slot_lsn(server: PostgresServer) -> int:
    rows = server.execute("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'recovery'")
    return parse_lsn(rows[0][0]) if rows and rows[0][0] else 0


def wait_stored(server: PostgresServer) -> int:
    """Until everything that the server has written so far is acknowledged; returns that LSN.

    A new slot begins at the newest checkpoint, which may be the end of WAL: something is written first.
    """
    server.execute("SELECT pg_logical_emit_message(true, 'test', 'x')")
    lsn = current_lsn(server)
    until(lambda: slot_lsn(server) >= lsn)
    return lsn


def archive_of(site: Site, server: PostgresServer) -> Archive:
    identifier = server.execute("SELECT system_identifier::text FROM pg_control_system()")[0][0]
    return Archive(site.store(), "app038", identifier, 16 << 20)


def compare(site: Site, server: PostgresServer, *, timeline: int = 1) -> int:
    """Every stored byte equals the server's file, where the server still has it. Returns how far it is stored."""
    archive, identities = archive_of(site, server), site.installation().identities()
    index = archive.index()
    size = index.segment_bytes
    for segment in {*index.segments, *index.pieces}:
        file = server.data_dir / "pg_wal" / segment.name(size)
        if segment.timeline != timeline or not file.exists():
            continue
        stored = size if segment in index.segments else index.open_bytes(segment)
        found = archive.read_file(segment.name(size), identities=identities)
        assert found is not None and found[:stored] == file.read_bytes()[:stored], segment
    end = index.end_of(timeline)
    assert end is not None
    return end


def write(server: PostgresServer, rows: int = 20_000) -> None:
    server.execute("CREATE TABLE IF NOT EXISTS load (id bigserial, filler text)")
    server.execute("INSERT INTO load (filler) SELECT md5(i::text) FROM generate_series(1, %s) i", (rows,))


def standby_of(primary: PostgresServer, folder: Path, name: str) -> PostgresServer:
    """A streaming standby, not started; it keeps no more WAL than the primary's settings say."""
    standby = new_server(folder, name)
    standby.passwords = dict(primary.passwords)
    make_directory(standby.data_dir, user=standby.user)
    subprocess.run(
        [
            primary.bindir / "pg_basebackup",
            *("-D", standby.data_dir, "-d", primary.dsn(), "-c", "fast", "-X", "stream", "-R"),
        ],
        check=True,
        capture_output=True,
        **({"user": OWNER.uid, "group": OWNER.gid, "extra_groups": []} if OWNER else {}),
    )
    return standby


@contextmanager
def all_slots_in_use(server: PostgresServer) -> Iterator[None]:
    """The slots go with the fixture `primary`."""
    for number in range(10):
        server.execute("SELECT pg_create_physical_replication_slot(%s)", (f"other{number}",))
    yield


@dataclass
class Stored:
    """A cluster in a plain bucket: a full backup, whole segments, an open one; and the full restored in `pgdata`."""

    site: Site
    server: PostgresServer
    pgdata: Path
    rows: int
    segment: str
    open_segment: str
    open_bytes: int

    def fetch(self, file: str, *options: object, expect: int = 0) -> bytes | None:
        """As PostgreSQL runs it: in the data directory, with a path below it."""
        path = self.pgdata / "pg_wal" / "RECOVERYXLOG"
        path.unlink(missing_ok=True)
        before = set(path.parent.iterdir())
        done = self.site.run(
            *("wal", "fetch", "app038", file, "pg_wal/RECOVERYXLOG", "--spool", self.site.folder, *options),
            expect=expect,
            directory=self.pgdata,
        )
        assert done.stdout == "" and (done.stderr == "" or expect == 126)
        assert set(path.parent.iterdir()) - before == ({path} if expect == 0 else set())
        return path.read_bytes() if expect == 0 else None

    def refused(self) -> str:
        """Why a stored segment is not given; recovery stops over it."""
        path = self.pgdata / "pg_wal" / "RECOVERYXLOG"
        path.unlink(missing_ok=True)
        arguments = ("wal", "fetch", "app038", self.segment, "pg_wal/RECOVERYXLOG", "--spool", self.site.folder)
        message = self.site.error(*arguments, expect=126, directory=self.pgdata)
        assert not path.exists()
        return message


def restore_command(site: Site, folder: Path, *options: object, first: str = "") -> str:
    """`recovery wal fetch` for the user who runs PostgreSQL; `first` is a line of shell that runs before each call."""
    user = service_user()
    if user is not None and blocking_directory(Path(sys.executable), user):
        pytest.skip(f"{user.name}, who runs PostgreSQL here, cannot enter the virtual environment")
    script = folder / "fetch.sh"
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in site.environment.items())
    command = shlex.join(site.argv("wal", "fetch", "app038", *options))
    script.write_text(f'{exports}{first}\nexec {command} "$1" "$2"\n')
    return f"sh {script} %f %p"


def configure(pgdata: Path, **settings: str) -> None:
    """Of a restored data directory: what it is to recover from, with no target unless one is given."""
    with (pgdata / "postgresql.auto.conf").open("a") as file:
        file.write("".join(f"{name} = '{value}'\n" for name, value in ({"recovery_target": ""} | settings).items()))


@contextmanager
def stored_wal(objects: SeaweedFS, repository: dict[str, Any]) -> Iterator[Stored]:
    with new_folder() as folder, new_server(folder, "stored", wal_keep_size="1GB") as server:
        site = new_site(folder, server, repository=repository)
        site.add(s3_connection(objects))
        with streaming(site):
            until(lambda: slot_lsn(server))
            identifier = site.json("backup", "postgres", "app038", "--type", "full")["id"]
            for _ in range(16):
                write(server)
            wait_stored(server)
        rows = server.execute("SELECT count(*) FROM load")[0][0]
        site.run("restore", "postgres", "app038", "--to", identifier, "--pgdata", folder / "pgdata")
        archive = archive_of(site, server)
        index = archive.index()
        whole, current = max(index.segments), max(index.pieces)
        assert whole.next() == current
        size = archive.segment_bytes
        yield Stored(
            site, server, folder / "pgdata", rows, whole.name(size), current.name(size), index.open_bytes(current)
        )
