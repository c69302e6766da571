"""What a plan of retention says, of a system of any kind: what becomes of each backup and why, and what is swept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

from recovery.config import Retention, SnapshotRetention
from recovery.repository.leftovers import Sweep
from recovery.repository.store import Unfinished
from recovery.repository.survey import Listing


class Dated(Protocol):
    """What a manifest says of any backup."""

    @property
    def kind(self) -> str: ...
    @property
    def recovery_point(self) -> datetime: ...


class Kept(Protocol):
    """A committed backup, of PostgreSQL or of a Vault."""

    @property
    def id(self) -> str: ...
    @property
    def folder(self) -> str: ...
    @property
    def manifest(self) -> Dated: ...


AnyBackup = TypeVar("AnyBackup", bound=Kept)
AnyBackup_co = TypeVar("AnyBackup_co", bound=Kept, covariant=True)

PERIODS: Mapping[str, Callable[[datetime], Any]] = {
    "daily": lambda moment: moment.date(),
    "weekly": lambda moment: moment.isocalendar()[:2],
    "monthly": lambda moment: (moment.year, moment.month),
    "yearly": lambda moment: moment.year,
}


@dataclass(frozen=True)
class Decision(Generic[AnyBackup_co]):
    """One backup: it stays for its `reasons`; without any it goes, or will when its lock has ended."""

    backup: AnyBackup_co
    bytes: int
    reasons: tuple[str, ...]
    locked_until: datetime | None = None

    @property
    def goes(self) -> bool:
        return not self.reasons and self.locked_until is None

    @property
    def word(self) -> str:
        return "delete" if self.goes else "keep" if self.reasons else "locked"

    @property
    def why(self) -> str:
        if self.locked_until is not None:
            return f"no rule wants it; it can go from {self.locked_until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC on"
        return "; ".join(self.reasons) or "no rule wants it"

    def document(self) -> dict[str, Any]:
        found = self.backup.manifest
        return {
            "id": self.backup.id,
            "kind": found.kind,
            "recovery_point": found.recovery_point.isoformat(),
            "stored_bytes": self.bytes,
            "decision": self.word,
            "reasons": list(self.reasons),
            "locked_until": self.locked_until.isoformat() if self.locked_until else None,
        }


@dataclass(frozen=True)
class Plan(Generic[AnyBackup_co]):
    """Decisions are oldest first. `problems` are lines for a person: what was left alone, for want of understanding."""

    decisions: tuple[Decision[AnyBackup_co], ...]
    sweeps: tuple[Sweep, ...]
    uploads: tuple[Unfinished, ...]
    problems: tuple[str, ...]

    @property
    def doomed(self) -> list[AnyBackup_co]:
        return [decision.backup for decision in self.decisions if decision.goes]

    def keys(self, survey: Listing) -> list[str]:
        """Every object that goes."""
        objects = [info for backup in self.doomed for info in survey.folders.get(backup.folder, ())]
        return [info.key for info in objects + [info for sweep in self.sweeps for info in sweep.objects]]

    @property
    def freed_bytes(self) -> int:
        backups = sum(decision.bytes for decision in self.decisions if decision.goes)
        return backups + sum(sweep.bytes for sweep in self.sweeps)

    def document(self) -> dict[str, Any]:
        return {
            "backups": [decision.document() for decision in self.decisions],
            "swept": [
                {
                    "what": sweep.what,
                    "where": sweep.where,
                    "objects": len(sweep.objects),
                    "bytes": sweep.bytes,
                    "locked_objects": len(sweep.locked),
                    "locked_until": sweep.locked_until.isoformat() if sweep.locked_until else None,
                }
                for sweep in self.sweeps
            ],
            "unfinished_uploads": [upload.key for upload in self.uploads],
            "freed_bytes": self.freed_bytes,
            "problems": list(self.problems),
        }


def periodic(rules: Retention | SnapshotRetention) -> bool:
    return any(getattr(rules, period) for period in PERIODS)


def newest_of_periods(
    backups: Sequence[AnyBackup], rules: Retention | SnapshotRetention
) -> Iterator[tuple[AnyBackup, str]]:
    """The newest of these backups (oldest first) in each of the last days, weeks, months and years that have one."""
    for period, of in PERIODS.items():
        # A later backup replaces an earlier one of the same period.
        newest = {of(backup.manifest.recovery_point): backup for backup in backups}
        count = getattr(rules, period)
        yield from ((newest[key], period) for key in sorted(newest)[-count:] if count)
