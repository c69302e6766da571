"""A base backup, full or incremental: the stream, cut into independent volumes, sealed and uploaded as it arrives."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from recovery.config import BaseBackupOptions
from recovery.connections import Connection
from recovery.errors import BackupError, ChainBroken, IntegrityError, ObjectMissing
from recovery.manifest import Server, StoredObject, Wal
from recovery.postgres.replication import (
    Archive,
    BaseBackup,
    ManifestBegins,
    Progress,
    SendManifest,
    StreamOptions,
    TablespaceSize,
)
from recovery.postgres.tar import BLOCK, END_OF_ARCHIVE, Member, TarStream
from recovery.repository import layout
from recovery.repository.catalog import Backup
from recovery.repository.sealing import Sealed, SealingWriter, unseal
from recovery.repository.store import ObjectStore

GIB = 1 << 30
VOLUME_BYTES = GIB
_TICK_SECONDS = 0.5

Tick = Callable[[int, int], None]
"""Called about twice a second with the bytes done and the bytes expected; it may raise to end the work."""


@dataclass(frozen=True)
class Taken:
    """What a base backup left in the store."""

    objects: list[StoredObject]
    wal: Wal


def take(
    connection: Connection,
    store: ObjectStore,
    *,
    folder: str,
    label: str,
    server: Server,
    options: BaseBackupOptions,
    recipients: Sequence[Any],
    parent: Backup | None = None,
    tick: Tick = lambda done, expected: None,
    volume_bytes: int = VOLUME_BYTES,
) -> Taken:
    """Copy the whole cluster into volumes below `folder`, or what changed since `parent`; nothing is committed here.

    Raises ChainBroken before anything is stored when no incremental can be built on `parent`, BackupError or
    PreconditionError (the server), StoreError (the store). Uploads under way are aborted.
    """
    compression, rate = options.compression, options.max_rate_mib_per_second
    stream_options = StreamOptions(
        label=label,
        checkpoint=options.checkpoint,
        server_compression=(compression.level, compression.workers) if compression.where == "server" else None,
        max_rate_kib_per_second=rate * 1024 if rate else None,
        parent_manifest=_manifest_of(store, parent) if parent is not None else None,
    )
    with BaseBackup(connection, stream_options, version_number=server.version_number) as stream:
        if parent is not None:
            _check_timeline(stream, parent)
        volumes = _Volumes(
            store, folder, options=options, recipients=recipients, sizes=stream.tablespaces, volume_bytes=volume_bytes
        )
        try:
            _copy(stream, volumes, tick)
            objects = volumes.finish()
        except BaseException:
            volumes.abort()
            raise
        wal = Wal(
            start_lsn=stream.start.lsn,
            start_timeline=stream.start.timeline,
            end_lsn=stream.end.lsn,
            end_timeline=stream.end.timeline,
            included=stream_options.include_wal,
        )
    return Taken(objects, wal)


def _manifest_of(store: ObjectStore, parent: Backup) -> SendManifest:
    """A parent's backup_manifest is in clear: the worker that reads it has no key."""

    def send(to: Callable[[bytes], None]) -> None:
        class Sink:
            def write(self, data: bytes, /) -> None:
                to(data)

        try:
            for sealed in parent.objects("backup_manifest"):
                unseal(store, sealed, Sink(), identities=())
        except (ObjectMissing, IntegrityError) as problem:
            raise ChainBroken(
                f"the backup_manifest of {parent.id} is of no use: {problem.what}",
                where=problem.where,
                remedy="take a full backup",
            ) from None

    return send


def _check_timeline(stream: BaseBackup, parent: Backup) -> None:
    """A promotion between the decision and now: only here is the timeline that the backup runs on certain."""
    before = parent.manifest.wal
    if before is None or stream.start.timeline != before.end_timeline:
        raise ChainBroken(
            f"the server has moved to timeline {stream.start.timeline} since {parent.id}", remedy="take a full backup"
        )


def _copy(stream: BaseBackup, volumes: _Volumes, tick: Tick) -> None:
    expected = sum(size.bytes for size in stream.tablespaces)
    done, next_tick = 0, 0.0
    for message in stream.messages():
        if isinstance(message, memoryview):
            volumes.write(message)
            continue
        if isinstance(message, Progress):
            done = message.bytes_done
        elif isinstance(message, Archive):
            volumes.begin_archive(message.tablespace)
        elif isinstance(message, ManifestBegins):
            volumes.begin_manifest()
        if time.monotonic() >= next_tick:
            tick(done, expected)
            next_tick = time.monotonic() + _TICK_SECONDS
    tick(done, max(done, expected))


