"""`recovery wal stream|audit|fetch` and what `config check` says of WAL: each answer and each error, on real servers."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from lab.objectstore import SeaweedFS
from lab.ports import LOOPBACK, free_port
from lab.postgres import SUPERUSER, PostgresServer
from lab.users import blocking_directory
from recovery.cli import _wal
from recovery.postgres.wal import fetch as fetches
from recovery.postgres.wal.positions import Segment, format_lsn, parse_lsn
from tests.conftest import directory_repository, s3_repository
from tests.proxy import Proxy
from tests.support import Site, make_site, new_folder, s3_connection
from tests.wal import (
    archive_of,
    compare,
    current_lsn,
    new_server,
    new_site,
    point_at,
    slot_lsn,
    streaming,
    until,
    wait_stored,
    write,
)

STREAM = ("wal", "stream", "app038")


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The command takes the process's signals for itself, as it is alone in it; here it is not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def shared() -> Iterator[PostgresServer]:
    with new_folder() as folder, new_server(folder, "primary") as server:
        yield server


@pytest.fixture
def primary(shared: PostgresServer) -> Iterator[PostgresServer]:
    yield shared
    shared.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")


@pytest.fixture
def site(folder: Path, primary: PostgresServer) -> Site:
    return new_site(folder, primary, repository=directory_repository(folder))


@pytest.fixture
def bystander(site: Site, primary: PostgresServer) -> Iterator[Site]:
    """The system's connection is a role that may read what there is to read, and may not start replication."""
    primary.execute("CREATE ROLE bystander LOGIN PASSWORD 'x'")
    site.add(replace(site.connections["app038_backup"], login="bystander", password="x"))
    yield site
    primary.execute("DROP ROLE bystander")


@contextmanager
def all_slots_in_use(server: PostgresServer) -> Iterator[None]:
    """The slots go with the fixture `primary`."""
    for number in range(10):
        server.execute("SELECT pg_create_physical_replication_slot(%s)", (f"other{number}",))
    yield


# Streaming.


def test_a_stream_of_some_seconds_ends_by_itself_and_answers_with_what_it_stored(
    site: Site, primary: PostgresServer
) -> None:
    write(primary)
    began = time.monotonic()
    document = site.json(*STREAM, "--for", "2s")
    assert 2 <= time.monotonic() - began < 20
    end = compare(site, primary)
    assert document == {
        "system": "app038",
        "timeline": 1,
        "stored_lsn": format_lsn(end),
        "bytes_stored": document["bytes_stored"],
        "reconnects": 0,
        "gaps": [],
    }
    assert document["bytes_stored"] > 0
    done = site.run(*STREAM, "--for", "1500ms")
    (line,) = done.stdout.splitlines()
    assert line.startswith("stored up to 0/") and " on timeline 1: " in line
    assert "timeline 1: stored up to 0/" in done.stderr and " to go" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stream_that_has_stored_what_came(
    site: Site, primary: PostgresServer, number: signal.Signals
) -> None:
    # After the first piece nothing would be due for an hour.
    site.system["wal"] = {"interval": "1h"}
    process = site.start(*STREAM)
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
    assert compare(site, primary) >= written
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
    site: Site, spoil: Callable[[Site], None], status: int, message: str
) -> None:
    spoil(site)
    assert message in site.error(*STREAM, "--for", "5s", expect=status)


def test_a_stream_for_no_time_is_a_wrong_call(site: Site, primary: PostgresServer) -> None:
    message = "error: --for 'soon' is not a duration: write a number and ms, s, m, h or d, as in 15m or 1h30m"
    assert site.error(*STREAM, "--for", "soon", expect=2).startswith(message)
    assert not slot_lsn(primary)


def test_a_role_that_may_not_replicate_is_told_how_it_may(bystander: Site) -> None:
    message = 'the role bystander may not start replication -> ALTER ROLE "bystander" REPLICATION'
    assert message in bystander.error(*STREAM, "--for", "5s")


def test_a_server_without_a_free_slot_is_named(site: Site, primary: PostgresServer) -> None:
    with all_slots_in_use(primary):
        message = site.error(*STREAM, "--for", "5s")
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


# Fetching.


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

    def fetch(self, file: str, *, expect: int = 0) -> bytes | None:
        """As PostgreSQL runs it: in the data directory, with a path below it."""
        path = self.pgdata / "pg_wal" / "RECOVERYXLOG"
        path.unlink(missing_ok=True)
        before = set(path.parent.iterdir())
        done = self.site.run(
            "wal", "fetch", "app038", file, "pg_wal/RECOVERYXLOG", expect=expect, directory=self.pgdata
        )
        assert done.stdout == "" and (done.stderr == "" or expect == 126)
        assert set(path.parent.iterdir()) - before == ({path} if expect == 0 else set())
        return path.read_bytes() if expect == 0 else None

    def refused(self) -> str:
        """Why a stored segment is not given; recovery stops over it."""
        path = self.pgdata / "pg_wal" / "RECOVERYXLOG"
        path.unlink(missing_ok=True)
        arguments = ("wal", "fetch", "app038", self.segment, "pg_wal/RECOVERYXLOG")
        message = self.site.error(*arguments, expect=126, directory=self.pgdata)
        assert not path.exists()
        return message


