"""Verifying a Vault's backup of an installation: what each of its objects must hold."""

from __future__ import annotations

from collections.abc import Callable

from recovery.installation import Installation
from recovery.manifest import StoredObject
from recovery.repository import verify as repository_verify
from recovery.repository.verify import ContentCheck, Level, Report
from recovery.vault import export
from recovery.vault.catalog import Snapshot
from recovery.vault.snapshot import SnapshotVerifier


def verify(
    installation: Installation,
    name: str,
    backup: Snapshot,
    level: Level,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Check one backup; `progress` gets the bytes read so far.

    Raises ConfigurationError where `opens` has no identity.
    """
    done = 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        progress(done)

    return repository_verify.verify(
        installation.vault_store(name),
        backup,
        level,
        identities=installation.identities() if level is Level.OPENS else (),
        content_check=_check_for,
        progress=add,
    )


def _check_for(item: StoredObject) -> ContentCheck:
    return SnapshotVerifier() if item.role == "snapshot" else _ExportCheck()


class _ExportCheck:
    """An export is a small tar: it is read whole."""

    def __init__(self) -> None:
        self._content = bytearray()

    def write(self, data: bytes, /) -> None:
        self._content += data

    def finish(self) -> None:
        export.unpack(bytes(self._content))

    def close(self) -> None:
        self._content.clear()
