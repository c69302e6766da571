"""The servers that the tests share: each is started once, when a test first asks for it, and left as it was found."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from lab import app038
from lab.bao import OpenBao
from lab.bao_cluster import OpenBaoCluster
from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from tests.ahead import Fetching, Switched, switched_wal
from tests.support import Site, make_site, new_folder, s3_connection
from tests.wal import Stored, new_server, new_site, stored_wal

# A job of a shell's background ignores SIGINT, and so would every command that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

MAJORS = (15, 17, 18)
SIZE_MB = 4
ODD_DATABASE = 'o\'dd "base"/%1'

_numbers = count(1)


class Servers:
    """App038 on PostgreSQL of each major, made when it is first asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._started: dict[str, PostgresServer] = {}

    def source(self, major: int) -> PostgresServer:
        """A server with App038's databases and one whose every name is odd."""
        name = f"source{major}"
        if name not in self._started:
            server = self._start(name, major, settings=app038.SETTINGS)
            app038.create(server)
            app038.fill(server.dsn(app038.DATABASE), SIZE_MB)
            create_odd_database(server)
        return self._started[name]

    def staging(self, major: int) -> PostgresServer:
        """An empty server, for dumps to be restored into."""
        name = f"staging{major}"
        return self._started.get(name) or self._start(name, major, settings={})

    def _start(self, name: str, major: int, *, settings: dict[str, str]) -> PostgresServer:
        server = PostgresServer(self._folder / name, major=major, name=name, settings=settings)
        self._started[name] = self._stack.enter_context(server)
        return server


def create_odd_database(server: PostgresServer) -> None:
    server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(ODD_DATABASE)))
    server.execute(Path(__file__).with_name("odd.sql").read_text(), dbname=ODD_DATABASE)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with new_folder() as folder, ExitStack() as stack:
        yield Servers(folder, stack)


@pytest.fixture(scope="session")
def server(servers: Servers) -> PostgresServer:
    """The server that most tests back up."""
    return servers.source(17)


@pytest.fixture(scope="session", params=MAJORS)
def any_server(request: pytest.FixtureRequest, servers: Servers) -> PostgresServer:
    return servers.source(request.param)


@pytest.fixture
def staging_of(servers: Servers) -> Iterator[Callable[[int], PostgresServer]]:
    """An empty running server of a major that has what the source's has; what a test makes on it is dropped afterwards."""
    used: list[PostgresServer] = []

    def get(major: int) -> PostgresServer:
        used.append(servers.staging(major))
        return used[-1]

    yield get
    for server in used:
        clear(server)


@pytest.fixture
def staging(staging_of: Callable[[int], PostgresServer]) -> PostgresServer:
    return staging_of(17)


