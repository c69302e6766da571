"""Retention of one system, end to end: read the repository, plan, and delete what the plan lets go.

A backup's manifest goes first: without it the backup does not exist, and whatever an interrupted run leaves of it is
an orphan, which the next run sweeps. Backups that stand on another go before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from recovery.config import Retention
from recovery.drill import evidence
from recovery.errors import IntegrityError, ObjectMissing
from recovery.postgres.wal.history import History, parse_history
from recovery.repository import catalog, holds, layout, retention
from recovery.repository.catalog import Backup
from recovery.repository.decision import Plan
from recovery.repository.deletion import Deleter, Outcome, Progress, locks
from recovery.repository.lease import Lease, held_jobs
from recovery.repository.store import ObjectStore
from recovery.repository.survey import Survey, WalObject, cluster_of


def plan(store: ObjectStore, name: str, rules: Retention) -> Plan[Backup]:
    """What retention would do now; nothing is touched."""
    return _plan(store, name, rules)[1]


def apply(
    store: ObjectStore, name: str, rules: Retention, *, progress: Progress = lambda what, done, expected: None
) -> tuple[Plan[Backup], Outcome]:
    """Plan and delete, as the only one who does. Raises LeaseError while somebody else is at it."""
    with Lease(store, kind="postgres", name=name, job="retention") as lease:
        survey, made = _plan(store, name, rules)
        deleter = Deleter(store, lease.check, progress)
        _Work(store, name, survey, deleter).apply(made)
    return made, deleter.outcome


def _plan(store: ObjectStore, name: str, rules: Retention) -> tuple[Survey, Plan[Backup]]:
    survey = read(store, name)
    # Only what would go is asked for its lock.
    survey = replace(survey, locks=locks(store, retention.make(survey, rules).keys(survey)))
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


class _Work:
    def __init__(self, store: ObjectStore, name: str, survey: Survey, deleter: Deleter) -> None:
        self._store, self._name, self._survey, self._deleter = store, name, survey, deleter

    def apply(self, made: Plan[Backup]) -> None:
        fresh = catalog.read(self._store, self._name)
        gone = self._delete_manifests(made.doomed, fresh)
        objects = [info for backup in gone for info in self._survey.folders.get(backup.folder, ())]
        ended = [layout.hold(self._name, backup.id) for backup in gone]
        self._deleter.remains(objects, made.sweeps, ended, made.uploads)

    def _delete_manifests(self, doomed: Sequence[Backup], fresh: catalog.Catalog) -> list[Backup]:
        """The youngest first, and none that a backup or a hold of this moment needs."""
        going = {backup.folder for backup in doomed}
        held = holds.read(self._store, self._name)
        needed = _standing_on(backup for backup in fresh.backups if backup.folder not in going or backup.id in held)
        gone = []
        for backup in sorted(doomed, key=lambda each: len(each.manifest.chain), reverse=True):
            if (cluster_of(backup.folder), backup.id) in needed or backup.id in held:
                self._deleter.outcome.kept_back.append(backup.id)
            elif self._deleter.manifest(backup.folder, backup.id):
                gone.append(backup)
                continue
            needed |= _standing_on([backup])
        return gone


def _standing_on(backups: Iterable[Backup]) -> set[tuple[str, str]]:
    return {(cluster_of(backup.folder), member) for backup in backups for member in backup.manifest.chain}
