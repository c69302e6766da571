"""The WAL part of the streaming replication protocol, spoken through libpq (PostgreSQL manual, 55.4).

One class, one connection. What the WAL means and where it goes is the receiver's business.
"""

from __future__ import annotations

import select
import struct
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from psycopg import OperationalError, pq

from recovery.connections import Connection
from recovery.errors import PreconditionError, WalError, WalGone
from recovery.postgres import connect
from recovery.postgres.wal.positions import format_lsn, parse_lsn

_ANSWER_SECONDS = 60
# Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01.
_EPOCH = 946_684_800_000_000


@dataclass(frozen=True)
class Identity:
    """IDENTIFY_SYSTEM: the cluster, the timeline it is on, and how far its WAL is written to disk."""

    system_identifier: str
    timeline: int
    flush_lsn: int


@dataclass(frozen=True)
class WalData:
    """WAL from `lsn` on; `end_lsn` is how far the server had it when it sent this."""

    lsn: int
    end_lsn: int
    data: memoryview


@dataclass(frozen=True)
class KeepAlive:
    """The end of the server's WAL; `reply` asks for a confirmation at once."""

    end_lsn: int
    reply: bool


@dataclass(frozen=True)
class TimelineEnds:
    """The server has no more of this timeline: it goes on as `timeline` from `lsn`."""

    timeline: int
    lsn: int


Message = WalData | KeepAlive | TimelineEnds


