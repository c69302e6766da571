"""WAL in a repository: where it lies, how it is put there once and never changed, and how it is read back.

A whole segment is one sealed object. The open segment lies in pieces, named by the bytes of it that they hold, which go
when the whole has been stored. What a segment holds is known without a key by the hash that travels with the object.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from recovery.errors import ConditionsUnsupported, IntegrityError, ObjectExists, ObjectMissing, StoreError
from recovery.postgres.wal.history import History, parse_history
from recovery.postgres.wal.positions import Segment, format_lsn
from recovery.repository import layout
from recovery.repository.in_memory import content_hash, seal_in_memory, unseal_in_memory
from recovery.repository.store import ObjectInfo, ObjectStore, put_final

_DEFAULT_SEGMENT_BYTES = 16 << 20
_SUFFIX = ".zst.age"
_PIECES = ".pieces/"
_HISTORY = ".history"


@dataclass(frozen=True, order=True)
class Piece:
    """A part of an open segment: the bytes from `begin` up to `end`, counted from the segment's start."""

    begin: int
    end: int


@dataclass
class Index:
    """What the repository holds of one cluster's WAL. Sizes are of the stored objects, in bytes."""

    segment_bytes: int
    segments: dict[Segment, int] = field(default_factory=dict)
    pieces: dict[Segment, dict[Piece, int]] = field(default_factory=dict)
    written: dict[Segment, datetime] = field(default_factory=dict)
    """When the newest object of a segment was stored, by the store's clock."""
    histories: dict[int, History] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    """Keys that are nothing of WAL's."""

    def open_bytes(self, segment: Segment) -> int:
        """How far the pieces of a segment reach without a hole."""
        return covered(self.pieces.get(segment, ()))

    def history(self, timeline: int) -> History | None:
        """How a timeline grew; None where its history file is not stored."""
        return self.histories.get(timeline) or (History(1) if timeline == 1 else None)

    def along(self, history: History, number: int) -> Segment:
        """The segment of this number on a history, as recovery chooses it: of the newest timeline that reaches it."""
        for timeline in (history.timeline, *(each.timeline for each in reversed(history.ancestors))):
            if history.begin_of(timeline) // self.segment_bytes <= number:
                return Segment(timeline, number)
        raise AssertionError("unreachable: every history begins at 0")

    def reach(self, history: History, lsn: int) -> int:
        """How far WAL is stored without a hole, from `lsn` on, along a history."""
        number = lsn // self.segment_bytes
        while (segment := self.along(history, number)) in self.segments:
            number += 1
        return max(lsn, segment.start(self.segment_bytes) + self.open_bytes(segment))

    def end_of(self, timeline: int) -> int | None:
        """The LSN up to which the newest segment of a timeline is stored; None where the timeline has no WAL."""
        newest = max(
            (segment for segment in (*self.segments, *self.pieces) if segment.timeline == timeline), default=None
        )
        if newest is None:
            return None
        stored = self.segment_bytes if newest in self.segments else self.open_bytes(newest)
        return newest.start(self.segment_bytes) + stored

    def timelines(self) -> list[int]:
        """The timelines that have WAL, oldest first."""
        return sorted({segment.timeline for segment in (*self.segments, *self.pieces)})


def covered(pieces: Iterable[Piece]) -> int:
    """The end of the row of pieces that begins at 0 and has no hole."""
    end = 0
    for piece in sorted(pieces):
        if piece.begin > end:
            break
        end = max(end, piece.end)
    return end


def chain(pieces: Iterable[Piece]) -> list[Piece]:
    """The fewest pieces that give covered() bytes, in order."""
    left, end = sorted(pieces), 0
    chosen: list[Piece] = []
    while True:
        fitting = [piece for piece in left if piece.begin <= end < piece.end]
        if not fitting:
            return chosen
        best = max(fitting, key=lambda piece: piece.end)
        chosen.append(best)
        end = best.end


