"""A stored snapshot as a stream of its own bytes: fetched, decrypted, and verified once more on the way to a node."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

from recovery.errors import RecoveryError
from recovery.repository.sealing import unseal, unseal_bytes
from recovery.repository.store import ObjectStore
from recovery.vault import export
from recovery.vault.catalog import Snapshot
from recovery.vault.snapshot import SnapshotVerifier

_AHEAD = 8
"""Pieces of about 1 MiB that are fetched before they are asked for."""


def stream(
    store: ObjectStore, backup: Snapshot, identities: Sequence[Any], *, tick: Callable[[int], None] = lambda done: None
) -> Generator[bytes, None, None]:
    """The snapshot piece by piece; `tick` gets the bytes fetched so far.

    Raises what unseal() raises, and IntegrityError: always before the last piece has been taken for the end, so that
    whoever sends the pieces on breaks off.
    """
    pieces: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
    given_up = threading.Event()

    class Sink:
        def write(self, data: bytes, /) -> None:
            _put(pieces, data, given_up)

    def fetch() -> None:
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            tick(done)

        try:
            unseal(store, backup.object("snapshot"), Sink(), identities=identities, progress=count)
        except BaseException as problem:
            _put(pieces, problem, given_up)
        else:
            _put(pieces, None, given_up)

    thread = threading.Thread(target=fetch, name=f"fetch {backup.id}", daemon=True)
    thread.start()
    try:
        with contextlib.closing(SnapshotVerifier()) as verifier:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                verifier.write(piece)
                yield piece
            verifier.finish()
    finally:
        given_up.set()
        thread.join()


def export_of(store: ObjectStore, backup: Snapshot, identities: Sequence[Any]) -> export.Tree:
    """The tree of a stored export."""
    return export.unpack(unseal_bytes(store, backup.object("export"), identities=identities))


def _put(pieces: queue.Queue[Any], piece: object, given_up: threading.Event) -> None:
    while not given_up.is_set():
        with contextlib.suppress(queue.Full):
            pieces.put(piece, timeout=0.2)
            return
    raise RecoveryError("the snapshot is not wanted any more")