def clear(server: PostgresServer) -> None:
    """Drop every database and role that a test has made."""
    for (name,) in server.execute("SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"):
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    roles = [name for (name,) in server.execute("SELECT rolname FROM pg_roles WHERE oid > 16383")]
    for words in ("DROP OWNED BY {}", "DROP ROLE {}"):
        for name in roles:
            server.execute(sql.SQL(words).format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def objects() -> Iterator[SeaweedFS]:
    """An S3 server. `locked` is a bucket with Object Lock, `plain` one without."""
    with new_folder() as folder, SeaweedFS(folder / "objects") as started:
        started.create_bucket("locked", object_lock=True)
        started.create_bucket("plain")
        yield started


@pytest.fixture(scope="module")
def vault(server: PostgresServer) -> Iterator[OpenBao]:
    """App038's OpenBao, which makes roles on `server` for as long as a module uses it."""
    try:
        with new_folder() as folder, OpenBao(folder / "vault") as started:
            app038.fill_vault(started, server)
            yield started
    finally:
        clear_of_vault(server)


def clear_of_vault(server: PostgresServer) -> None:
    """Drop every role that a Vault has made, its own, and the canary's rows."""
    ours = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%%' OR rolname = %s ORDER BY rolname DESC"
    for (name,) in server.execute(ours, (app038.MANAGEMENT_ROLE,)):
        server.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        server.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
    server.execute("DROP TABLE IF EXISTS recovery.canary", dbname=app038.DATABASE)
    server.passwords.pop(app038.MANAGEMENT_ROLE, None)


@pytest.fixture(scope="module")
def vault_cluster() -> Iterator[OpenBaoCluster]:
    """Three empty nodes of OpenBao, all of them up: whoever kills one starts it again."""
    with new_folder() as folder, OpenBaoCluster(folder / "cluster") as started:
        yield started


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that the user who runs PostgreSQL can reach."""
    with new_folder() as path:
        yield path


@pytest.fixture
def site(folder: Path, server: PostgresServer) -> Site:
    """An installation that keeps its backups in a directory."""
    return make_site(folder, server, repository=directory_repository(folder))


@pytest.fixture
def s3_site(folder: Path, server: PostgresServer, objects: SeaweedFS) -> Site:
    """An installation that keeps its backups in S3, under Object Lock."""
    made = make_site(folder, server, repository=s3_repository())
    # What is locked for a day is needed for less.
    made.system["incremental"] = {"max_chain": 4}
    made.add(s3_connection(objects))
    return made


@pytest.fixture
def site_of(folder: Path) -> Callable[[PostgresServer], Site]:
    """Makes an installation for another server than the usual one."""
    return lambda server: make_site(folder, server, repository=directory_repository(folder))


def directory_repository(folder: Path) -> dict[str, Any]:
    return {"directory": {"path": str(folder / "repository")}}


def s3_repository(*, bucket: str = "locked", locked: bool = True) -> dict[str, Any]:
    """A repository below a prefix that no other test uses."""
    lock = {"object_lock": {"mode": "COMPLIANCE", "days": 1}} if locked else {}
    return {"s3": {"connection": "recovery_s3", "bucket": bucket, "prefix": f"test/{next(_numbers)}"} | lock}


# Streaming WAL.


@pytest.fixture(scope="module")
def wal_server() -> Iterator[PostgresServer]:
    with new_folder() as folder, new_server(folder, "primary") as server:
        yield server


@pytest.fixture
def primary(wal_server: PostgresServer) -> Iterator[PostgresServer]:
    """A small server that is here to have its WAL streamed; no slot is left."""
    yield wal_server
    wal_server.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")


@pytest.fixture
def wal_site(folder: Path, primary: PostgresServer) -> Site:
    """An installation that streams the WAL of `primary` into a directory."""
    return new_site(folder, primary, repository=directory_repository(folder))


@pytest.fixture
def bystander(wal_site: Site, primary: PostgresServer) -> Iterator[Site]:
    """The system's connection is a role that may read what there is to read, and may not start replication."""
    primary.execute("CREATE ROLE bystander LOGIN PASSWORD 'x'")
    wal_site.add(replace(wal_site.connections["app038_backup"], login="bystander", password="x"))
    yield wal_site
    primary.execute("DROP ROLE bystander")


@pytest.fixture(scope="session")
def made_wal(objects: SeaweedFS) -> Iterator[Stored]:
    with stored_wal(objects, s3_repository(bucket="plain", locked=False)) as made:
        yield made


@pytest.fixture
def stored(made_wal: Stored) -> Iterator[Stored]:
    """Stored WAL and a restored data directory to fetch it into; left as it was, its connections too."""
    connections = dict(made_wal.site.connections)
    yield made_wal
    made_wal.site.connections = connections


@pytest.fixture
def signals() -> Iterator[None]:
    """The command takes the process's signals for itself, as it is alone in it; here it is not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def switched(objects: SeaweedFS) -> Iterator[Switched]:
    with switched_wal(objects, s3_repository(bucket="plain", locked=False)) as made:
        yield made


@pytest.fixture
def fetching(switched: Switched, folder: Path) -> Iterator[Fetching]:
    connections = dict(switched.site.connections)
    yield Fetching(switched, folder)
    switched.site.connections = connections
