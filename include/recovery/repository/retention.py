"""What a repository keeps and what may go: a pure plan from what lies there, the rules, and the store's clock.

A backup stays when any rule wants it, and with it every backup that its restore needs. Times decide, and the cluster;
the number of a timeline never does, for it can begin anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from recovery.config import Retention
from recovery.errors import PreconditionError
from recovery.repository import leftovers
from recovery.repository.catalog import Backup
from recovery.repository.decision import Decision, Plan, newest_of_periods, periodic
from recovery.repository.leftovers import Horizon
from recovery.repository.survey import Survey, cluster_of, kind_of

Want = tuple[Backup, str]
"""A backup, and what wants it."""


@dataclass(frozen=True)
class ClusterDecision(Decision[Backup]):
    """It says of which cluster the backup is."""

    def document(self) -> dict[str, Any]:
        return super().document() | {"system_identifier": self.backup.manifest.server.system_identifier}


def make(survey: Survey, rules: Retention) -> Plan[Backup]:
    """Decide on every backup, every segment of WAL and every orphan."""
    return _Planner(survey, rules).plan()


class _Planner:
    def __init__(self, survey: Survey, rules: Retention) -> None:
        self._survey, self._rules = survey, rules
        self._chains, self._broken = _chains(survey)
        complete = [each for each in survey.catalog.backups if each.folder in self._chains]
        self._physical = [backup for backup in complete if backup.manifest.kind != "dump"]
        self._dumps = [backup for backup in complete if backup.manifest.kind == "dump"]
        self._window = self._windows()

    def plan(self) -> Plan[Backup]:
        reasons: dict[str, list[str]] = defaultdict(list)
        for backup, why in [*self._wanted(), *self._protected()]:
            reasons[backup.folder].append(why)
        wanted = [backup for backup in self._survey.catalog.backups if reasons[backup.folder]]
        self._keep_chains(wanted, reasons)
        locks = self._locks(reasons)
        decisions = tuple(
            ClusterDecision(
                backup,
                self._survey.size(backup.folder),
                tuple(reasons[backup.folder]),
                locked_until=locks.get(backup.folder),
            )
            for backup in self._survey.catalog.backups
        )
        staying = [decision.backup for decision in decisions if not decision.goes]
        after = self._rules.orphans_after
        sweeps = leftovers.find(self._survey, horizons=self._horizons(wanted), staying=staying, after=after)
        return Plan(decisions, tuple(sweeps), leftovers.stale_uploads(self._survey, after), tuple(self._problems()))

    # What the configuration wants.

    @property
    def _physical_rules(self) -> bool:
        return bool(self._rules.window is not None or self._rules.fulls or periodic(self._rules))

    def _wanted(self) -> Iterator[Want]:
        rules = self._rules
        if self._physical_rules:
            for backups in self._window.values():
                yield from ((backup, "window") for backup in backups)
            fulls = [backup for backup in self._physical if backup.manifest.kind == "full"]
            newest = {backup.folder for backup in fulls[-(rules.fulls or 0) :] if rules.fulls}
            yield from ((each, "fulls") for each in self._physical if self._base(each).folder in newest)
            yield from newest_of_periods(self._physical, rules)
        else:
            yield from ((backup, "no rule is set for base backups") for backup in self._physical)
        if rules.dumps or periodic(rules):
            yield from ((backup, "dumps") for backup in self._dumps[-(rules.dumps or 0) :] if rules.dumps)
            yield from newest_of_periods(self._dumps, rules)
        else:
            yield from ((backup, "no rule is set for dumps") for backup in self._dumps)

    def _windows(self) -> dict[str, list[Backup]]:
        """For each cluster that the window reaches: what the window begins with, and all later backups."""
        if self._rules.window is None:
            return {}
        begin = self._survey.now - self._rules.window
        found = {}
        for cluster in self._survey.clusters:
            own = [backup for backup in self._physical if cluster_of(backup.folder) == cluster]
            ends = [self._survey.wal_end(cluster), *(backup.manifest.finished_at for backup in own)]
            if own and not self._survey.superseded(cluster, at=begin, end=max(ends)):
                before = [backup for backup in own if backup.manifest.finished_at <= begin]
                later = [backup for backup in own if backup.manifest.finished_at > begin]
                found[cluster] = [*self._beginnings(cluster, before, later, begin), *later]
        return found

    def _beginnings(
        self, cluster: str, before: Sequence[Backup], later: Sequence[Backup], begin: datetime
    ) -> list[Backup]:
        """The newest backup from before the window, and the newest that leads to each timeline that lived in it.

        The two are not the same after a recovery to an earlier moment: a backup that is younger than that moment lies
        on the timeline that was left. Where a history is not known, whatever may lead there stays.
        """
        living = {wal.end_timeline for backup in later if (wal := backup.manifest.wal)}
        living |= {
            item.timeline for item in self._survey.wal.get(cluster, ()) if item.segment and item.info.modified > begin
        }
        found = {backup.folder: backup for backup in before[-1:]}
        for timeline in living:
            for backup in reversed(before):
                leads = self._survey.leads_to(backup, timeline)
                if leads is not False:
                    found[backup.folder] = backup
                if leads:
                    break
        return list(found.values())

    def _base(self, backup: Backup) -> Backup:
        return self._chains[backup.folder][0] if self._chains[backup.folder] else backup

    # What stays whatever the configuration wants.

    def _protected(self) -> Iterator[Want]:
        survey = self._survey
        fulls = [backup for backup in self._physical if backup.manifest.kind == "full"]
        yield from ((backup, "newest full") for backup in fulls[-1:])
        yield from ((backup, "newest base backup") for backup in self._physical[-1:])
        if "base" in survey.busy:
            newest = {cluster_of(backup.folder): backup for backup in self._physical}
            yield from ((backup, "a backup under way may stand on it") for backup in newest.values())
        for group in (self._physical, self._dumps):
            proven = [backup for backup in group if backup.id in survey.proven]
            yield from ((backup, "last proven") for backup in proven[-1:])
        for backup in survey.catalog.backups:
            if backup.id in survey.holds:
                yield backup, f"hold: {survey.holds[backup.id]}"
            if backup.folder in self._broken:
                yield backup, "its chain is broken"
        for folder in survey.unreadable:
            if kind_of(folder) in ("incremental", None):
                older = [each for each in self._physical if _before(each, folder)]
                yield from ((backup, f"{_name(folder)} cannot be read, and may need it") for backup in older)

    def _keep_chains(self, backups: Sequence[Backup], reasons: dict[str, list[str]]) -> None:
        needing: dict[str, list[str]] = defaultdict(list)
        for backup in backups:
            for member in self._chains.get(backup.folder) or self._broken.get(backup.folder) or ():
                needing[member.folder].append(backup.id)
        for folder, ids in needing.items():
            more = f" and {len(ids) - 1} more need it" if len(ids) > 1 else " needs it"
            reasons[folder].append(ids[-1] + more)

    def _locks(self, reasons: Mapping[str, Sequence[str]]) -> dict[str, datetime]:
        """When the backups that no rule wants can go: whole, and not before those that stand on them."""
        found: dict[str, datetime] = {}
        for backup in self._survey.catalog.backups:
            until = self._survey.locked_until(self._survey.folders.get(backup.folder, ()))
            if until is None or reasons.get(backup.folder):
                continue
            for member in (*self._chains[backup.folder], backup):
                if not reasons.get(member.folder):
                    found[member.folder] = max(until, found.get(member.folder, until))
        return found

    # WAL.

    def _horizons(self, wanted: Sequence[Backup]) -> dict[str, Horizon]:
        """The clusters whose WAL may go, and what of it."""
        if not self._physical_rules:
            return {}
        survey = self._survey
        at = survey.now if self._rules.window is None else survey.now - self._rules.window
        puzzling = {cluster_of(folder) for folder in survey.unreadable if kind_of(folder) != "dump"}
        found = {}
        for cluster in set(survey.wal) - puzzling:
            if self._rules.window is None:
                own = [each for each in wanted if cluster_of(each.folder) == cluster and each.manifest.kind != "dump"]
            else:
                own = self._window.get(cluster, [])
            if own:
                reached = leftovers.horizon(own)
            else:
                reached = Horizon() if survey.superseded(cluster, at=at, end=survey.wal_end(cluster)) else None
            if reached is not None:
                found[cluster] = reached
        return found

    def _problems(self) -> Iterator[str]:
        yield from (str(problem) for problem in self._survey.catalog.problems)
        for folder in self._broken:
            missing = PreconditionError(
                "its chain lacks a backup, so that it cannot be restored; it is left alone",
                where=_name(folder),
                remedy="bring the missing one back, or remove its folder by hand",
            )
            yield str(missing)


def _chains(survey: Survey) -> tuple[dict[str, tuple[Backup, ...]], dict[str, tuple[Backup, ...]]]:
    """What each backup stands on, the full first; and for those whose chain has a gap, what is left of it."""
    catalog = survey.catalog
    complete, broken = {}, {}
    for backup in catalog.backups:
        try:
            complete[backup.folder] = catalog.chain(backup)[:-1]
        except PreconditionError:
            cluster = cluster_of(backup.folder)
            broken[backup.folder] = tuple(
                each
                for each in catalog.backups
                if each.id in backup.manifest.chain and cluster_of(each.folder) == cluster
            )
    return complete, broken


def _before(backup: Backup, folder: str) -> bool:
    return cluster_of(backup.folder) == cluster_of(folder) and backup.id < _name(folder)


def _name(folder: str) -> str:
    return folder.rstrip("/").rpartition("/")[2]