@pytest.fixture(scope="module")
def made(objects: SeaweedFS) -> Iterator[Stored]:
    with new_folder() as folder, new_server(folder, "stored", wal_keep_size="1GB") as server:
        site = new_site(folder, server, repository=s3_repository(bucket="plain", locked=False))
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


@pytest.fixture
def stored(made: Stored) -> Iterator[Stored]:
    connections = dict(made.site.connections)
    yield made
    made.site.connections = connections


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
    arguments = ("wal", "fetch", "app038", stored.segment, "pg_wal/nowhere/RECOVERYXLOG")
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
    user = stored.server.user
    if user is not None and blocking_directory(Path(sys.executable), user):
        pytest.skip(f"{user.name}, who runs PostgreSQL here, cannot enter the virtual environment")
    (full,) = stored.site.catalog().backups
    stored.site.run("restore", "postgres", "app038", "--to", full.id, "--pgdata", target)
    script = folder / "fetch.sh"
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in stored.site.environment.items())
    command = shlex.join(stored.site.argv("wal", "fetch", "app038"))
    script.write_text(f'{exports}exec {command} "$1" "$2"\n')
    settings = {
        "restore_command": f"sh {script} %f %p",
        "recovery_target": "",
        "recovery_target_timeline": "current",
    }
    with (target / "postgresql.auto.conf").open("a") as file:
        file.write("".join(f"{name} = '{value}'\n" for name, value in settings.items()))
    with PostgresServer(target, name="recovered", passwords=stored.server.passwords) as recovered:
        until(lambda: not recovered.execute("SELECT pg_is_in_recovery()")[0][0], seconds=60)
        assert recovered.execute("SELECT count(*) FROM load") == [(stored.rows,)]
        assert recovered.execute("SELECT timeline_id FROM pg_control_checkpoint()") == [(2,)]
        log = recovered.log.read_text()
    assert f'restored log file "{stored.open_segment}" from archive' in log


# Auditing.


def test_an_audit_for_people_shows_windows_and_findings(stored: Stored) -> None:
    site, archive = stored.site, archive_of(stored.site, stored.server)
    heading, window = site.run("wal", "audit", "app038").stdout.splitlines()
    index = archive.index()
    assert heading.startswith(f"cluster {archive.system_identifier}: {len(index.segments) + 1} segments, ")
    assert window.startswith("  window   20") and window.endswith(", timeline 1)")
    assert f" to {format_lsn(index.end_of(1) or 0)}, " in window
    victim = sorted(index.segments)[-2]
    key = archive.segment_key(victim)
    data, metadata = archive.store.get(key), archive.store.head(key).metadata
    archive.store.delete(key)
    try:
        lines = site.run("wal", "audit", "app038", expect=1).stdout.splitlines()
        name = victim.name(archive.segment_bytes)
        assert lines[-1] == f"  failed   gap: 1 segments are missing, {name} to {name}"
        (finding,) = site.json("wal", "audit", "app038", expect=1)["findings"]
        assert finding == {
            "verdict": "failed",
            "timeline": 1,
            "what": f"gap: 1 segments are missing, {name} to {name}",
        }
    finally:
        archive.store.put(key, data, metadata=metadata)


def test_an_audit_for_programs_is_one_document(stored: Stored) -> None:
    site, archive = stored.site, archive_of(stored.site, stored.server)
    document = site.json("wal", "audit", "app038")
    (window,) = document["windows"]
    (full,) = site.catalog().backups
    assert full.manifest.wal is not None
    assert (window["timeline"], window["backup"]) == (1, full.id)
    assert window["begin_lsn"] == format_lsn(parse_lsn(full.manifest.wal.end_lsn))
    assert parse_lsn(window["end_lsn"]) == archive.index().end_of(1)
    assert datetime.fromisoformat(window["begin"]) <= datetime.fromisoformat(window["end"]) <= datetime.now(UTC)
    (cluster,) = document["clusters"]
    assert cluster["system_identifier"] == archive.system_identifier and cluster["stored_bytes"] > 0
    assert document["system"] == "app038" and document["findings"] == []


def test_an_audit_of_nothing_says_so(site: Site) -> None:
    assert site.run("wal", "audit", "app038").stdout == "no WAL is stored\n"
    document = site.json("wal", "audit", "app038")
    assert document == {"system": "app038", "findings": [], "windows": [], "clusters": []}


