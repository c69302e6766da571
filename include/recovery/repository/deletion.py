"""Deleting what a plan of retention lets go: many objects side by side, under a lease; a refusal stops nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from recovery.errors import ObjectMissing, StoreError, StoreUnreachable
from recovery.repository import layout
from recovery.repository.leftovers import Sweep
from recovery.repository.store import ObjectInfo, ObjectStore, Unfinished

_SIDE_BY_SIDE = 8
_BATCH = 64

Progress = Callable[[str, int, int | None], None]


@dataclass
class Outcome:
    """What became of a plan. `failures` are lines for a person; what they name is tried again by the next run."""

    backups: list[str] = field(default_factory=list)
    kept_back: list[str] = field(default_factory=list)
    """Backups of the plan that something needed when the moment came."""
    objects: int = 0
    bytes: int = 0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        failures = f", {len(self.failures)} not deleted" if self.failures else ""
        backups, objects = counted(len(self.backups), "backup"), counted(self.objects, "object")
        return f"{backups}, {objects}, {self.bytes / 1e6:.1f} MB deleted{failures}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def locks(store: ObjectStore, keys: Sequence[str]) -> dict[str, datetime]:
    """Until when objects are locked, asked one after the other: no listing tells."""

    def lock(key: str) -> datetime | None:
        with contextlib.suppress(ObjectMissing):
            return store.head(key).locked_until
        return None

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as askers:
        return {key: until for key, until in zip(keys, askers.map(lock, keys), strict=True) if until is not None}


class Deleter:
    def __init__(self, store: ObjectStore, check_lease: Callable[[], None], progress: Progress) -> None:
        self._store, self._check_lease, self._progress = store, check_lease, progress
        self.outcome = Outcome()

    def manifest(self, folder: str, identifier: str) -> bool:
        """Whether the backup has ceased to exist."""
        self._check_lease()
        if not self._done(partial(self._store.delete, folder + layout.MANIFEST)):
            return False
        self.outcome.backups.append(identifier)
        return True

    def remains(
        self,
        objects: Sequence[ObjectInfo],
        sweeps: Sequence[Sweep],
        holds: Sequence[str],
        uploads: Sequence[Unfinished],
    ) -> None:
        """The objects and the (ended) holds of backups whose manifest is gone, and what belongs to none."""
        orphans = [info for sweep in sweeps if not self._committed(sweep.where) for info in sweep.objects]
        self._delete([*objects, *orphans])
        for hold in holds:
            self._done(partial(self._store.delete, hold))
        for upload in uploads:
            self._done(upload.abort)

    def _committed(self, folder: str) -> bool:
        """Whether what was an orphan has become a backup since it was listed."""
        try:
            self._store.head(folder + layout.MANIFEST)
        except ObjectMissing:
            return False
        return True

    def _delete(self, objects: Sequence[ObjectInfo]) -> None:
        total = sum(info.size for info in objects)

        def delete(info: ObjectInfo) -> int | None:
            return info.size if self._done(partial(self._store.delete, info.key)) else None

        with ThreadPoolExecutor(_SIDE_BY_SIDE) as workers:
            for start in range(0, len(objects), _BATCH):
                self._check_lease()
                sizes = [size for size in workers.map(delete, objects[start : start + _BATCH]) if size is not None]
                self.outcome.objects += len(sizes)
                self.outcome.bytes += sum(sizes)
                self._progress("deleted", self.outcome.bytes, total)

    def _done(self, action: Callable[[], None]) -> bool:
        """What the store does not give up is noted, and stops nothing else."""
        try:
            action()
        except StoreUnreachable:
            raise
        except StoreError as problem:
            self.outcome.failures.append(str(problem))
            return False
        return True
