"""BASE_BACKUP and UPLOAD_MANIFEST, spoken through libpq as psycopg wraps it (PostgreSQL manual, 55.4).

One class, one exchange. What it yields is the server's stream as it came; volumes and sealing are elsewhere.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from psycopg import OperationalError, pq

from recovery.connections import Connection
from recovery.errors import BackupError, ChainBroken
from recovery.postgres import connect

# A server that sends nothing for this long while it has a backup to send has lost its network or its disk.
_SILENCE_SECONDS = 600

SendManifest = Callable[[Callable[[bytes], None]], None]
"""Passes a parent's backup_manifest, piece by piece, to the function that it is given."""


@dataclass(frozen=True)
class StreamOptions:
    """The options of BASE_BACKUP that this project uses."""

    label: str
    checkpoint: Literal["fast", "spread"] = "fast"
    server_compression: tuple[int, int] | None = None
    """zstd level and workers; None: the client compresses."""
    max_rate_kib_per_second: int | None = None
    include_wal: bool = True
    parent_manifest: SendManifest | None = None
    """An incremental backup: sends the backup_manifest of what it builds on."""

    def command(self) -> bytes:
        options = [
            f"LABEL '{self.label}'",
            f"CHECKPOINT '{self.checkpoint}'",
            "MANIFEST 'yes'",
            "PROGRESS true",
            "WAIT false",
            f"WAL {'true' if self.include_wal else 'false'}",
            "TABLESPACE_MAP true",
        ]
        if self.server_compression is not None:
            level, workers = self.server_compression
            detail = f"level={level},workers={workers}" if workers > 1 else f"level={level}"
            options += ["COMPRESSION 'zstd'", f"COMPRESSION_DETAIL '{detail}'"]
        if self.max_rate_kib_per_second is not None:
            options.append(f"MAX_RATE {self.max_rate_kib_per_second}")
        if self.parent_manifest is not None:
            options.append("INCREMENTAL")
        return f"BASE_BACKUP ({', '.join(options)})".encode()


@dataclass(frozen=True)
class TablespaceSize:
    """`oid` and `path` are None for the data directory itself; the size is the server's estimate in bytes."""

    oid: int | None
    path: str | None
    bytes: int


@dataclass(frozen=True)
class Position:
    lsn: str
    timeline: int


@dataclass(frozen=True)
class Archive:
    """A new archive begins: `tablespace` is an oid, or None for the data directory."""

    tablespace: int | None


@dataclass(frozen=True)
class ManifestBegins:
    """The data that follows is the server's backup_manifest."""


@dataclass(frozen=True)
class Progress:
    bytes_done: int


Message = Archive | ManifestBegins | Progress | memoryview


def check_connection(connection: Connection, *, version_number: int) -> None:
    """Open a replication session and close it: pg_hba.conf has lines of its own for these. Raises PreconditionError."""
    session = pq.PGconn.connect(connect.replication_conninfo(connection, version_number=version_number))
    try:
        if session.status != pq.ConnStatus.OK:
            raise connect.refused(connection, session.get_error_message())
    finally:
        session.finish()