@dataclass(frozen=True)
class Archive:
    """The WAL of one cluster in one repository. `recipients` are needed to write only."""

    store: ObjectStore
    name: str
    system_identifier: str
    segment_bytes: int
    recipients: Sequence[Any] = ()

    @classmethod
    def find(cls, store: ObjectStore, name: str, system_identifier: str) -> Archive:
        """For reading: the size of a segment is what the first stored one measures, or PostgreSQL's default."""
        size = _DEFAULT_SEGMENT_BYTES
        for info in store.scan(layout.wal_folder(name, system_identifier)):
            if info.key.endswith(_SUFFIX) and _PIECES not in info.key:
                size = int(store.head(info.key).metadata.get("sealed-bytes", size))
                break
        return cls(store, name, system_identifier, size)

    @property
    def folder(self) -> str:
        return layout.wal_folder(self.name, self.system_identifier)

    def segment_key(self, segment: Segment) -> str:
        return f"{self.folder}{segment.timeline:08X}/{segment.name(self.segment_bytes)}{_SUFFIX}"

    def piece_key(self, segment: Segment, piece: Piece) -> str:
        name = f"{segment.name(self.segment_bytes)}{_PIECES}{piece.begin:08X}-{piece.end:08X}{_SUFFIX}"
        return f"{self.folder}{segment.timeline:08X}/{name}"

    def history_key(self, timeline: int) -> str:
        return f"{self.folder}{timeline:08X}{_HISTORY}"

    def index(self) -> Index:
        """List what there is; reads the histories, and nothing else."""
        found = Index(self.segment_bytes)
        for info in self.store.scan(self.folder):
            self._file(found, info)
        return found

    def put_segment(self, segment: Segment, data: bytes | bytearray) -> None:
        """Store a whole segment. The same bytes again are success; other bytes are an IntegrityError."""
        self._put(self.segment_key(segment), data, locked=True)

    def put_piece(self, segment: Segment, piece: Piece, data: bytes | bytearray | memoryview) -> None:
        """Store a part of the open segment; it carries no lock."""
        self._put(self.piece_key(segment, piece), data, locked=False)

    def prove_piece(self, segment: Segment, piece: Piece, data: bytes) -> None:
        """A piece that is stored must hold these bytes; raises IntegrityError when it holds others."""
        self._compare(self.piece_key(segment, piece), content_hash(data))

    def put_history(self, timeline: int, text: bytes) -> None:
        """Keep a timeline's history file as the server gave it: names of restore points, and no data."""
        key = self.history_key(timeline)
        try:
            put_final(self.store, key, text)
        except ObjectExists:
            raise IntegrityError(
                "the repository holds another history of this timeline",
                where=f"{self.store.description}/{key}",
                remedy="two servers of this identity took the same timeline: stop the one that is not the primary",
            ) from None

    def delete_pieces(self, segment: Segment, pieces: Iterable[Piece]) -> None:
        """Forget pieces that a whole segment, or a larger piece, has replaced. What cannot go now is swept later."""
        for piece in pieces:
            with contextlib.suppress(StoreError):
                self.store.delete(self.piece_key(segment, piece))

    def read_segment(self, segment: Segment, *, identities: Sequence[Any]) -> bytes:
        """A whole segment, unsealed; raises ObjectMissing, IntegrityError, SealError, StoreError."""
        data = self._read(self.segment_key(segment), identities)
        if len(data) != self.segment_bytes:
            raise IntegrityError(
                f"the segment has {len(data)} bytes, and {self.segment_bytes} make one",
                where=f"{self.store.description}/{self.segment_key(segment)}",
                remedy="restore to a moment before it, or from another copy",
            )
        self._check_header(self.segment_key(segment), segment, data)
        return data

    def read_pieces(self, segment: Segment, pieces: Iterable[Piece], *, identities: Sequence[Any]) -> bytes:
        """The open segment's beginning out of its pieces, filled up with zeros: recovery ends where they begin."""
        data = bytearray(self.segment_bytes)
        for piece in chain(pieces):
            data[piece.begin : piece.end] = self._read(self.piece_key(segment, piece), identities)
        return bytes(data)

    def check(self, segment: Segment, index: Index, *, opens: bool, identities: Sequence[Any]) -> None:
        """Read all that is stored of a segment and compare; raises IntegrityError, ObjectMissing, SealError."""
        if segment in index.segments:
            keys = [self.segment_key(segment)]
        else:
            keys = [self.piece_key(segment, piece) for piece in chain(index.pieces[segment])]
        for key in keys:
            stored = self.store.get(key)
            where = f"{self.store.description}/{key}"
            expected = self.store.head(key).metadata.get("stored-sha256")
            if expected is not None and hashlib.sha256(stored).hexdigest() != expected:
                raise IntegrityError("the object's SHA-256 differs from what was written", where=where)
            if opens:
                data = unseal_in_memory(stored, identities=identities, where=where)
                if segment in index.segments:
                    self._check_header(key, segment, data)

    def read_file(self, name: str, *, identities: Sequence[Any]) -> bytes | None:
        """A file that recovery asks for by name: a segment, whole or open, or a history; None when it is not here."""
        try:
            if name.endswith(_HISTORY):
                return self.store.get(f"{self.folder}{name}")
            segment = Segment.parse(name, self.segment_bytes)
            if segment is None:
                return None
            try:
                return self.read_segment(segment, identities=identities)
            except ObjectMissing:
                return self._read_open(segment, identities)
        except ObjectMissing:
            return None

    def _read_open(self, segment: Segment, identities: Sequence[Any]) -> bytes | None:
        found = Index(self.segment_bytes)
        for info in self.store.scan(self.segment_key(segment).removesuffix(_SUFFIX) + _PIECES):
            self._file(found, info)
        pieces = found.pieces.get(segment, {})
        return self.read_pieces(segment, pieces, identities=identities) if covered(pieces) else None

    def _check_header(self, key: str, segment: Segment, data: bytes) -> None:
        """A segment begins with where it belongs (xlog_internal.h, XLogLongPageHeaderData)."""
        address, identifier = struct.unpack_from("=8xQ8xQ", data)
        if (str(identifier), address) != (self.system_identifier, segment.start(self.segment_bytes)):
            raise IntegrityError(
                f"this is the WAL of cluster {identifier} at {format_lsn(address)}",
                where=f"{self.store.description}/{key}",
                remedy="it was copied to a place where it does not belong: bring back the right object",
            )

    def _read(self, key: str, identities: Sequence[Any]) -> bytes:
        return unseal_in_memory(self.store.get(key), identities=identities, where=f"{self.store.description}/{key}")

    def _put(self, key: str, data: bytes | bytearray | memoryview, *, locked: bool) -> None:
        stored, sealed = seal_in_memory(key, data, recipients=self.recipients)
        metadata = sealed.description()
        try:
            self.store.put(key, stored, only_if_absent=True, locked=locked, metadata=metadata)
        except ObjectExists:
            self._compare(key, sealed.sealed_hash)
        except ConditionsUnsupported:
            try:
                self._compare(key, sealed.sealed_hash)
            except ObjectMissing:
                self.store.put(key, stored, locked=locked, metadata=metadata)

    def _compare(self, key: str, expected: str) -> None:
        if self.store.head(key).metadata.get("sealed-hash") != expected:
            raise IntegrityError(
                "the repository holds other WAL under this name",
                where=f"{self.store.description}/{key}",
                remedy="nothing was overwritten: another server writes here under this identity, or the primary was "
                "rolled back; find out which",
            )

    def _file(self, found: Index, info: ObjectInfo) -> None:
        key = info.key
        name = key.removeprefix(self.folder)
        if name.endswith(_HISTORY) and "/" not in name:
            timeline = int(name.removesuffix(_HISTORY), 16)
            found.histories[timeline] = parse_history(timeline, self.store.get(key))
            return
        stem = name.partition("/")[2].removesuffix(_SUFFIX)
        whole, separator, part = stem.partition(_PIECES)
        segment = Segment.parse(whole, self.segment_bytes)
        if segment is None or not name.startswith(f"{segment.timeline:08X}/"):
            found.foreign.append(key)
            return
        found.written[segment] = max(info.modified, found.written.get(segment, info.modified))
        if separator:
            begin, end = (int(value, 16) for value in part.split("-"))
            found.pieces.setdefault(segment, {})[Piece(begin, end)] = info.size
        else:
            found.segments[segment] = info.size
