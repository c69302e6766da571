"""The small interface between the repository and the place where its objects live.

Implementations: s3.py and directory.py. Keys are slash-separated and relative to the repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from recovery.errors import ConditionsUnsupported, ObjectExists, ObjectMissing


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object: its key, its size in bytes, and when the store says it was written.

    `metadata` is what its put() was given, `locked_until` the end of its Object Lock; only head() fills them in.
    """

    key: str
    size: int
    modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)
    locked_until: datetime | None = None


@dataclass(frozen=True)
class Unfinished:
    """An upload that was begun and neither completed nor aborted. Its parts cost room, and no listing shows them."""

    key: str
    begun: datetime
    abort: Callable[[], None]


class Reader(Protocol):
    """A stored object, read from the start to the end."""

    def read(self, size: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


class Upload(Protocol):
    """An object being written in parts. Nothing is visible until complete(); abort() leaves nothing behind.

    write_part() may return before the part is stored; a failure then surfaces from a later call. Every part but the
    last has the size that `part_size` names.
    """

    part_size: int

    def write_part(self, data: bytes, /) -> None: ...
    def complete(self) -> None: ...
    def abort(self) -> None: ...


class ObjectStore(Protocol):
    """Where objects live. Every method raises StoreError (or a subclass) in this project's words."""

    @property
    def description(self) -> str:
        """The store as a person names it: s3://bucket/prefix or a directory."""

    def put(
        self,
        key: str,
        data: bytes,
        *,
        only_if_absent: bool = False,
        locked: bool = True,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a small object whole. With `only_if_absent` an existing one raises ObjectExists.

        `locked=False` leaves out Object Lock, for what is temporary by nature (leases, pieces of WAL). `metadata` is
        kept with the object: ASCII, lower-case names.
        """

    def upload(self, key: str, *, size_limit: int) -> Upload:
        """Begin an object of unknown size that will not pass `size_limit` bytes."""

    def get(self, key: str) -> bytes:
        """A small object whole; raises ObjectMissing."""

    def open(self, key: str) -> Reader:
        """A large object as a stream, resumed where it broke off; raises ObjectMissing."""

    def head(self, key: str) -> ObjectInfo:
        """What the store knows of one object; raises ObjectMissing."""

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in key order."""

    def folders(self, prefix: str) -> list[str]:
        """The names directly below a prefix that have objects below them. `prefix` is empty or ends with a slash."""

    def delete(self, key: str) -> None:
        """Remove an object that carries no lock; an absent one is no error."""

    def unfinished(self, prefix: str) -> list[Unfinished]:
        """The open uploads below a prefix, or of the whole store where it does not know whose they are."""

    def now(self) -> datetime:
        """The store's clock, so that ages do not depend on this machine's."""

    def check(self) -> None:
        """Reach the store and see that it can do what the configuration asks of it (bucket, versions, Object Lock)."""


def put_once(store: ObjectStore, key: str, data: bytes, *, locked: bool = True) -> None:
    """A conditional put that may have succeeded without our seeing it: the same bytes again is success.

    Raises ObjectExists when another writer's bytes are there, ConditionsUnsupported where the store has no such puts.
    """
    try:
        store.put(key, data, only_if_absent=True, locked=locked)
    except ObjectExists:
        if store.get(key) != data:
            raise


def put_final(store: ObjectStore, key: str, data: bytes) -> None:
    """put_once() for what ends a piece of work. A store without conditional writes is asked first, and then written to.

    Two writers could pass that question at one moment; losing the work of one that is alone would be worse.
    """
    try:
        put_once(store, key, data)
    except ConditionsUnsupported:
        try:
            found = store.get(key)
        except ObjectMissing:
            store.put(key, data)
            return
        if found != data:
            raise ObjectExists("an object of this name exists already", where=f"{store.description}/{key}") from None
