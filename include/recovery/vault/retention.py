"""Retention of a Vault's backups: what stays and why, a pure plan, and the deletion of what the plan lets go.

A database whose rows this Vault's keys open is useless without the snapshot that belongs to it. So the backups of such
databases are read too, and what they need stays, whatever the rules say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from recovery import recovery_set
from recovery.config import SnapshotRetention
from recovery.drill import evidence
from recovery.installation import Installation
from recovery.repository import catalog, holds, layout, leftovers
from recovery.repository.catalog import Backup, Catalog
from recovery.repository.decision import Decision, Plan, newest_of_periods, periodic
from recovery.repository.deletion import Deleter, Outcome, Progress, locks
from recovery.repository.lease import Lease, held_jobs
from recovery.repository.survey import Listing, cluster_of
from recovery.vault import catalog as vault_catalog
from recovery.vault.backup import JOB
from recovery.vault.catalog import Snapshot, VaultCatalog

Want = tuple[Snapshot, str]
"""A backup, and what wants it."""


@dataclass(frozen=True)
class Database:
    """A PostgreSQL system whose rows the Vault's keys open, as its repository holds it."""

    name: str
    catalog: Catalog
    streamed: frozenset[str] = frozenset()
    """The clusters whose WAL is archived, by system identifier."""

    @property
    def first(self) -> Backup | None:
        """The oldest base backup that WAL leads on from: every later moment may be restored."""
        physical = [
            backup
            for backup in self.catalog.backups
            if backup.manifest.kind != "dump" and cluster_of(backup.folder) in self.streamed
        ]
        return min(physical, key=lambda backup: backup.manifest.recovery_point, default=None)


@dataclass(frozen=True, kw_only=True)
class VaultSurvey(Listing):
    """Of a Vault, with the databases that its keys open."""

    catalog: VaultCatalog
    databases: tuple[Database, ...] = ()

    @cached_property
    def committed(self) -> frozenset[str]:
        return frozenset(backup.folder for backup in self.catalog.backups)

    @property
    def exports(self) -> list[Snapshot]:
        """Those that hold an export of policies."""
        return [backup for backup in self.catalog.backups if backup.manifest.kind != "snapshot"]

    def at_work(self, folder: str) -> bool:
        return JOB in self.busy


