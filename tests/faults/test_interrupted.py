"""Kills, Ctrl-C, and servers that die in the middle: nothing half-done counts, nothing is left that could be cleaned up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from recovery.errors import ConditionsUnsupported, StoreError
from recovery.postgres import backup as backups
from recovery.postgres import restore
from recovery.postgres.backup import Source
from recovery.repository import catalog
from tests.conftest import s3_repository
from tests.memory import MemoryStore
from tests.proxy import Proxy
from tests.support import Site, contents, make_site, opened, s3_connection, server_contents

FULL = ("backup", "postgres", "app038", "--type", "full")
DUMP = ("backup", "postgres", "app038", "--type", "dump")
MIB = 1 << 20

pytestmark = pytest.mark.faults


def until(condition: Callable[[], Any], *, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def load_ballast(server: PostgresServer, megabytes: int) -> None:
    """What does not compress: a backup of it takes a while, and fills more than one part of an upload."""
    with psycopg.connect(server.dsn(), autocommit=True) as session:
        session.execute("CREATE TABLE ballast (content bytea)")
        session.execute("ALTER TABLE ballast ALTER content SET STORAGE EXTERNAL")
        with session.cursor().copy("COPY ballast FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["bytea"])
            for _ in range(megabytes):
                copy.write_row((os.urandom(MIB),))


@pytest.fixture(scope="module")
def heavy(server: PostgresServer) -> Iterator[PostgresServer]:
    load_ballast(server, 32)
    yield server
    server.execute("DROP TABLE ballast")


@pytest.fixture
def slow(site: Site, heavy: PostgresServer) -> Site:
    """Its backups take some seconds, into a directory."""
    site.system["base"] = {"max_rate_mib_per_second": 16}
    return site


@pytest.fixture
def proxy(objects: SeaweedFS) -> Iterator[Proxy]:
    with Proxy(objects.port) as started:
        yield started


@pytest.fixture
def slow_in_s3(folder: Path, heavy: PostgresServer, objects: SeaweedFS, proxy: Proxy) -> Site:
    """Its backups take some seconds, into S3 through a proxy."""
    made = make_site(folder, heavy, repository=s3_repository())
    made.add(s3_connection(objects, endpoint=proxy.endpoint))
    made.system["base"] = {"max_rate_mib_per_second": 16}
    return made


def open_uploads(site: Site, objects: SeaweedFS) -> list[str]:
    settings = site.document["repositories"]["main"]["s3"]
    with contextlib.closing(objects.client()) as client:
        answer = client.list_multipart_uploads(Bucket=settings["bucket"], Prefix=settings["prefix"])
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def staged(site: Site) -> list[Path]:
    folder = site.folder / "repository" / ".uploads"
    return [path for path in folder.glob("*") if path.stat().st_size > MIB] if folder.exists() else []


def interrupt(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> tuple[int, list[str]]:
    """As a terminal does it: the signal goes to the command and to all that it has started."""
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors.splitlines()


def nothing_is_listed(site: Site) -> None:
    assert site.json("list")["postgres"] == {"app038": {"windows": [], "backups": [], "problems": []}}


def no_session_is_left(server: PostgresServer) -> None:
    until(lambda: not server.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = 'recovery'"))
    assert server.execute("SELECT slot_name FROM pg_replication_slots") == []


# The backup.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_backup_leaves_no_upload_and_says_so_in_one_line(
    slow_in_s3: Site, objects: SeaweedFS, heavy: PostgresServer, number: signal.Signals
) -> None:
    process = slow_in_s3.start(*FULL)
    until(lambda: open_uploads(slow_in_s3, objects))
    status, errors = interrupt(process, number)
    assert (status, errors) == (130, ["error: interrupted -> nothing was committed; run it again"])
    assert open_uploads(slow_in_s3, objects) == []
    nothing_is_listed(slow_in_s3)
    no_session_is_left(heavy)
    # The lease went with it: the next one starts at once.
    del slow_in_s3.system["base"]
    slow_in_s3.run(*FULL)


def test_an_interrupted_backup_leaves_no_file_in_a_directory(slow: Site, heavy: PostgresServer) -> None:
    process = slow.start(*FULL)
    until(lambda: staged(slow))
    status, errors = interrupt(process)
    assert (status, errors) == (130, ["error: interrupted -> nothing was committed; run it again"])
    assert list((slow.folder / "repository" / ".uploads").iterdir()) == []
    nothing_is_listed(slow)
    no_session_is_left(heavy)


def test_an_interrupted_dump_ends_its_programs(site: Site, server: PostgresServer) -> None:
    with psycopg.connect(server.dsn("app038")) as holder:
        holder.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        process = site.start(*DUMP)
        until(
            lambda: server.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'recovery'"
            )
        )
        below = psutil.Process(process.pid).children(recursive=True)
        status, errors = interrupt(process)
    assert (status, errors) == (130, ["error: interrupted -> nothing was committed; run it again"])
    assert below and not any(child.is_running() for child in below)
    assert list((site.folder / "repository" / ".uploads").iterdir()) == []
    nothing_is_listed(site)
    no_session_is_left(server)


def test_a_killed_backup_commits_nothing_and_the_next_one_waits_for_its_lease_only(
    slow: Site, heavy: PostgresServer
) -> None:
    process = slow.start(*FULL)
    until(lambda: staged(slow))
    interrupt(process, signal.SIGKILL)
    nothing_is_listed(slow)
    no_session_is_left(heavy)
    message = slow.error(*FULL)
    assert "postgres app038, base is being written by " in message and f":{process.pid}:" in message
    assert "a dead writer is passed over after 120 s" in message
    (lease,) = (slow.folder / "repository" / "leases").rglob("*.json")
    an_hour_ago = time.time() - 3600
    os.utime(lease, (an_hour_ago, an_hour_ago))
    del slow.system["base"]
    made = slow.json(*FULL)
    assert [backup["id"] for backup in slow.json("list")["postgres"]["app038"]["backups"]] == [made["id"]]
    slow.run("verify", made["id"], "--level", "opens")


def test_a_backup_killed_in_the_middle_of_an_upload_to_s3_is_not_listed(
    slow_in_s3: Site, objects: SeaweedFS, heavy: PostgresServer
) -> None:
    process = slow_in_s3.start(*FULL)
    (key,) = until(lambda: open_uploads(slow_in_s3, objects))
    interrupt(process, signal.SIGKILL)
    nothing_is_listed(slow_in_s3)
    # Nobody was left to abort it: such an upload is invisible, and swept later.
    settings = slow_in_s3.document["repositories"]["main"]["s3"]
    with contextlib.closing(objects.client()) as client:
        for upload in client.list_multipart_uploads(Bucket=settings["bucket"], Prefix=key)["Uploads"]:
            client.abort_multipart_upload(Bucket=settings["bucket"], Key=key, UploadId=upload["UploadId"])
    no_session_is_left(heavy)


def test_a_server_that_dies_in_the_middle_fails_the_backup_and_leaves_no_upload(
    folder: Path, objects: SeaweedFS
) -> None:
    with PostgresServer(folder / "victim", major=17) as victim:
        load_ballast(victim, 64)
        victim.passwords["backup"] = victim.passwords["postgres"]
        site = make_site(folder, victim, repository=s3_repository())
        site.add(s3_connection(objects))
        site.connections["app038_backup"].__dict__["login"] = "postgres"
        site.system["base"] = {"max_rate_mib_per_second": 16}
        process = site.start(*FULL)
        until(lambda: open_uploads(site, objects))
        victim.kill()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: PostgreSQL 127.0.0.1:{victim.port}: ")
    assert "nothing was committed" in line and "Traceback" not in errors
    assert open_uploads(site, objects) == []
    nothing_is_listed(site)


def test_a_store_that_dies_in_the_middle_fails_the_backup_and_is_named(
    slow_in_s3: Site, proxy: Proxy, objects: SeaweedFS, heavy: PostgresServer
) -> None:
    process = slow_in_s3.start(*FULL)
    until(lambda: open_uploads(slow_in_s3, objects))
    proxy.close()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert f"no answer from {proxy.endpoint} -> check the endpoint, the network and the store itself" in line
    slow_in_s3.add(s3_connection(objects))
    nothing_is_listed(slow_in_s3)
    no_session_is_left(heavy)


def test_two_backups_of_one_kind_at_once_are_one_too_many(slow: Site) -> None:
    process = slow.start(*FULL)
    until(lambda: staged(slow))
    assert "postgres app038, base is being written by " in slow.error(*FULL)
    # Another kind does not wait.
    slow.run(*DUMP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert [backup["kind"] for backup in slow.json("list")["postgres"]["app038"]["backups"]] == ["full", "dump"]


def test_a_backup_whose_lease_was_taken_over_commits_nothing(slow: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    from recovery.errors import LeaseError
    from recovery.repository import lease

    monkeypatch.setattr(lease.Lease.__init__, "__kwdefaults__", {"ttl": timedelta(seconds=0.9)})
    folder = slow.folder / "repository" / "leases" / "postgres" / "app038" / "base"

    def take_over(what: str, done: int, expected: int | None) -> None:
        for number in range(2, 50):
            (folder / f"{number:08d}.json").write_text('{"holder": "another", "released": false, "ttl_seconds": 120}')

    with pytest.raises(LeaseError, match="the lease was taken by another writer"):
        backups.take(slow.installation().source("app038"), "full", progress=take_over)
    nothing_is_listed(slow)


def in_memory(site: Site, store: MemoryStore) -> Source:
    configuration = site.installation().configuration
    return Source.of(configuration, "app038", connection=site.connections["app038_backup"], store=store)


def test_a_store_without_conditional_writes_does_not_stop_a_backup(site: Site) -> None:
    def refuse(operation: str, key: str) -> None:
        if operation == "put-if-absent":
            raise ConditionsUnsupported("the store does not implement what was asked", where=key)

    store = MemoryStore(before=refuse, part_size=MIB)
    made = backups.take(in_memory(site, store), "full")
    assert [backup.id for backup in catalog.read(store, "app038").backups] == [made.id]
    assert not [key for key in store.objects if key.startswith("leases/")]


@pytest.mark.parametrize("operation", ["part", "complete", "upload"])
def test_a_store_that_fails_at_any_point_of_a_backup_leaves_nothing_open(site: Site, operation: str) -> None:
    failing = iter([False] * 2 + [True] * 100)

    def fail(what: str, key: str) -> None:
        if what == operation and next(failing):
            raise StoreError("the quota is used up", where=key)

    store = MemoryStore(before=fail, part_size=MIB)
    for kind in ("full", "dump"):
        with pytest.raises(StoreError, match="the quota is used up"):
            backups.take(in_memory(site, store), kind)  # type: ignore[arg-type]
    assert store.open_uploads == 0
    assert catalog.read(store, "app038").backups == ()


# The restore.


def test_a_killed_restore_is_recognised_and_the_next_one_on_the_same_target_succeeds(
    slow_in_s3: Site, proxy: Proxy, heavy: PostgresServer
) -> None:
    del slow_in_s3.system["base"]
    made = slow_in_s3.backup()
    data, archive = slow_in_s3.folder / "data", slow_in_s3.folder / "archive"
    arguments = (
        *("restore", "postgres", "app038", "--to", "latest", "--pgdata", data),
        *("--tablespace", f"app038_archive={archive}"),
    )
    proxy.bytes_per_second = 8 * MIB
    process = slow_in_s3.start(*arguments)
    until(lambda: (data / "base").exists())
    assert "another restore is writing to this directory" in slow_in_s3.error(*arguments)
    interrupt(process, signal.SIGKILL)
    assert (data / "recovery.incomplete").exists() and (data / "base").exists()
    proxy.bytes_per_second = None
    slow_in_s3.run(*arguments)
    assert not (data / "recovery.incomplete").exists() and not (archive / "recovery.incomplete").exists()
    with opened(slow_in_s3, made, data) as sandbox:
        assert contents(sandbox.connect) == server_contents(heavy)


def test_an_interrupted_restore_leaves_an_empty_directory(slow_in_s3: Site, proxy: Proxy) -> None:
    del slow_in_s3.system["base"]
    slow_in_s3.backup()
    data, archive = slow_in_s3.folder / "data", slow_in_s3.folder / "archive"
    proxy.bytes_per_second = 8 * MIB
    process = slow_in_s3.start(
        *("restore", "postgres", "app038", "--to", "latest", "--pgdata", data),
        *("--tablespace", f"app038_archive={archive}"),
    )
    until(lambda: (data / "base").exists())
    status, errors = interrupt(process)
    assert status == 130
    assert [line for line in errors if line.startswith("error: ")] == [errors[-1]]
    assert errors[-1].startswith("error: interrupted -> ")
    assert list(data.iterdir()) == list(archive.iterdir()) == []


def test_what_a_restore_finds_of_its_own_is_cleared_and_of_others_is_kept(site: Site) -> None:
    made = site.backup()
    places = restore.place_tablespaces(made.manifest, {}, below=site.folder / "spaces")
    data = site.folder / "data"
    (data / "base").mkdir(parents=True)
    (data / "base" / "half a file").write_text("x")
    (data / "recovery.incomplete").touch()
    site.restore(made, data, tablespaces=places)
    assert not (data / "base" / "half a file").exists() and (data / "PG_VERSION").exists()


# The drill.


def test_an_interrupted_drill_leaves_no_directory_and_no_process(slow_in_s3: Site, proxy: Proxy) -> None:
    del slow_in_s3.system["base"]
    slow_in_s3.backup()
    proxy.bytes_per_second = 8 * MIB
    process = slow_in_s3.start("drill", "app038")
    sandbox = slow_in_s3.folder / "sandbox"
    until(lambda: list(sandbox.glob("*/data/base")))
    status, errors = interrupt(process)
    assert status == 130 and errors[-1].startswith("error: interrupted -> ")
    assert list(sandbox.iterdir()) == []


def test_the_server_of_a_killed_drill_dies_with_it_and_the_next_drill_clears_its_directory(
    site: Site, server: PostgresServer
) -> None:
    site.backup()
    with psycopg.connect(server.dsn("app038")) as holder:
        holder.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        process = site.start("drill", "app038")
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'recovery'"
        until(lambda: server.execute(waiting))
        servers = [child for child in psutil.Process(process.pid).children() if child.name() == "postgres"]
        assert len(servers) == 1
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        _, alive = psutil.wait_procs(servers, timeout=10)
        assert not alive
    ((remains, socket),) = [(path, (path / "socket").readlink()) for path in (site.folder / "sandbox").iterdir()]
    assert socket.is_dir()
    assert site.json("drill", "app038")["verdict"] == "ok"
    assert not socket.exists() and not remains.exists()
    assert list((site.folder / "sandbox").iterdir()) == []
