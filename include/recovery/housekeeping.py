"""Retention of one system, end to end: read the repository, plan, and delete what the plan lets go.

A backup's manifest goes first: without it the backup does not exist, and whatever an interrupted run leaves of it is
an orphan, which the next run sweeps. Backups that stand on another go before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from recovery.config import Retention
from recovery.drill import evidence
from recovery.errors import IntegrityError, ObjectMissing, StoreError, StoreUnreachable
from recovery.postgres.wal.history import History, parse_history
from recovery.repository import catalog, holds, layout, retention
from recovery.repository.catalog import Backup
from recovery.repository.lease import Lease, held_jobs
from recovery.repository.retention import Plan
from recovery.repository.store import ObjectInfo, ObjectStore
from recovery.repository.survey import Survey, WalObject, cluster_of

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


def plan(store: ObjectStore, name: str, rules: Retention) -> Plan:
    """What retention would do now; nothing is touched."""
    return _plan(store, name, rules)[1]


def apply(
    store: ObjectStore, name: str, rules: Retention, *, progress: Progress = lambda what, done, expected: None
) -> tuple[Plan, Outcome]:
    """Plan and delete, as the only one who does. Raises LeaseError while somebody else is at it."""
    with Lease(store, kind="postgres", name=name, job="retention") as lease:
        survey, made = _plan(store, name, rules)
        work = _Work(store, name, survey, lease.check, progress)
        work.apply(made)
    return made, work.outcome


def _plan(store: ObjectStore, name: str, rules: Retention) -> tuple[Survey, Plan]:
    survey = read(store, name)
    # Only what would go is asked for its lock, one object after the other: no listing tells.
    survey = replace(survey, locks=_locks(store, retention.make(survey, rules).keys(survey)))
    return survey, retention.make(survey, rules)


def read(store: ObjectStore, name: str) -> Survey:
    """The system's part of the repository. Listed before the catalog is read: what is committed meanwhile stays."""
    folder = layout.system_folder("postgres", name)
    busy = held_jobs(store, kind="postgres", name=name)
    objects = tuple(store.scan(folder))
    survey = Survey(
        catalog=catalog.read(store, name),
        objects=objects,
        now=store.now(),
        holds={identifier: str(hold) for identifier, hold in holds.read(store, name).items()},
        proven=evidence.proven(store, name),
        busy=busy,
        unfinished=tuple(store.unfinished(folder)),
    )
    return replace(survey, histories={cluster: _histories(store, items) for cluster, items in survey.wal.items()})


def _histories(store: ObjectStore, items: Sequence[WalObject]) -> dict[int, History]:
    found = {}
    for item in items:
        if item.segment is None:
            with contextlib.suppress(IntegrityError, ObjectMissing):
                found[item.timeline] = parse_history(item.timeline, store.get(item.info.key))
    return found


def _locks(store: ObjectStore, keys: Sequence[str]) -> dict[str, datetime]:
    def lock(key: str) -> datetime | None:
        with contextlib.suppress(ObjectMissing):
            return store.head(key).locked_until
        return None

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as askers:
        return {key: until for key, until in zip(keys, askers.map(lock, keys), strict=True) if until is not None}


class _Work:
    def __init__(
        self, store: ObjectStore, name: str, survey: Survey, check_lease: Callable[[], None], progress: Progress
    ) -> None:
        self._store, self._name, self._survey = store, name, survey
        self._check_lease, self._progress = check_lease, progress
        self.outcome = Outcome()

    def apply(self, made: Plan) -> None:
        fresh = catalog.read(self._store, self._name)
        gone = self._delete_manifests(made.doomed, fresh)
        objects = [info for backup in gone for info in self._survey.folders.get(backup.folder, ())]
        for sweep in made.sweeps:
            if not self._committed(sweep.where):
                objects += sweep.objects
        self._delete(objects)
        for backup in gone:
            self._done(partial(self._store.delete, layout.hold(self._name, backup.id)))
        for upload in made.uploads:
            self._done(upload.abort)

    def _committed(self, folder: str) -> bool:
        """Whether what was an orphan has become a backup since it was listed."""
        try:
            self._store.head(folder + layout.MANIFEST)
        except ObjectMissing:
            return False
        return True

    def _delete_manifests(self, doomed: Sequence[Backup], fresh: catalog.Catalog) -> list[Backup]:
        """The youngest first, and none that a backup or a hold of this moment needs."""
        going = {backup.folder for backup in doomed}
        held = holds.read(self._store, self._name)
        needed = _standing_on(backup for backup in fresh.backups if backup.folder not in going or backup.id in held)
        gone = []
        for backup in sorted(doomed, key=lambda each: len(each.manifest.chain), reverse=True):
            self._check_lease()
            if (cluster_of(backup.folder), backup.id) in needed or backup.id in held:
                self.outcome.kept_back.append(backup.id)
                needed |= _standing_on([backup])
                continue
            if self._done(partial(self._store.delete, backup.folder + layout.MANIFEST)):
                self.outcome.backups.append(backup.id)
                gone.append(backup)
            else:
                needed |= _standing_on([backup])
        return gone

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


def _standing_on(backups: Iterable[Backup]) -> set[tuple[str, str]]:
    return {(cluster_of(backup.folder), member) for backup in backups for member in backup.manifest.chain}
