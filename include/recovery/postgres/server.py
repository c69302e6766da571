"""A sandbox server: PostgreSQL on a restored directory, cut off from everything the original was connected to.

It listens on a Unix socket in a private directory only; nothing of the original's postgresql.conf or pg_hba.conf is
used; archiving, subscriptions, standbys, preloaded libraries and their background workers are off. It ends with the
process that started it, also when that is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from recovery.errors import ServerError
from recovery.postgres.owner import Owner, give
from recovery.postgres.tools import Tools

_STATE = """
SELECT pg_is_in_recovery(), coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'), 0)::bigint,
       pg_is_in_recovery() AND pg_get_wal_replay_pause_state() = 'paused'
"""
_POLL_SECONDS = 0.05
_STOP_SECONDS = 20
# Recovery refuses values below the primary's while hot standby is on; pg_control has recorded them (manual, 26.4.4).
_RECORDED = ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_xacts", "max_locks_per_xact")
_NAMES = {"max_prepared_xacts": "max_prepared_transactions", "max_locks_per_xact": "max_locks_per_transaction"}


def control_data(pgdata: Path, tools: Tools) -> dict[str, str]:
    """What pg_control says, as pg_controldata names it; raises ServerError. Times are in UTC."""
    answer = subprocess.run(
        [tools.path("pg_controldata"), str(pgdata)],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "TZ": "UTC"},
        check=False,
    )
    if answer.returncode != 0:
        raise ServerError(
            "this is not a data directory that PostgreSQL can read",
            where=str(pgdata),
            remedy="restore into it first: " + (answer.stderr.strip().splitlines() or ["pg_controldata failed"])[-1],
        )
    lines = (line.partition(":") for line in answer.stdout.splitlines())
    return {name: value.strip() for name, _, value in lines}


class SandboxServer:
    """Start on entering the block, stop on leaving it. Raises ServerError with the end of the server's log."""

    def __init__(
        self,
        pgdata: Path,
        *,
        tools: Tools,
        superuser: str,
        owner: Owner | None,
        preload: Sequence[str] = (),
        start_seconds: float = 3600,
        lasting: bool = False,
        paused: bool = False,
        tick: Callable[[int], None] = lambda replayed_lsn: None,
    ) -> None:
        """`lasting`: what it writes is kept. `paused`: entered when recovery has paused at its target, not at its end.

        `tick` is called with the last replayed LSN while it recovers; `start_seconds` count from the last progress.
        """
        self._lasting, self._paused, self._tick = lasting, paused, tick
        self._pgdata, self._tools, self._superuser, self._owner = pgdata, tools, superuser, owner
        self._preload, self._start_seconds = preload, start_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()

    def __enter__(self) -> SandboxServer:
        # Socket paths are limited to about 100 characters: a short directory of its own.
        self._folder = Path(tempfile.mkdtemp(prefix="recovery-", dir="/tmp"))
        try:
            give(self._folder, self._owner)
            self._write_settings()
            self._start()
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def socket_folder(self) -> Path:
        return self._folder

    def parameters(self, database: str) -> dict[str, Any]:
        """libpq parameters of a superuser session."""
        return {"host": str(self._folder), "port": 5432, "user": self._superuser, "dbname": database}

    def connect(self, database: str = "postgres") -> psycopg.Connection[TupleRow]:
        return psycopg.connect(**self.parameters(database), autocommit=True)

    def environment(self, database: str = "postgres") -> dict[str, str]:
        """For PostgreSQL's own programs."""
        values = self.parameters(database)
        return {
            "PATH": os.environ.get("PATH", ""),
            "PGHOST": values["host"],
            "PGPORT": "5432",
            "PGUSER": self._superuser,
            "PGDATABASE": database,
        }

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write_settings(self) -> None:
        for name, text in {
            "postgresql.conf": "",
            "pg_hba.conf": "local all all trust\n",
            "pg_ident.conf": "",
        }.items():
            path = self._folder / name
            path.write_text(text)
            give(path, self._owner)

    def _settings(self) -> dict[str, str]:
        return self._recorded_settings() | {
            "config_file": str(self._folder / "postgresql.conf"),
            "hba_file": str(self._folder / "pg_hba.conf"),
            "ident_file": str(self._folder / "pg_ident.conf"),
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self._folder),
            "unix_socket_permissions": "0700",
            "ssl": "off",
            "archive_mode": "off",
            "archive_command": "",
            "archive_library": "",
            "archive_cleanup_command": "",
            "recovery_end_command": "",
            "primary_conninfo": "",
            "primary_slot_name": "",
            "synchronous_standby_names": "",
            "max_logical_replication_workers": "0",
            "shared_preload_libraries": ",".join(self._preload),
            "session_preload_libraries": "",
            "local_preload_libraries": "",
            "logging_collector": "off",
            "log_destination": "stderr",
            "log_min_messages": "warning",
            "log_statement": "none",
            "shared_buffers": "128MB",
            "external_pid_file": "",
            "autovacuum": "off",
            # Nothing that a mere sandbox writes outlives it.
            "fsync": "on" if self._lasting else "off",
            "full_page_writes": "on" if self._lasting else "off",
        }

    def _recorded_settings(self) -> dict[str, str]:
        found = control_data(self._pgdata, self._tools)
        settings = {name: found[f"{name} setting"] for name in _RECORDED if f"{name} setting" in found}
        return {_NAMES.get(name, name): value for name, value in settings.items()}

    def _start(self) -> None:
        command = [self._tools.path("postgres"), "-D", str(self._pgdata)]
        for name, value in self._settings().items():
            command += ["-c", f"{name}={value}"]
        # setpriv (util-linux) ends the server when this process dies, kill -9 included.
        prefix = ["setpriv", "--pdeathsig", "QUIT", "--"] if shutil.which("setpriv") else []
        user: dict[str, Any] = (
            {"user": self._owner.uid, "group": self._owner.gid, "extra_groups": []} if self._owner is not None else {}
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
                start_new_session=True,
                **user,
            )

    def _wait(self) -> None:
        """Until the server accepts writes: recovery has ended and the cluster is open."""
        assert self._process is not None
        deadline, before = time.monotonic() + self._start_seconds, 0
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(
                    f"the sandbox server did not start: {self._last_words()}",
                    where=str(self._pgdata),
                    remedy="the backup may be damaged, or a library, locale or tablespace is missing here",
                )
            try:
                with self.connect("template1") as session:
                    row = session.execute(_STATE).fetchone()
                assert row is not None
                recovering, replayed, paused = row
                if not recovering or (self._paused and paused):
                    return
                if replayed != before:
                    before, deadline = replayed, time.monotonic() + self._start_seconds
                    self._tick(replayed)
            except psycopg.OperationalError as problem:
                # While it starts it says "the database system is starting up". Any other refusal is for good.
                text = str(problem).rpartition("FATAL:")[2].strip()
                if "FATAL:" in str(problem) and not text.startswith("the database system is"):
                    raise ServerError(
                        f"the sandbox server opens no session: {text}",
                        where=str(self._pgdata),
                        remedy="the backup may be damaged",
                    ) from None
            time.sleep(_POLL_SECONDS)
        raise ServerError(
            f"the sandbox server did not end its recovery in {self._start_seconds:.0f} s: {self._last_words()}",
            where=str(self._pgdata),
            remedy="see the log; a recovery this long needs a higher limit",
        )

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "could not"))]
        return " / ".join((telling or lines)[-2:]) or "it said nothing"