def make(survey: VaultSurvey, rules: SnapshotRetention) -> Plan[Snapshot]:
    """Decide on every backup and every orphan."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for backup, why in [*_wanted(survey, rules), *_protected(survey), *_needed(survey)]:
        if why not in reasons[backup.folder]:
            reasons[backup.folder].append(why)
    decisions = []
    for backup in survey.catalog.backups:
        found = tuple(reasons[backup.folder])
        until = None if found else survey.locked_until(survey.folders.get(backup.folder, ()))
        decisions.append(Decision(backup, survey.size(backup.folder), found, locked_until=until))
    return Plan(
        tuple(decisions),
        tuple(leftovers.unfinished_backups(survey, rules.orphans_after)),
        leftovers.stale_uploads(survey, rules.orphans_after),
        tuple(str(problem) for problem in survey.catalog.problems),
    )


def _wanted(survey: VaultSurvey, rules: SnapshotRetention) -> Iterator[Want]:
    """What the configuration wants. A backup of both kinds counts as a snapshot, and as an export."""
    if rules.newest is None and not periodic(rules):
        yield from ((backup, "no rule is set") for backup in survey.catalog.backups)
    for backups in (survey.catalog.snapshots, survey.exports):
        yield from ((backup, "newest") for backup in backups[-(rules.newest or 0) :] if rules.newest)
        yield from newest_of_periods(backups, rules)


def _protected(survey: VaultSurvey) -> Iterator[Want]:
    """What stays whatever the configuration wants, for its own sake."""
    snapshots = survey.catalog.snapshots
    yield from ((backup, "newest snapshot") for backup in snapshots[-1:])
    yield from ((backup, "newest export") for backup in survey.exports[-1:])
    proven = [backup for backup in snapshots if backup.id in survey.proven]
    yield from ((backup, "last proven") for backup in proven[-1:])
    for backup in survey.catalog.backups:
        if backup.id in survey.holds:
            yield backup, f"hold: {survey.holds[backup.id]}"


def _needed(survey: VaultSurvey) -> Iterator[Want]:
    """What a restore of a database needs."""
    snapshots = survey.catalog.snapshots
    for database in survey.databases:
        needing: dict[str, list[str]] = defaultdict(list)
        for backup in database.catalog.backups:
            pairing = recovery_set.choose(backup.manifest.recovery_point, backup.manifest.key_versions, snapshots)
            if pairing.snapshot is not None:
                needing[pairing.snapshot.folder].append(backup.id)
        first = database.first
        for snapshot in snapshots:
            if ids := needing[snapshot.folder]:
                more = f" and {len(ids) - 1} more need it" if len(ids) > 1 else " needs it"
                yield snapshot, f"{database.name} {ids[-1]}{more}"
            if first is not None and snapshot.manifest.recovery_point >= first.manifest.recovery_point:
                yield snapshot, f"moments of {database.name} since {first.id} may need it"
            if database.catalog.problems:
                yield snapshot, f"a backup of {database.name} cannot be read, and may need it"


def plan(installation: Installation, name: str) -> Plan[Snapshot]:
    """What retention would do now; nothing is touched."""
    return _plan(installation, name)[1]


def apply(
    installation: Installation, name: str, *, progress: Progress = lambda what, done, expected: None
) -> tuple[Plan[Snapshot], Outcome]:
    """Plan and delete, as the only one who does. Raises LeaseError while somebody else is at it."""
    store = installation.vault_store(name)
    with Lease(store, kind="vault", name=name, job="retention") as lease:
        survey, made = _plan(installation, name)
        deleter = Deleter(store, lease.check, progress)
        gone = []
        for backup in _still_doomed(installation, name, survey, made, deleter.outcome):
            if deleter.manifest(backup.folder, backup.id):
                gone.append(backup)
        objects = [info for backup in gone for info in survey.folders.get(backup.folder, ())]
        ended = [layout.hold(name, backup.id, kind="vault") for backup in gone]
        deleter.remains(objects, made.sweeps, ended, made.uploads)
    return made, deleter.outcome


def _plan(installation: Installation, name: str) -> tuple[VaultSurvey, Plan[Snapshot]]:
    rules = installation.configuration.vault_system(name).retention
    survey = read(installation, name)
    # Only what would go is asked for its lock.
    survey = replace(survey, locks=locks(installation.vault_store(name), make(survey, rules).keys(survey)))
    return survey, make(survey, rules)


def _still_doomed(
    installation: Installation, name: str, survey: VaultSurvey, made: Plan[Snapshot], outcome: Outcome
) -> list[Snapshot]:
    """Asking for locks took a while: what a backup, a hold or a drill of this moment needs is kept back."""
    if not made.doomed:
        return []
    rules = installation.configuration.vault_system(name).retention
    doomed = {backup.folder for backup in make(replace(read(installation, name), locks=survey.locks), rules).doomed}
    outcome.kept_back += [backup.id for backup in made.doomed if backup.folder not in doomed]
    return [backup for backup in made.doomed if backup.folder in doomed]


def read(installation: Installation, name: str) -> VaultSurvey:
    """What counts for a Vault. Listed before the catalog is read: what is committed meanwhile stays."""
    store, folder = installation.vault_store(name), layout.system_folder("vault", name)
    systems = installation.configuration.postgres.items()
    paired = [system for system, settings in systems if settings.keys is not None and settings.keys.vault == name]
    stores = {id(each): each for each in (store, *map(installation.store_of, paired))}
    busy = held_jobs(store, kind="vault", name=name)
    objects = tuple(store.scan(folder))
    return VaultSurvey(
        catalog=vault_catalog.read(store, name),
        objects=objects,
        now=store.now(),
        holds={identifier: str(hold) for identifier, hold in holds.read(store, name, kind="vault").items()},
        # The evidence of a set lies in the repository of its database.
        proven=frozenset().union(*(evidence.proven_snapshots(each, name) for each in stores.values())),
        busy=busy,
        unfinished=tuple(store.unfinished(folder)),
        databases=tuple(_database(installation, system) for system in paired),
    )


def _database(installation: Installation, name: str) -> Database:
    store, root = installation.store_of(name), layout.system_folder("postgres", name)
    clusters = store.folders(root)
    configured = installation.configuration.postgres[name].wal is not None
    streamed = [each for each in clusters if configured or "wal" in store.folders(f"{root}{each}/")]
    return Database(name, catalog.read(store, name), frozenset(streamed))