class BaseBackup:
    """A base backup under way. Use it as a context manager, iterate messages() to the end, then read `end`.

    Raises PreconditionError when the connection is refused, ChainBroken when the server refuses an incremental before
    it has sent anything, and BackupError when it ends the backup. Leaving the block early closes the connection, and
    the server abandons the backup.
    """

    def __init__(self, connection: Connection, options: StreamOptions, *, version_number: int) -> None:
        self._connection, self._options = connection, options
        self._version = version_number
        self._where = f"PostgreSQL {connection.host}:{connection.port or 5432}"
        self.start = self.end = Position("", 0)
        self.tablespaces: list[TablespaceSize] = []

    def __enter__(self) -> BaseBackup:
        self._session = pq.PGconn.connect(connect.replication_conninfo(self._connection, version_number=self._version))
        if self._session.status != pq.ConnStatus.OK:
            message = self._session.get_error_message()
            self._session.finish()
            raise connect.refused(self._connection, message)
        try:
            self._begin()
        except BaseException:
            self._session.finish()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.finish()

    def messages(self) -> Iterator[Message]:
        """The server's messages in order; a memoryview is archive or manifest data."""
        session, wait = self._session, self._wait
        while True:
            try:
                size, data = session.get_copy_data(1)
            except OperationalError as problem:
                raise self._failed(str(problem)) from None
            if size > 0:
                message = _decode(data)
                if message is not None:
                    yield message
            elif size == 0:
                wait()
            else:
                break
        self.end = _position(self._result(pq.ExecStatus.TUPLES_OK))
        self._result(pq.ExecStatus.COMMAND_OK)

    def _begin(self) -> None:
        if self._options.include_wal:
            self._hold_wal()
        if self._options.parent_manifest is None:
            self._start()
        else:
            try:
                self._upload_manifest(self._options.parent_manifest)
                self._start()
            except BackupError as problem:
                if self._session.status != pq.ConnStatus.OK:
                    raise
                raise ChainBroken(problem.what, where=self._where, remedy="take a full backup") from None
        self.tablespaces = _tablespaces(self._result(pq.ExecStatus.TUPLES_OK))
        self._result(pq.ExecStatus.COPY_OUT)

    def _start(self) -> None:
        self._session.send_query(self._options.command())
        self.start = _position(self._result(pq.ExecStatus.TUPLES_OK))

    def _upload_manifest(self, send: SendManifest) -> None:
        self._session.send_query(b"UPLOAD_MANIFEST")
        self._result(pq.ExecStatus.COPY_IN)
        try:
            send(self._send)
            self._session.put_copy_end()
        except OperationalError as problem:
            raise self._failed(str(problem)) from None
        self._result(pq.ExecStatus.COMMAND_OK)
        self._drain()

    def _send(self, data: bytes) -> None:
        self._session.put_copy_data(data)

    def _hold_wal(self) -> None:
        """A temporary slot keeps the backup's WAL from being recycled until it is sent; it ends with the session."""
        name = f"recovery_base_{self._session.backend_pid}"
        self._session.send_query(f"CREATE_REPLICATION_SLOT {name} TEMPORARY PHYSICAL (RESERVE_WAL)".encode())
        self._result(pq.ExecStatus.TUPLES_OK)
        self._drain()

    def _drain(self) -> None:
        while self._session.get_result() is not None:
            pass

    def _result(self, *expected: pq.ExecStatus) -> Any:
        while True:
            self._flush()
            while self._session.is_busy():
                self._wait()
            result = self._session.get_result()
            if result is None:
                # libpq reports the end of the COPY, or the connection, as no result.
                if self._session.status != pq.ConnStatus.OK:
                    raise self._failed(self._session.get_error_message())
                raise self._failed("the server ended the backup without a reason")
            if result.status in expected:
                return result
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise self._failed(result.get_error_message())

    def _flush(self) -> None:
        while self._session.flush():
            select.select([], [self._session.socket], [], 1)

    def _wait(self) -> None:
        ready, _, _ = select.select([self._session.socket], [], [], _SILENCE_SECONDS)
        if not ready:
            raise self._failed(f"the server has sent nothing for {_SILENCE_SECONDS} s")
        try:
            self._session.consume_input()
        except Exception as problem:
            raise self._failed(str(problem)) from None

    def _failed(self, message: str) -> BackupError:
        text = message.strip().splitlines()[0] if message.strip() else "the connection was lost"
        text = text.removeprefix("ERROR:").strip()
        if "replication slots are in use" in text:
            remedy = "raise max_replication_slots, or drop a slot that is not needed"
        elif "permission denied" in text:
            remedy = f'ALTER ROLE "{self._connection.login}" REPLICATION'
        else:
            remedy = "nothing was committed; see the server's log, then run the backup again"
        return BackupError(text, where=self._where, remedy=remedy)


def _decode(data: memoryview) -> Message | None:
    """One CopyData message (manual 55.4, BASE_BACKUP): n, m, d or p."""
    kind = data[0]
    if kind == 0x64:  # d
        return data[1:]
    if kind == 0x70:  # p
        return Progress(struct.unpack_from(">Q", data, 1)[0])
    if kind == 0x6E:  # n: archive name, then the tablespace's path, empty for the data directory
        name = bytes(data[1:]).split(b"\0")[0].decode()
        stem = name.partition(".")[0]
        return Archive(None if stem == "base" else int(stem))
    if kind == 0x6D:  # m
        return ManifestBegins()
    return None


def _position(result: Any) -> Position:
    return Position(result.get_value(0, 0).decode(), int(result.get_value(0, 1)))


def _tablespaces(result: Any) -> list[TablespaceSize]:
    found = []
    for row in range(result.ntuples):
        oid, path, kib = (result.get_value(row, column) for column in range(3))
        found.append(TablespaceSize(int(oid) if oid else None, path.decode() if path else None, int(kib or 0) * 1024))
    return found