# Wrong clocks.


@pytest.mark.parametrize("commits", [True, False])
def test_a_moment_before_a_backups_true_end_is_told_from_a_clock_that_was_slow(
    site: Site, primary: PostgresServer, folder: Path, *, commits: bool
) -> None:
    primary.execute("CREATE TABLE IF NOT EXISTS ticks (at timestamptz DEFAULT clock_timestamp())")
    with streaming(site):
        until(lambda: slot_lsn(primary))
        with committing(primary) if commits else contextlib.nullcontext():
            made = site.backup()
        primary.execute("INSERT INTO ticks DEFAULT VALUES")
        wait_stored(primary)
    early = made.manifest.finished_at - timedelta(hours=1)
    path = folder / "repository" / made.folder / "manifest.json"
    path.chmod(0o600)
    path.write_bytes(made.manifest.model_copy(update={"finished_at": early}).encode())
    # Of the last one PostgreSQL itself must tell: the checkpoint's time is known to the second only.
    for before in (timedelta(minutes=30), timedelta(seconds=0)) if commits else (timedelta(minutes=30),):
        to = (made.manifest.started_at - before).isoformat()
        message = site.error("restore", "postgres", "app038", "--to", to, "--pgdata", folder / "pgdata")
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


# What `config check` says of it.


def checked(site: Site, *, expect: int) -> tuple[str, str]:
    """The state and the detail of app038's WAL."""
    systems = {each["what"]: each for each in site.json("config", "check", expect=expect)["systems"]}
    return systems["wal app038"]["state"], systems["wal app038"]["detail"]


def test_config_check_says_how_the_slot_stands(site: Site, primary: PostgresServer) -> None:
    assert checked(site, expect=0) == ("ok", "slot recovery will be made when WAL first streams")
    assert not slot_lsn(primary)
    with streaming(site):
        wait_stored(primary)
        assert checked(site, expect=0)[1].startswith("slot recovery streams, ")
    state, detail = checked(site, expect=0)
    assert state == "ok" and detail.startswith("slot recovery waits for a receiver, ") and "MB are kept" in detail
    del site.system["wal"]
    assert "wal app038" not in {each["what"] for each in site.json("config", "check")["systems"]}


def test_config_check_names_a_role_that_may_not_replicate(bystander: Site) -> None:
    assert "the role bystander may not start replication -> ALTER ROLE" in checked(bystander, expect=1)[1]


def test_config_check_wants_a_free_slot_unless_there_is_one(site: Site, primary: PostgresServer) -> None:
    with all_slots_in_use(primary):
        assert "all 10 replication slots are in use" in checked(site, expect=1)[1]
        primary.execute("SELECT pg_drop_replication_slot('other0')")
        primary.execute("SELECT pg_create_physical_replication_slot('recovery', true)")
        assert checked(site, expect=1)[0] == "ok"


def test_config_check_wants_a_free_sender_unless_it_streams(folder: Path) -> None:
    with new_server(folder, "small", max_wal_senders="1") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        with streaming(site):
            wait_stored(server)
            assert checked(site, expect=1)[0] == "ok"
        until(lambda: not server.execute("SELECT 1 FROM pg_stat_replication"))
        with psycopg.connect(server.dsn(), replication="database"):
            assert "all 1 replication connections are in use (max_wal_senders = 1)" in checked(site, expect=1)[1]


def test_config_check_names_a_server_without_wal_to_stream(folder: Path) -> None:
    with new_server(folder, "minimal", wal_level="minimal", max_wal_senders="0", summarize_wal="off") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        message = "wal_level is minimal: no continuous WAL is possible -> set wal_level = replica and restart"
        assert message in checked(site, expect=1)[1]


def test_config_check_names_a_slot_that_has_lost_wal(folder: Path) -> None:
    with new_server(folder, "tight", max_slot_wal_keep_size="16MB", max_wal_size="64MB") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        server.execute("SELECT pg_create_physical_replication_slot('recovery', true)")
        for _ in range(8):
            write(server, rows=1)
            server.execute("SELECT pg_switch_wal()")
        server.execute("CHECKPOINT")
        assert (
            "slot recovery has lost WAL that was not stored yet -> raise max_slot_wal_keep_size"
            in (checked(site, expect=1)[1])
        )


def test_config_check_names_a_timeout_that_would_drop_the_slot(folder: Path) -> None:
    server = PostgresServer(folder / "timed", major=18, settings={"idle_replication_slot_timeout": "1d"})
    server.passwords["backup"] = server.passwords[SUPERUSER]
    with server:
        site = new_site(folder, server, repository=directory_repository(folder))
        point_at(site, server)
        assert (
            "idle_replication_slot_timeout is set: it drops WAL that waits for a receiver -> set"
            in (checked(site, expect=1)[1])
        )