class WalSession:
    """A replication session for WAL. Raises PreconditionError (no connection), WalError, WalGone."""

    def __init__(self, connection: Connection, *, version_number: int) -> None:
        self._connection = connection
        self.where = f"PostgreSQL {connection.host}:{connection.port or 5432}"
        self._session = pq.PGconn.connect(connect.wal_conninfo(connection, version_number=version_number))
        if self._session.status != pq.ConnStatus.OK:
            message = self._session.get_error_message()
            self._session.finish()
            raise connect.refused(connection, message)
        self._streams = False

    def __enter__(self) -> WalSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.finish()

    @property
    def socket(self) -> int:
        return self._session.socket

    def identify(self) -> Identity:
        row = self._one("IDENTIFY_SYSTEM")
        return Identity(row[0] or "", int(row[1] or 0), parse_lsn(row[2] or "0/0"))

    def segment_bytes(self) -> int:
        text = self._one("SHOW wal_segment_size")[0] or ""
        for unit, size in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
            if text.endswith(unit):
                return int(text.removesuffix(unit)) * size
        return int(text.removesuffix("B"))

    def create_slot(self, name: str) -> None:
        self._one(f"CREATE_REPLICATION_SLOT {name} PHYSICAL (RESERVE_WAL)")

    def drop_slot(self, name: str) -> None:
        self._result(f"DROP_REPLICATION_SLOT {name}", pq.ExecStatus.COMMAND_OK)

    def history(self, timeline: int) -> bytes:
        """The history file of a timeline."""
        result = self._result(f"TIMELINE_HISTORY {timeline}", pq.ExecStatus.TUPLES_OK)
        return bytes(result.get_value(0, 1) or b"")

    def start(self, slot: str, lsn: int, timeline: int) -> TimelineEnds | None:
        """Begin to stream. Returns at once with the next timeline where this one ends at `lsn` already."""
        command = f"START_REPLICATION SLOT {slot} PHYSICAL {format_lsn(lsn)} TIMELINE {timeline}"
        result = self._result(command, pq.ExecStatus.COPY_BOTH, pq.ExecStatus.TUPLES_OK)
        self._streams = result.status == pq.ExecStatus.COPY_BOTH
        return None if self._streams else _next_timeline(result)

    def receive(self) -> Message | None:
        """The next message that has arrived; None when there is none yet: wait for `socket` to be readable."""
        try:
            size, data = self._session.get_copy_data(1)
            if size == 0:
                self._session.consume_input()
                size, data = self._session.get_copy_data(1)
        except OperationalError as problem:
            raise self._failed(str(problem)) from None
        if size == 0:
            return None
        if size < 0:
            return self._end_of_timeline()
        if data[0] == 0x77:  # w: start, end of WAL, clock, bytes
            lsn, end_lsn = struct.unpack_from(">QQ", data, 1)
            return WalData(lsn, end_lsn, data[25:])
        if data[0] == 0x6B:  # k: end of WAL, clock, reply
            return KeepAlive(struct.unpack_from(">Q", data, 1)[0], bool(data[17]))
        raise self._failed(f"the server sent a message of unknown kind {data[0]:#x}")

    def confirm(self, lsn: int, *, reply: bool = False) -> None:
        """Report everything before `lsn` as written, flushed and applied; with `reply` ask for an answer.

        A stream that has ended takes no reports: what was stored after that counts when the next one begins.
        """
        if not self._streams:
            return
        clock = time.time_ns() // 1000 - _EPOCH
        try:
            self._session.put_copy_data(struct.pack(">cQQQQB", b"r", lsn, lsn, lsn, clock, reply))
            self._flush()
        except OperationalError as problem:
            raise self._failed(str(problem)) from None

    def finish(self) -> None:
        """End the stream in order, so that the slot is free at once."""
        self._streams = False
        try:
            self._session.put_copy_end()
            self._flush()
        except OperationalError:
            return

    def _end_of_timeline(self) -> TimelineEnds:
        self._streams = False
        result = self._take(
            pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_BOTH, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK
        )
        if result.status in (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_BOTH):
            self.finish()
            result = self._take(pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise self._failed("the server ended the stream (is it shutting down?)")
        ends = _next_timeline(result)
        self._drain()
        return ends

    def _one(self, command: str) -> list[str | None]:
        result = self._result(command, pq.ExecStatus.TUPLES_OK)
        values = [result.get_value(0, column) for column in range(result.nfields)]
        return [None if value is None else value.decode() for value in values]

    def _result(self, command: str, *expected: pq.ExecStatus) -> Any:
        self._session.send_query(command.encode())
        result = self._take(*expected)
        if result.status != pq.ExecStatus.COPY_BOTH:
            self._drain()
        return result

    def _take(self, *expected: pq.ExecStatus) -> Any:
        self._flush()
        while self._session.is_busy():
            ready, _, _ = select.select([self._session.socket], [], [], _ANSWER_SECONDS)
            if not ready:
                raise self._failed(f"the server has not answered for {_ANSWER_SECONDS} s")
            try:
                self._session.consume_input()
            except OperationalError as problem:
                raise self._failed(str(problem)) from None
        result = self._session.get_result()
        if result is None:
            raise self._failed(self._session.get_error_message())
        if result.status in expected:
            return result
        raise self._failed(result.get_error_message() or f"an unexpected answer ({pq.ExecStatus(result.status).name})")

    def _drain(self) -> None:
        while self._session.get_result() is not None:
            pass

    def _flush(self) -> None:
        while self._session.flush():
            select.select([], [self._session.socket], [], 1)

    def _failed(self, message: str) -> WalError | PreconditionError:
        lines = [line for line in message.strip().splitlines() if line.strip()]
        text = lines[0].removeprefix("ERROR:").removeprefix("FATAL:").strip() if lines else "the connection was lost"
        if "has already been removed" in text or "invalidated" in message or "can no longer" in text:
            return WalGone(text, where=self.where, remedy="a gap is recorded; take a full backup")
        if "is active for PID" in text:
            return WalError(text, where=self.where, remedy="another receiver streams from this slot: let it, or end it")
        if "replication slots are in use" in text:
            return PreconditionError(
                text, where=self.where, remedy="raise max_replication_slots, or drop an unused slot"
            )
        if "ahead of the WAL flush position" in text:
            remedy = "this server has less than the repository: is it an old primary, or a standby that lags?"
            return WalError(text, where=self.where, remedy=remedy)
        return WalError(text, where=self.where, remedy="it is tried again; see the server's log")


def _next_timeline(result: Any) -> TimelineEnds:
    return TimelineEnds(int(result.get_value(0, 0)), parse_lsn(result.get_value(0, 1).decode()))
