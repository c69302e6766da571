"""What the tests share: an installation of the command with its secrets, and a look at what a server or store holds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pyrage
import pytest
import yaml
from psycopg import sql
from typer.testing import CliRunner

from lab.objectstore import REGION, SeaweedFS
from lab.postgres import PostgresServer
from lab.users import service_user
from recovery import config
from recovery.cli._app import app
from recovery.connections import Connection
from recovery.errors import ConfigurationError
from recovery.installation import Installation
from recovery.manifest import Manifest
from recovery.postgres import backup as backups
from recovery.postgres import owner as owners
from recovery.postgres import restore, tools
from recovery.postgres.server import SandboxServer
from recovery.repository import catalog
from recovery.repository.catalog import Backup
from recovery.repository.store import ObjectStore

REPOSITORY = Path(__file__).resolve().parent.parent
OWNER = owners.choose(user.name) if (user := service_user()) else None

Result = subprocess.CompletedProcess


def secret_of(identity: Any) -> str:
    """The AGE-SECRET-KEY-1... line of an identity."""
    return str(identity)


def postgres_connection(
    server: PostgresServer, identifier: str = "app038_backup", *, user: str = "backup"
) -> Connection:
    """The connection that a worker would be given: the role that only makes backups."""
    return Connection(
        id=identifier,
        type="postgres",
        host=server.host,
        port=server.port,
        login=user,
        password=server.passwords[user],
        schema="postgres",
    )


def s3_connection(objects: SeaweedFS, *, endpoint: str | None = None, secret_key: str | None = None) -> Connection:
    return Connection(
        id="recovery_s3",
        type="aws",
        login=objects.access_key,
        password=secret_key or objects.secret_key,
        extra={"endpoint_url": endpoint or objects.endpoint, "region_name": REGION},
    )


@dataclass
class Site:
    """One installation in a folder of its own: `document` becomes recovery.yaml, `connections` its environment."""

    folder: Path
    document: dict[str, Any]
    identity: Any
    connections: dict[str, Connection] = field(default_factory=dict)

    def add(self, connection: Connection) -> None:
        self.connections[connection.id] = connection

    @property
    def system(self) -> dict[str, Any]:
        """The settings of the system app038, to be changed by a test."""
        settings: dict[str, Any] = self.document["postgres"]["app038"]
        return settings

    @property
    def config_file(self) -> Path:
        path = self.folder / "recovery.yaml"
        path.write_text(yaml.safe_dump(self.document))
        return path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        secrets = {
            f"AIRFLOW_CONN_{item.id.upper()}": json.dumps(
                {
                    "conn_type": item.type,
                    "host": item.host,
                    "port": item.port,
                    "login": item.login,
                    "password": item.password,
                    "schema": item.schema,
                    "extra": dict(item.extra),
                }
            )
            for item in self.connections.values()
        }
        return kept | secrets | {"PYTHONPATH": str(REPOSITORY / "include"), "RECOVERY_CONFIG": str(self.config_file)}

    # The command.

    def argv(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "recovery", *(str(argument) for argument in arguments)]

    def run(self, *arguments: object, expect: int = 0, directory: Path | None = None) -> Result[str]:
        """Run the command in this process, which saves its start, and see that its exit status is the expected one."""
        with contextlib.chdir(directory or self.folder), pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AIRFLOW_CONN_")]:
                patch.delenv(name)
            done = CliRunner().invoke(app, [str(argument) for argument in arguments], env=self.environment)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == expect, f"status {done.exit_code}\n{done.stdout}\n{done.stderr}"
        return Result(arguments, done.exit_code, done.stdout, done.stderr)

    def run_alone(self, *arguments: object) -> Result[str]:
        """Run the command as a process of its own."""
        return subprocess.run(
            self.argv(*arguments), env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=120
        )

    def json(self, *arguments: object, expect: int = 0) -> Any:
        """The one document that --json prints."""
        return json.loads(self.run(*arguments, "--json", expect=expect).stdout)

    def error(self, *arguments: object, expect: int = 1, directory: Path | None = None) -> str:
        """The one line that a failing call prints."""
        done = self.run(*arguments, expect=expect, directory=directory)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.stderr
        return lines[0]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start the command in a process group of its own, for a test that interrupts or kills it."""
        return subprocess.Popen(
            self.argv(*arguments),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    # The library.

    def installation(self) -> Installation:
        return Installation(config.load(self.config_file), resolve=self._resolve)

    def store(self) -> ObjectStore:
        return self.installation().store_of("app038")

    def backup(self, kind: backups.Kind = "full") -> Backup:
        return backups.take(self.installation().source("app038"), kind)

    def restore(self, made: Backup, pgdata: Path, *, tablespaces: Mapping[int, Path], **options: Any) -> None:
        """With what the backup builds on, for the user who runs PostgreSQL."""
        restore.restore_base(
            *(self.store(), self.catalog().chain(made), pgdata),
            identities=[self.identity],
            tablespaces=tablespaces,
            tools=self.tools(made.manifest),
            owner=OWNER,
            **options,
        )

    def catalog(self) -> catalog.Catalog:
        return catalog.read(self.store(), "app038")

    def tools(self, found: Manifest) -> tools.Tools:
        return tools.find(found.server.major, configured=self.installation().configuration.postgres["app038"].tools)

    def keys(self) -> list[str]:
        """Every object of the repository but leases."""
        return [info.key for info in self.store().scan("") if not info.key.startswith("leases/")]

    @property
    def key_file(self) -> Path:
        path = self.folder / "identity.txt"
        path.touch(mode=0o600)
        path.write_text(f"# created: 2026-01-01\n{secret_of(self.identity)}\n")
        return path

    def _resolve(self, identifier: str) -> Connection:
        try:
            return self.connections[identifier]
        except KeyError:
            raise ConfigurationError("the connection is not defined", where=f"connection {identifier}") from None


def make_site(folder: Path, server: PostgresServer | None, *, repository: Mapping[str, Any]) -> Site:
    """An installation that backs up `server` as the system app038 into one repository, and can open its own backups."""
    identity = pyrage.x25519.Identity.generate()
    document: dict[str, Any] = {
        "version": 1,
        "encryption": {"recipients": [str(identity.to_public())], "identity": "recovery_identity"},
        "repositories": {"main": dict(repository)},
        "postgres": {},
        "sandbox": {"directory": str(folder / "sandbox")} | ({"user": OWNER.name} if OWNER else {}),
    }
    site = Site(folder, document, identity)
    site.add(Connection(id="recovery_identity", type="generic", password=secret_of(identity)))
    if server is not None:
        document["postgres"]["app038"] = {
            "connection": "app038_backup",
            "repository": "main",
            "tools": {server.major: str(server.bindir)},
        }
        site.add(postgres_connection(server))
    return site


@contextmanager
def new_folder() -> Iterator[Path]:
    """A directory that the user who runs PostgreSQL can reach, which `tmp_path` is not where the caller is root."""
    folder = Path(tempfile.mkdtemp(prefix="recovery-test-", dir=_place()))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place() -> str:
    """Memory, where there is plenty: ext4 is slow to make files where many have just been deleted, as tests do."""
    shared, needed = Path("/dev/shm"), 4 << 30
    if shared.is_dir() and min(shutil.disk_usage(shared).free, psutil.virtual_memory().available) > needed:
        return str(shared)
    return "/tmp"


@contextmanager
def opened(site: Site, backup: Backup, pgdata: Path) -> Iterator[SandboxServer]:
    """A server on a restored directory."""
    found = backup.manifest
    with SandboxServer(pgdata, tools=site.tools(found), superuser=found.server.superuser, owner=OWNER) as server:
        yield server


# What a server holds, told without this project's code.

Connect = Callable[[str], "psycopg.Connection[Any]"]

_TABLES = """
SELECT n.nspname, c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm', 'S') AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
 ORDER BY 1, 2
"""
_ROWS = sql.SQL(
    'SELECT count(*), md5(string_agg("?row"::text, chr(10) ORDER BY "?row"::text COLLATE "C")) FROM ONLY {} AS "?row"'
)
_SEQUENCE = sql.SQL("SELECT last_value, is_called FROM {}")


def contents(connect: Connect) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """Every row of every table, sequence and large object of every database: (database, schema, table) → what it holds."""
    with connect("postgres") as session:
        names = [name for (name,) in session.execute("SELECT datname FROM pg_database WHERE NOT datistemplate")]
    found: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for database in names:
        with connect(database) as session:
            session.execute("SET timezone = 'UTC'")
            for schema, table, kind in session.execute(_TABLES).fetchall():
                query = _SEQUENCE if kind == "S" else _ROWS
                row = session.execute(query.format(sql.Identifier(schema, table))).fetchone()
                assert row is not None
                found[database, schema, table] = row
            rows = session.execute("SELECT oid, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY oid").fetchall()
            found[database, "large objects"] = tuple(rows)
    return found


def server_contents(server: PostgresServer) -> dict[tuple[str, ...], tuple[Any, ...]]:
    return contents(lambda database: psycopg.connect(server.dsn(database), autocommit=True))


@contextmanager
def mounted(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """A small file system of its own at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def may_mount() -> bool:
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", folder]
        return subprocess.run(command, capture_output=True).returncode == 0
