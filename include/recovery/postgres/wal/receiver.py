"""Receives one timeline's WAL, stores it, and reports it as flushed only when the store has acknowledged it.

Whole segments go up side by side; the open one goes up in pieces, at most one per interval, from the first byte on. The
position that the server is told is the end of the unbroken row of acknowledged bytes. So the slot keeps what is not yet
safe, and a commit that waits for this receiver (synchronous_standby_names) has returned only when the store has it.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from recovery.errors import StoreUnreachable, WalError
from recovery.postgres.wal.archive import Archive, Piece, chain, covered
from recovery.postgres.wal.positions import Segment, format_lsn
from recovery.postgres.wal.session import KeepAlive, TimelineEnds, WalData, WalSession

_IN_FLIGHT = 4
_STATUS_SECONDS = 5.0
_DEAD_SECONDS = 60.0
# A server that is shut down waits for its receivers to confirm everything: a dead store must not hold it for long.
_STORE_SECONDS = 30.0
# So many pieces of one segment become one: a restore of a quiet system's open segment need not fetch hundreds.
_PIECES = 16


@dataclass
class Progress:
    """Where a stream is: `received` and `stored` are LSNs, `server` is the end of WAL that the server last named."""

    timeline: int = 0
    received: int = 0
    stored: int = 0
    server: int = 0
    bytes_stored: int = 0


Tick = Callable[[Progress], None]
"""Called about once a second; it may raise to end the stream."""


class _OpenSegment:
    """The segment that is being received. `pieces` are stored or on their way; `sent` is how far they reach."""

    def __init__(self, segment: Segment, buffer: bytearray, pieces: Iterable[Piece]) -> None:
        self.segment, self.pieces = segment, set(pieces)
        self.data, self.filled = buffer, 0
        self.sent = covered(self.pieces)

    def fill(self, data: memoryview) -> memoryview:
        """Take what fits, and return the rest."""
        taken = min(len(data), len(self.data) - self.filled)
        self.data[self.filled : self.filled + taken] = data[:taken]
        self.filled += taken
        return data[taken:]

    @property
    def full(self) -> bool:
        return self.filled == len(self.data)

    def unsent(self) -> bool:
        return self.filled > self.sent

    def next_piece(self) -> tuple[Piece, set[Piece]]:
        """What goes up next, and the pieces that it replaces."""
        replaced = self.pieces if len(self.pieces) >= _PIECES else set()
        piece = Piece(0 if replaced else self.sent, self.filled)
        self.pieces = (self.pieces - replaced) | {piece}
        self.sent = piece.end
        return piece, replaced


@dataclass(frozen=True)
class _Upload:
    """When it is done, everything before `end` is stored, if all before it are."""

    end: int
    future: Future[None]
    begun: float


class Receiver:
    """One stream over one session. run() returns the next timeline where this one ends, or None when told to stop."""

    def __init__(
        self,
        session: WalSession,
        archive: Archive,
        *,
        slot: str,
        interval_seconds: float,
        progress: Progress,
        tick: Tick,
        stop: Callable[[], bool],
    ) -> None:
        self._session, self._archive, self._slot = session, archive, slot
        self._interval, self._progress, self._tick, self._stop = interval_seconds, progress, tick, stop
        self._uploads: deque[_Upload] = deque()
        self._spare: list[bytearray] = []
        self._heard = self._confirmed_at = self._piece_at = self._ticked_at = 0.0

    def run(self, timeline: int, lsn: int, pieces: Iterable[Piece]) -> TimelineEnds | None:
        """Stream from `lsn`, the start of a segment of which `pieces` are stored already.

        Raises StoreError, IntegrityError (other WAL under the same name), WalError, WalGone. What is not stored stays
        with the server; nothing is lost by any of them.
        """
        size = self._archive.segment_bytes
        self._open = _OpenSegment(Segment.at(timeline, lsn, size), bytearray(size), pieces)
        # Stored by an earlier stream: they count when the server has sent the same bytes again.
        self._unproven = self._open.sent
        progress = self._progress
        progress.timeline, progress.received, progress.stored = timeline, lsn, lsn
        ends = self._session.start(self._slot, lsn, timeline)
        if ends is not None:
            return ends
        self._heard = self._confirmed_at = time.monotonic()
        self._workers = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="wal")
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        try:
            ends = self._stream()
            self._finish()
            if ends is None:
                self._session.finish()
            return ends
        finally:
            # Uploads that hang are left to end by themselves: whatever they still store is the same again.
            self._workers.shutdown(wait=False, cancel_futures=True)
            self._wake_read.close()
            self._wake_write.close()

    def _stream(self) -> TimelineEnds | None:
        while not self._stop():
            message = self._session.receive()
            if message is None:
                self._attend()
                self._wait()
                continue
            self._heard = time.monotonic()
            if isinstance(message, WalData):
                self._take(message)
                self._progress.server = max(message.end_lsn, self._progress.received)
            elif isinstance(message, KeepAlive):
                self._progress.server = message.end_lsn
                if message.reply:
                    self._confirm()
            else:
                return message
            self._attend()
        return None

    def _take(self, message: WalData) -> None:
        """Add what has come to the open segment; a full one goes up whole."""
        if message.lsn != self._progress.received:
            raise WalError(
                f"the server sent {format_lsn(message.lsn)} after {format_lsn(self._progress.received)}",
                where=self._session.where,
                remedy="it is tried again from the last stored byte",
            )
        data = message.data
        while data:
            rest = self._open.fill(data)
            self._progress.received += len(data) - len(rest)
            data = rest
            if self._unproven and self._open.filled >= self._unproven:
                self._prove_pieces()
            if self._open.full:
                self._send_whole()

    def _attend(self) -> None:
        """What is due whether or not anything came."""
        self._collect()
        now = time.monotonic()
        if self._open.unsent() and not self._uploads and now - self._piece_at >= self._interval:
            self._send_piece()
        if now - self._confirmed_at >= _STATUS_SECONDS:
            self._confirm(reply=now - self._heard > _STATUS_SECONDS)
        if now - self._heard > _DEAD_SECONDS:
            raise WalError(
                f"the server has not answered for {_DEAD_SECONDS:.0f} s",
                where=self._session.where,
                remedy="it is tried again",
            )
        self._watch_store()

    def _watch_store(self) -> None:
        now = time.monotonic()
        if self._uploads and now - self._uploads[0].begun > _STORE_SECONDS:
            raise self._store_is_silent()
        if now - self._ticked_at >= 1.0:
            self._ticked_at = now
            self._tick(self._progress)

    def _wait(self) -> None:
        timeout = 1.0
        if self._open.unsent() and not self._uploads:
            timeout = max(0.0, min(timeout, self._piece_at + self._interval - time.monotonic()))
        self._sleep(timeout, self._session.socket, self._wake_read)

    def _sleep(self, seconds: float, *descriptors: int | socket.socket) -> None:
        ready, _, _ = select.select(descriptors, [], [], seconds)
        if self._wake_read in ready:
            self._wake_read.recv(4096)

    def _send_whole(self) -> None:
        done = self._open
        # Buffers go round: new memory would have to be cleared, a page at a time.
        buffer = self._spare.pop() if self._spare else bytearray(len(done.data))
        self._open = _OpenSegment(done.segment.next(), buffer, ())
        while len(self._uploads) >= _IN_FLIGHT:
            # The server must hear from us also while the store keeps us waiting.
            self._collect()
            if time.monotonic() - self._confirmed_at >= _STATUS_SECONDS:
                self._confirm()
            self._watch_store()
            self._sleep(1.0, self._wake_read)
        under_way = [upload.future for upload in self._uploads]

        def store() -> None:
            self._archive.put_segment(done.segment, done.data)
            if done.pieces:
                # A piece that arrives after it was deleted would stay.
                wait(under_way)
                self._archive.delete_pieces(done.segment, done.pieces)
            self._spare.append(done.data)

        self._submit(done.segment, self._archive.segment_bytes, store)

    def _send_piece(self) -> None:
        self._piece_at = time.monotonic()
        segment = self._open.segment
        piece, replaced = self._open.next_piece()
        data = bytes(self._open.data[piece.begin : piece.end])

        def store() -> None:
            self._archive.put_piece(segment, piece, data)
            self._archive.delete_pieces(segment, replaced)

        self._submit(segment, piece.end, store)

    def _prove_pieces(self) -> None:
        segment, data = self._open.segment, bytes(self._open.data[: self._unproven])
        row = chain(self._open.pieces)

        def prove() -> None:
            for piece in row:
                self._archive.prove_piece(segment, piece, data[piece.begin : piece.end])

        self._submit(segment, self._unproven, prove)
        self._unproven = 0

    def _submit(self, segment: Segment, stored: int, work: Callable[[], None]) -> None:
        """`work` makes sure that the store has the first `stored` bytes of a segment."""
        future = self._workers.submit(work)
        end = segment.start(self._archive.segment_bytes) + stored
        self._uploads.append(_Upload(end, future, time.monotonic()))
        future.add_done_callback(lambda _: self._wake())

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"x")
        except OSError:
            return

    def _collect(self) -> None:
        """Count what the store has acknowledged, in order, and tell the server."""
        before = self._progress.stored
        while self._uploads and self._uploads[0].future.done():
            upload = self._uploads.popleft()
            upload.future.result()
            self._progress.stored = max(self._progress.stored, upload.end)
        if self._progress.stored > before:
            self._progress.bytes_stored += self._progress.stored - before
            self._confirm()

    def _confirm(self, *, reply: bool = False) -> None:
        self._session.confirm(self._progress.stored, reply=reply)
        self._confirmed_at = time.monotonic()

    def _finish(self) -> None:
        """Store what has been received: at a hand-over, and at the end of a timeline."""
        if self._open.unsent():
            self._send_piece()
        while self._uploads:
            wait([self._uploads[0].future], timeout=_STORE_SECONDS)
            if not self._uploads[0].future.done():
                raise self._store_is_silent()
            self._collect()

    def _store_is_silent(self) -> StoreUnreachable:
        return StoreUnreachable(
            f"nothing was acknowledged for {_STORE_SECONDS:.0f} s",
            where=self._archive.store.description,
            remedy="WAL waits on the server; check the store",
        )
