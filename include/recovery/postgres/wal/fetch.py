"""What `restore_command` needs: one file of WAL; and a store that does not answer is never the end of WAL."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recovery.errors import ConfigurationError, ObjectMissing, StoreUnreachable
from recovery.postgres.wal.archive import Archive
from recovery.postgres.wal.positions import Segment
from recovery.repository import layout
from recovery.repository.store import ObjectStore

_PAUSE_SECONDS = 2.0


@dataclass(frozen=True)
class File:
    """A file of WAL. `whole`: a finished segment, which never changes; else a history, or the open segment so far."""

    data: bytes
    whole: bool


@dataclass(frozen=True)
class Source:
    """The stored WAL of the cluster whose data directory `pgdata` is."""

    store: ObjectStore
    name: str
    identities: Sequence[Any]
    pgdata: Path

    @cached_property
    def archive(self) -> Archive:
        return Archive.find(self.store, self.name, self._cluster())

    def read(self, file: str, *, patience_seconds: float, pause: Callable[[float], object] = time.sleep) -> File | None:
        """The file; None when the repository does not hold it. A store that does not answer is asked again and again.

        Raises StoreUnreachable after `patience_seconds`, IntegrityError, SealError, ConfigurationError.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                return self._read(file)
            except StoreUnreachable:
                if time.monotonic() >= deadline:
                    raise
                pause(_PAUSE_SECONDS)

    def read_segment(self, segment: Segment) -> bytes:
        """A finished segment, asked for once; raises ObjectMissing, IntegrityError, SealError, StoreError."""
        return self.archive.read_segment(segment, identities=self.identities)

    def _read(self, file: str) -> File | None:
        segment = Segment.parse(file, self.archive.segment_bytes)
        if segment is not None:
            with contextlib.suppress(ObjectMissing):
                return File(self.read_segment(segment), whole=True)
        data = self.archive.read_file(file, identities=self.identities)
        return None if data is None else File(data, whole=False)

    def _cluster(self) -> str:
        found = system_identifier(self.pgdata)
        if found is not None:
            return found
        known = self.store.folders(layout.system_folder("postgres", self.name))
        if len(known) != 1:
            raise ConfigurationError(
                f"{len(known)} clusters were backed up under this name",
                where=self.name,
                remedy="run this in the data directory that is to be recovered, as PostgreSQL does",
            )
        return known[0]


def place(path: Path, data: bytes) -> None:
    """Write the file so that it appears whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.chmod(0o600)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def system_identifier(pgdata: Path) -> str | None:
    """Of a data directory: pg_control begins with it (pg_control.h). None where there is no data directory."""
    try:
        with (pgdata / "global" / "pg_control").open("rb") as control:
            return str(struct.unpack("=Q", control.read(8))[0])
    except (OSError, struct.error):
        return None
