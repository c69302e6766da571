"""The servers that the tests share: each is started once, when a test first asks for it, and left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lab import app038
from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from tests.support import Site, make_site, new_folder, s3_connection

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

    def staging(self) -> PostgresServer:
        """An empty server of the newest major, for dumps to be restored into."""
        return self._started.get("staging") or self._start("staging", MAJORS[-1], settings={})

    def _start(self, name: str, major: int, *, settings: dict[str, str]) -> PostgresServer:
        server = PostgresServer(self._folder / name, major=major, name=name, settings=settings)
        self._started[name] = self._stack.enter_context(server)
        return server


def create_odd_database(server: PostgresServer) -> None:
    from psycopg import sql

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
def staging(servers: Servers) -> Iterator[PostgresServer]:
    """An empty running server; what a test makes on it is dropped afterwards."""
    from psycopg import sql

    staging = servers.staging()
    yield staging
    for (name,) in staging.execute("SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"):
        staging.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    for (name,) in staging.execute("SELECT rolname FROM pg_roles WHERE oid > 16383"):
        staging.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        staging.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def objects() -> Iterator[SeaweedFS]:
    """An S3 server. `locked` is a bucket with Object Lock, `plain` one without."""
    with new_folder() as folder, SeaweedFS(folder / "objects") as started:
        started.create_bucket("locked", object_lock=True)
        started.create_bucket("plain")
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
