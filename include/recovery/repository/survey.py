"""A system's part of a repository as it was read at one moment: what the plan of its retention is made from."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from recovery.postgres.wal.history import History
from recovery.postgres.wal.positions import parse_lsn
from recovery.repository import layout
from recovery.repository.catalog import Backup, Catalog
from recovery.repository.store import ObjectInfo, Unfinished

_BACKUP_KEY = re.compile(r"(postgres/[^/]+/[^/]+/backups/[^/]+/|vault/[^/]+/snapshots/[^/]+/).+")
_WAL_KEY = re.compile(r"[^/]+/[^/]+/([^/]+)/wal/([0-9A-F]{8})(?:\.history|/([0-9A-F]{24})(?:(\.zst\.age)|\.pieces/.+))")
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class WalObject:
    """A segment, a piece of one (`whole` is False), or a timeline's history (`segment` is None)."""

    info: ObjectInfo
    timeline: int
    segment: str | None
    whole: bool

    @property
    def position(self) -> str:
        """Where in the WAL a segment lies: the same LSN has the same one on every timeline, and they sort by it."""
        return (self.segment or "")[8:]


@dataclass(frozen=True, kw_only=True)
class Listing(ABC):
    """What counts for a system of any kind. `now` and every time of an object are the store's clock."""

    objects: tuple[ObjectInfo, ...]
    now: datetime
    holds: Mapping[str, str] = field(default_factory=dict)
    """Why a backup is held, by its id."""
    proven: frozenset[str] = frozenset()
    """The ids of backups that a drill ended `ok` on."""
    busy: frozenset[str] = frozenset()
    """The jobs whose lease is held: what they write is not committed yet."""
    unfinished: tuple[Unfinished, ...] = ()
    locks: Mapping[str, datetime] = field(default_factory=dict)
    """Until when an object is locked, by its key, as far as it was asked."""

    @property
    @abstractmethod
    def committed(self) -> frozenset[str]:
        """The folders of the backups that the catalog knows."""

    @abstractmethod
    def at_work(self, folder: str) -> bool:
        """Whether a backup is being made that may be this one, however long its last object takes."""

    @cached_property
    def folders(self) -> Mapping[str, list[ObjectInfo]]:
        """The objects of each backup's folder, committed or not."""
        found: dict[str, list[ObjectInfo]] = defaultdict(list)
        for info in self.objects:
            if folder := folder_of(info.key):
                found[folder].append(info)
        return found

    @cached_property
    def unreadable(self) -> list[str]:
        """The folders with a manifest that the catalog could not read."""
        return [
            folder
            for folder, objects in self.folders.items()
            if folder not in self.committed and any(info.key == folder + layout.MANIFEST for info in objects)
        ]

    def size(self, folder: str) -> int:
        return sum(info.size for info in self.folders.get(folder, ()))

    def locked_until(self, objects: Iterable[ObjectInfo]) -> datetime | None:
        """When the last of these objects can go; None when all can now."""
        until = max((self.locks.get(info.key, self.now) for info in objects), default=self.now)
        return until if until > self.now else None


@dataclass(frozen=True, kw_only=True)
class Survey(Listing):
    """Of a PostgreSQL system. A cluster is one PostgreSQL system identifier."""

    catalog: Catalog
    histories: Mapping[str, Mapping[int, History]] = field(default_factory=dict)
    """How each cluster's timelines grew, as far as it is stored and can be read."""

    @cached_property
    def committed(self) -> frozenset[str]:
        return frozenset(backup.folder for backup in self.catalog.backups)

    def at_work(self, folder: str) -> bool:
        kind = kind_of(folder)
        return kind is not None and layout.job_of(kind) in self.busy

    @cached_property
    def wal(self) -> Mapping[str, list[WalObject]]:
        """The WAL of each cluster. Keys that are nothing of WAL's are left out, and so left alone."""
        found: dict[str, list[WalObject]] = defaultdict(list)
        for info in self.objects:
            if match := _WAL_KEY.fullmatch(info.key):
                cluster, timeline, segment, whole = match.groups()
                found[cluster].append(WalObject(info, int(timeline, 16), segment, whole is not None))
        return found

    @cached_property
    def clusters(self) -> list[str]:
        return sorted({cluster_of(folder) for folder in self.folders} | set(self.wal))

    def superseded(self, cluster: str, *, at: datetime, end: datetime) -> bool:
        """Whether another cluster had a base backup by then that began after the `end` of this one."""
        return any(
            cluster_of(backup.folder) != cluster
            and backup.manifest.kind != "dump"
            and backup.manifest.started_at > end
            and backup.manifest.finished_at <= at
            for backup in self.catalog.backups
        )

    def leads_to(self, backup: Backup, timeline: int) -> bool | None:
        """Whether WAL can take a restored backup to where a timeline is; None when its history is not known."""
        wal = backup.manifest.wal
        if wal is None:
            return None
        if timeline in (1, wal.end_timeline):
            return wal.end_timeline == timeline
        history = self.histories.get(cluster_of(backup.folder), {}).get(timeline)
        if history is None:
            return None
        try:
            end = parse_lsn(wal.end_lsn)
        except ValueError:
            return None
        return any(each.timeline == wal.end_timeline and end <= each.end for each in history.ancestors)

    def wal_end(self, cluster: str) -> datetime:
        """When the last WAL of a cluster was stored."""
        return max((item.info.modified for item in self.wal.get(cluster, ())), default=_NEVER)


def folder_of(key: str) -> str:
    """The folder of the backup that an object belongs to; empty where it belongs to none."""
    match = _BACKUP_KEY.fullmatch(key)
    return match[1] if match else ""


def cluster_of(folder: str) -> str:
    """The system identifier in a backup's folder."""
    return folder.split("/")[2]


def kind_of(folder: str) -> str | None:
    """The kind in the id of a backup's folder; None where the name is no id."""
    match = layout.ID_PATTERN.fullmatch(folder.rstrip("/").rpartition("/")[2])
    return match[2] if match else None
