"""A store in memory, for unit tests and for faults at the store's interface; it keeps the contract of the real ones."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from threading import Lock

from recovery.errors import ObjectExists, ObjectMissing
from recovery.repository.store import ObjectInfo, Unfinished

Hook = Callable[[str, str], None]


class MemoryStore:
    """`before` is called with the operation and the key, and may raise or wait. `clock` is moved by hand."""

    description = "memory"

    def __init__(self, *, part_size: int = 64 * 1024, before: Hook = lambda operation, key: None) -> None:
        self.part_size, self.before = part_size, before
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.locks: dict[str, datetime] = {}
        self.uploads: list[Unfinished] = []
        self.clock = datetime(2026, 11, 23, 2, tzinfo=UTC)
        self._lock = Lock()

    @property
    def open_uploads(self) -> int:
        return len(self.uploads)

    def pass_seconds(self, seconds: float) -> None:
        self.clock += timedelta(seconds=seconds)

    def put(
        self,
        key: str,
        data: bytes,
        *,
        only_if_absent: bool = False,
        locked: bool = True,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.before("put-if-absent" if only_if_absent else "put", key)
        with self._lock:
            if only_if_absent and key in self.objects:
                raise ObjectExists("an object of this name exists already", where=f"memory/{key}")
            self.objects[key] = (data, self.clock)
            self.metadata[key] = dict(metadata or {})

    def upload(self, key: str, *, size_limit: int) -> MemoryUpload:
        self.before("upload", key)
        return MemoryUpload(self, key)

    def get(self, key: str) -> bytes:
        self.before("get", key)
        return self._find(key)[0]

    def open(self, key: str) -> io.BytesIO:
        self.before("open", key)
        return io.BytesIO(self._find(key)[0])

    def head(self, key: str) -> ObjectInfo:
        self.before("head", key)
        data, modified = self._find(key)
        return ObjectInfo(key, len(data), modified, self.metadata.get(key, {}), self.locks.get(key))

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        self.before("scan", prefix)
        for key, (data, modified) in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(data), modified)

    def folders(self, prefix: str) -> list[str]:
        below = (key.removeprefix(prefix) for key in self.objects if key.startswith(prefix))
        return sorted({key.partition("/")[0] for key in below if "/" in key})

    def delete(self, key: str) -> None:
        self.before("delete", key)
        assert self.locks.get(key, self.clock) <= self.clock, f"{key} is locked"
        self.objects.pop(key, None)

    def unfinished(self, prefix: str) -> list[Unfinished]:
        return [upload for upload in self.uploads if upload.key.startswith(prefix)]

    def now(self) -> datetime:
        return self.clock

    def check(self) -> None:
        self.before("check", "")

    def _find(self, key: str) -> tuple[bytes, datetime]:
        try:
            return self.objects[key]
        except KeyError:
            raise ObjectMissing("the object is not there", where=f"memory/{key}") from None


class MemoryUpload:
    def __init__(self, store: MemoryStore, key: str) -> None:
        self.part_size = store.part_size
        self._store, self._key = store, key
        self._parts: list[bytes] = []
        self._entry = Unfinished(key, store.clock, self.abort)
        store.uploads.append(self._entry)

    def write_part(self, data: bytes, /) -> None:
        self._store.before("part", self._key)
        self._parts.append(data)

    def complete(self) -> None:
        self._store.before("complete", self._key)
        self._store.objects[self._key] = (b"".join(self._parts), self._store.clock)
        self._close()

    def abort(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._entry in self._store.uploads:
            self._store.uploads.remove(self._entry)
