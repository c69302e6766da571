"""What belongs to no backup and may go: WAL that nothing needs any more, and the remains of interrupted work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from recovery.postgres.wal.positions import Segment, parse_lsn
from recovery.repository.catalog import Backup
from recovery.repository.store import ObjectInfo, Unfinished
from recovery.repository.survey import Listing, Survey, WalObject, cluster_of, folder_of, kind_of

_ALL = "G"
"""A position behind every other: its digits are hexadecimal."""


@dataclass(frozen=True)
class Sweep:
    """Objects of one folder that go, and those that will when their lock has ended."""

    what: str
    where: str
    objects: tuple[ObjectInfo, ...]
    locked: tuple[ObjectInfo, ...] = ()
    locked_until: datetime | None = None

    @property
    def bytes(self) -> int:
        return sum(info.size for info in self.objects)


@dataclass(frozen=True)
class Horizon:
    """WAL that lies before a position *and* was stored before a moment is needed by no backup.

    The position alone would not do: after a recovery to an earlier moment WAL is written again from there, on a new
    timeline, before there is a backup of it.
    """

    position: str = _ALL
    stored_before: datetime | None = None

    def covers(self, item: WalObject) -> bool:
        return item.position < self.position and self.passed(item.info)

    def passed(self, info: ObjectInfo) -> bool:
        return self.stored_before is None or info.modified < self.stored_before


def horizon(backups: Sequence[Backup]) -> Horizon | None:
    """What lies before all of these backups; None when one of them does not say where its WAL starts."""
    starts = [_position(backup, end=False) for backup in backups]
    if any(start is None for start in starts):
        return None
    return Horizon(min(filter(None, starts), default=_ALL), min(backup.manifest.started_at for backup in backups))


def find(
    survey: Survey, *, horizons: Mapping[str, Horizon], staying: Sequence[Backup], after: timedelta
) -> list[Sweep]:
    """`horizons`: the clusters whose WAL may go at all. `staying`: the backups that do. `after`: the age of remains."""
    swept = list(unfinished_backups(survey, after))
    for cluster, items in sorted(survey.wal.items()):
        own = [backup for backup in staying if cluster_of(backup.folder) == cluster]
        found = horizons.get(cluster)
        gone = [] if found is None else [item for item in items if item.segment and _free(item, found, own)]
        swept += _by_timeline(survey, "WAL", gone)
        keys = {item.info.key for item in gone}
        left = [item for item in items if item.segment and item.info.key not in keys]
        swept += _by_timeline(survey, "pieces of whole segments", _pieces(survey, left, after))
        if found is not None:
            swept += _by_timeline(survey, "history", _histories(items, left, found, own))
    return swept


def stale_uploads(survey: Listing, after: timedelta) -> tuple[Unfinished, ...]:
    """The open uploads that nobody goes on with."""
    return tuple(
        upload
        for upload in survey.unfinished
        if survey.now - upload.begun > after and not survey.at_work(folder_of(upload.key))
    )


def unfinished_backups(survey: Listing, after: timedelta) -> Iterator[Sweep]:
    """The remains of backups that were never committed."""
    committed = survey.committed | set(survey.unreadable)
    for folder, objects in survey.folders.items():
        newest = max(info.modified for info in objects)
        if folder in committed or kind_of(folder) is None or survey.now - newest <= after:
            continue
        if not survey.at_work(folder):
            yield _sweep(survey, "unfinished backup", folder, objects)


def _free(item: WalObject, found: Horizon, own: Iterable[Backup]) -> bool:
    return found.covers(item) and not any(_holds(backup, item) for backup in own)


def _holds(backup: Backup, item: WalObject) -> bool:
    """Whether a backup that does not carry its own WAL needs this segment to be consistent."""
    wal = backup.manifest.wal
    if wal is None or wal.included:
        return False
    start, end = _position(backup, end=False), _position(backup, end=True)
    return start is None or end is None or start <= item.position <= end


def _position(backup: Backup, *, end: bool) -> str | None:
    wal = backup.manifest.wal
    if wal is None:
        return None
    size = backup.manifest.server.wal_segment_bytes
    try:
        return Segment.at(1, parse_lsn(wal.end_lsn if end else wal.start_lsn), size).name(size)[8:]
    except (ValueError, ZeroDivisionError):
        return None


def _pieces(survey: Survey, items: Sequence[WalObject], after: timedelta) -> list[WalObject]:
    whole = {item.segment for item in items if item.whole}
    return [
        item for item in items if not item.whole and item.segment in whole and survey.now - item.info.modified > after
    ]


def _histories(
    items: Sequence[WalObject], left: Sequence[WalObject], found: Horizon, own: Sequence[Backup]
) -> list[WalObject]:
    """Those of timelines behind which nothing is left. One that is younger than the horizon announces what comes."""
    used = [item.timeline for item in left] + [wal.end_timeline for backup in own if (wal := backup.manifest.wal)]
    last = max(used, default=0)
    return [item for item in items if item.segment is None and item.timeline > last and found.passed(item.info)]


def _by_timeline(survey: Survey, what: str, items: Iterable[WalObject]) -> Iterator[Sweep]:
    folders: dict[str, list[ObjectInfo]] = defaultdict(list)
    for item in items:
        root = item.info.key.partition("/wal/")[0]
        folders[f"{root}/wal/{item.timeline:08X}"].append(item.info)
    for folder, objects in sorted(folders.items()):
        yield _sweep(survey, what, folder, objects)


def _sweep(survey: Listing, what: str, where: str, objects: Sequence[ObjectInfo]) -> Sweep:
    locked = tuple(info for info in objects if survey.locked_until([info]))
    free = tuple(info for info in objects if not survey.locked_until([info]))
    return Sweep(what, where, free, locked, survey.locked_until(locked))
