"""The sandbox server: cut off from what the original was connected to, and never outliving who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lab.postgres import PostgresServer
from recovery.errors import ServerError
from recovery.postgres import restore, tools
from recovery.postgres.server import SandboxServer
from tests.conftest import directory_repository
from tests.support import OWNER, REPOSITORY, Site, make_site, new_folder


@pytest.fixture(scope="module")
def restored(server: PostgresServer):  # type: ignore[no-untyped-def]
    """One restored directory for this file; each test starts its own server on it."""
    server.execute("ALTER SYSTEM SET archive_mode = 'on'")
    server.execute("ALTER SYSTEM SET archive_command = 'touch /tmp/recovery-sandbox-archived-%f'")
    server.execute("ALTER SYSTEM SET primary_conninfo = 'host=production'")
    server.execute("ALTER SYSTEM SET synchronous_standby_names = 'somebody'")
    try:
        with new_folder() as folder:
            site = make_site(folder, server, repository=directory_repository(folder))
            made = site.backup()
            places = restore.place_tablespaces(made.manifest, {}, below=folder / "spaces")
            site.restore(made, folder / "data", tablespaces=places)
            yield site, folder / "data"
    finally:
        server.execute("ALTER SYSTEM RESET ALL")


def sandbox(site: Site, pgdata: Path, server: PostgresServer, **options: float) -> SandboxServer:
    found = tools.find(server.major, configured={server.major: server.bindir})
    return SandboxServer(pgdata, tools=found, superuser="postgres", owner=OWNER, **options)  # type: ignore[arg-type]


def test_it_is_cut_off_from_what_the_original_was_connected_to(restored, server: PostgresServer) -> None:  # type: ignore[no-untyped-def]
    site, pgdata = restored
    with sandbox(site, pgdata, server) as started, started.connect() as session:
        settings = dict(session.execute("SELECT name, setting FROM pg_settings").fetchall())
        assert settings["listen_addresses"] == ""
        assert settings["archive_mode"] == "off"
        assert settings["primary_conninfo"] == "" and settings["synchronous_standby_names"] == ""
        assert settings["shared_preload_libraries"] == ""
        assert settings["max_logical_replication_workers"] == "0"
        assert settings["config_file"].startswith(str(started.socket_folder))
        assert session.execute("SELECT count(*) FROM pg_replication_slots").fetchone() == (0,)
        session.execute("CREATE TABLE it_takes_writes AS SELECT 1")
        session.execute("SELECT pg_switch_wal()")
        mode = started.socket_folder.stat().st_mode
        (process,) = [each for each in psutil.process_iter() if is_server(each, pgdata)]
        assert not [each for each in process.net_connections() if each.family.name.startswith("AF_INET")]
    assert mode & 0o077 == 0
    assert list(Path("/tmp").glob("recovery-sandbox-archived-*")) == []
    assert not started.socket_folder.exists()


def is_server(process: psutil.Process, pgdata: Path) -> bool:
    try:
        command = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return command[1:3] == ["-D", str(pgdata)]


def test_it_ends_with_the_process_that_started_it_also_when_that_is_killed(restored, server: PostgresServer) -> None:  # type: ignore[no-untyped-def]
    site, pgdata = restored
    program = (
        "import sys, time; from pathlib import Path\n"
        "from recovery.postgres import owner, tools; from recovery.postgres.server import SandboxServer\n"
        "pgdata, major, bindir, user = sys.argv[1:]\n"
        "found = tools.find(int(major), configured={int(major): Path(bindir)})\n"
        "with SandboxServer(Path(pgdata), tools=found, superuser='postgres', owner=owner.choose(user or None)) as server:\n"
        "    print(server.socket_folder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            program,
            str(pgdata),
            str(server.major),
            str(server.bindir),
            OWNER.name if OWNER else "",
        ],
        env={"PYTHONPATH": str(REPOSITORY / "include"), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    folder = Path(starter.stdout.readline().strip())
    running = [each for each in psutil.process_iter() if is_server(each, pgdata)]
    assert len(running) == 1 and folder.is_dir()
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    gone, alive = psutil.wait_procs(running, timeout=10)
    assert gone and not alive
    # Nothing can tidy up after a kill -9; the next server does not stumble over what it leaves.
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with sandbox(site, pgdata, server):
        pass


def test_a_server_that_cannot_start_says_why(restored, server: PostgresServer) -> None:  # type: ignore[no-untyped-def]
    site, pgdata = restored
    control = (pgdata / "PG_VERSION").read_text()
    (pgdata / "PG_VERSION").write_text("12\n")
    try:
        with pytest.raises(ServerError) as caught, sandbox(site, pgdata, server):
            pass
    finally:
        (pgdata / "PG_VERSION").write_text(control)
    assert "the sandbox server did not start: " in str(caught.value)
    assert "database files are incompatible with server" in str(caught.value)


def test_a_recovery_that_does_not_end_is_given_up(restored, server: PostgresServer) -> None:  # type: ignore[no-untyped-def]
    site, pgdata = restored
    (pgdata / "standby.signal").touch()
    try:
        began = time.monotonic()
        with (
            pytest.raises(ServerError, match="did not end its recovery in 2 s"),
            sandbox(site, pgdata, server, start_seconds=2),
        ):
            pass
        assert time.monotonic() - began < 20
    finally:
        (pgdata / "standby.signal").unlink()


def test_a_directory_that_is_no_cluster_is_refused(site: Site, server: PostgresServer) -> None:
    with pytest.raises(ServerError, match="this is not a data directory"), sandbox(site, site.folder, server):
        pass