class _Volumes:
    """Cuts the server's archives at member boundaries and seals each volume; one may finish while the next fills."""

    def __init__(
        self,
        store: ObjectStore,
        folder: str,
        *,
        options: BaseBackupOptions,
        recipients: Sequence[Any],
        sizes: Sequence[TablespaceSize],
        volume_bytes: int,
    ) -> None:
        self._store, self._folder = store, folder
        self._compression = options.compression
        self._recipients = recipients
        self._sizes = {size.oid: size.bytes for size in sizes}
        self._limit = volume_bytes
        self._tablespace: int | None = None
        self._tar: TarStream | None = None
        self._writer: SealingWriter | None = None
        self._filled = 0
        self._padding = b""
        self._count = 0
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="finish volume")
        self._finishing: Future[Sealed] | None = None
        self._finishing_writer: SealingWriter | None = None
        self._finishing_as: dict[str, Any] = {}
        self._objects: list[StoredObject] = []
        self._pending: dict[str, Any] = {}
        self._write: Callable[[memoryview], object] = _nothing_begun

    def write(self, data: memoryview) -> None:
        self._write(data)

    def begin_archive(self, tablespace: int | None) -> None:
        self._end_archive()
        self._tablespace = tablespace
        if self._compression.where == "server":
            self._write = self._open_volume().write
        else:
            self._tar = TarStream(self)
            self._write = self._tar.write

    def begin_manifest(self) -> None:
        """Postgres' own backup_manifest: names, sizes and checksums and no data, in clear for the next incremental."""
        self._end_archive()
        self._collect()
        self._writer = SealingWriter(
            self._store, self._folder + layout.BACKUP_MANIFEST, recipients=(), level=3, size_limit=GIB
        )
        self._pending = {"role": "backup_manifest"}
        self._write = self._writer.write

    def finish(self) -> list[StoredObject]:
        self._end_archive()
        self._collect()
        self._finisher.shutdown()
        if not any(item.role == "backup_manifest" for item in self._objects):
            raise BackupError("the server sent no backup_manifest", remedy="report this, with the server's version")
        return self._objects

    def abort(self) -> None:
        self._finisher.shutdown(wait=True, cancel_futures=True)
        for writer in (self._finishing_writer, self._writer):
            if writer is not None:
                writer.abort()

    # What TarStream calls.

    def begin(self, member: Member) -> None:
        size = BLOCK + member.size + -member.size % BLOCK
        if self._writer is not None and self._filled + size > self._limit:
            self._close_volume()
        writer = self._writer or self._open_volume()
        writer.write(member.header)
        self._padding = bytes(-member.size % BLOCK)
        self._filled += size

    def data(self, piece: memoryview) -> None:
        assert self._writer is not None
        self._writer.write(piece)

    def end(self) -> None:
        assert self._writer is not None
        if self._padding:
            self._writer.write(self._padding)

    # Volumes.

    def _end_archive(self) -> None:
        if self._tar is not None:
            self._tar.finish()
            self._tar = None
        if self._writer is not None:
            self._close_volume()

    def _open_volume(self) -> SealingWriter:
        by_server = self._compression.where == "server"
        # A compressed stream that does not compress grows by less than a thousandth; the estimate may be stale.
        size_limit = 2 * self._sizes.get(self._tablespace, 0) + GIB if by_server else 2 * max(self._limit, GIB)
        self._writer = SealingWriter(
            self._store,
            self._folder + layout.volume(self._count),
            recipients=self._recipients,
            compression="zstd-by-source" if by_server else "zstd",
            level=self._compression.level,
            workers=self._compression.workers,
            size_limit=size_limit,
        )
        self._pending = {"role": "volume", "tablespace": self._tablespace}
        self._count += 1
        self._filled = 0
        return self._writer

    def _close_volume(self) -> None:
        """Let the filled volume finish in the background; at most one does, so that memory stays bounded."""
        writer, description = self._writer, self._pending
        assert writer is not None
        if description["role"] == "volume" and self._compression.where == "client":
            writer.write(END_OF_ARCHIVE)
        self._collect()
        self._writer, self._finishing_writer = None, writer
        self._finishing = self._finisher.submit(writer.commit)
        self._finishing_as = description

    def _collect(self) -> None:
        if self._finishing is not None:
            finishing, self._finishing = self._finishing, None
            self._objects.append(StoredObject.of(finishing.result(), folder=self._folder, **self._finishing_as))
            self._finishing_writer = None


def _nothing_begun(data: memoryview) -> None:
    raise BackupError(
        "the server sent data before it named an archive", remedy="report this, with the server's version"
    )
