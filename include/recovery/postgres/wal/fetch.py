"""What `restore_command` needs: one file of WAL; and a store that does not answer is never the end of WAL."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recovery.errors import ConfigurationError, StoreUnreachable
from recovery.postgres.wal.archive import Archive
from recovery.repository import layout
from recovery.repository.store import ObjectStore

_PAUSE_SECONDS = 2.0


def fetch(
    store: ObjectStore,
    name: str,
    file: str,
    *,
    identities: Sequence[Any],
    pgdata: Path,
    patience_seconds: float,
    pause: Callable[[float], object] = time.sleep,
) -> bytes | None:
    """The file, or None when the repository does not hold it. A store that does not answer is asked again and again.

    Raises StoreUnreachable after `patience_seconds`, IntegrityError, SealError.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return Archive.find(store, name, _cluster(store, name, pgdata)).read_file(file, identities=identities)
        except StoreUnreachable:
            if time.monotonic() >= deadline:
                raise
            pause(_PAUSE_SECONDS)


def place(path: Path, data: bytes) -> None:
    """Write the file so that it appears whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.chmod(0o600)
    temporary.replace(path)


def _cluster(store: ObjectStore, name: str, pgdata: Path) -> str:
    """The system identifier of the data directory: pg_control begins with it (pg_control.h)."""
    try:
        with (pgdata / "global" / "pg_control").open("rb") as control:
            return str(struct.unpack("=Q", control.read(8))[0])
    except (OSError, struct.error):
        known = store.folders(layout.system_folder("postgres", name))
    if len(known) != 1:
        raise ConfigurationError(
            f"{len(known)} clusters were backed up under this name",
            where=name,
            remedy="run this in the data directory that is to be recovered, as PostgreSQL does",
        )
    return known[0]
