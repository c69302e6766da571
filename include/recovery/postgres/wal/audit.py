"""Walks a repository's WAL: what is missing, what does not belong, what cannot be read, and which windows remain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from recovery.errors import RecoveryError, StoreUnreachable
from recovery.postgres.wal.archive import Archive, Index
from recovery.postgres.wal.history import History
from recovery.postgres.wal.positions import Segment, format_lsn, parse_lsn
from recovery.repository import catalog, layout
from recovery.repository.catalog import Backup
from recovery.repository.store import ObjectStore
from recovery.repository.verify import Level, Verdict

_READERS = 8


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    timeline: int
    what: str


@dataclass(frozen=True)
class Window:
    """Every moment between the end of `backup` and `end_lsn` on one timeline can be restored."""

    timeline: int
    backup: str
    begin_lsn: int
    end_lsn: int
    begin: datetime
    end: datetime

    def document(self) -> dict[str, Any]:
        return {
            "timeline": self.timeline,
            "backup": self.backup,
            "begin_lsn": format_lsn(self.begin_lsn),
            "end_lsn": format_lsn(self.end_lsn),
            "begin": self.begin.isoformat(),
            "end": self.end.isoformat(),
        }

    def __str__(self) -> str:
        return (
            f"{self.begin:%Y-%m-%d %H:%M:%S} to {self.end:%Y-%m-%d %H:%M:%S} UTC "
            f"({format_lsn(self.begin_lsn)} to {format_lsn(self.end_lsn)}, timeline {self.timeline})"
        )


@dataclass(frozen=True)
class Report:
    """What the audit of one cluster found."""

    system_identifier: str
    segments: int
    stored_bytes: int
    windows: tuple[Window, ...]
    findings: tuple[Finding, ...]

    def document(self) -> dict[str, Any]:
        return {
            "system_identifier": self.system_identifier,
            "segments": self.segments,
            "stored_bytes": self.stored_bytes,
        }


def audit(
    store: ObjectStore,
    name: str,
    level: Level,
    *,
    identities: Sequence[Any] = (),
    tick: Callable[[int, int], None] = lambda done, expected: None,
) -> list[Report]:
    """Audit every cluster that was ever backed up under this name; `opens` needs identities."""
    backups = catalog.read(store, name).backups
    reports = []
    for identifier in store.folders(layout.system_folder("postgres", name)):
        archive = Archive.find(store, name, identifier)
        index = archive.index()
        findings = gaps(index)
        if level is not Level.EXISTS:
            findings += read_all(archive, index, level, identities=identities, tick=tick)
        if index.timelines() or findings:
            reports.append(
                Report(
                    identifier,
                    len({*index.segments, *index.pieces}),
                    sum(index.segments.values()) + sum(size for row in index.pieces.values() for size in row.values()),
                    tuple(windows(index, _of(backups, identifier))),
                    tuple(findings),
                )
            )
    return reports


def recoverable(store: ObjectStore, found: catalog.Catalog, name: str) -> list[Window]:
    """The windows of every cluster that was backed up under this name, from the listing alone."""
    clusters = dict.fromkeys(backup.manifest.server.system_identifier for backup in found.backups)
    return [
        window
        for identifier in clusters
        for window in windows(Archive.find(store, name, identifier).index(), _of(found.backups, identifier))
    ]


def _of(backups: Sequence[Backup], identifier: str) -> list[Backup]:
    return [backup for backup in backups if backup.manifest.server.system_identifier == identifier]


def windows(index: Index, backups: Sequence[Backup]) -> list[Window]:
    """The recoverable windows of one cluster, oldest first; those that touch on one timeline are one.

    `backups` are its physical backups, oldest first. A window begins where the first of its backups ends, and ends
    where WAL is missing. Its end in time is when the last of its WAL was stored, by the store's clock.
    """
    found: list[Window] = []
    for timeline in index.timelines():
        history = index.history(timeline)
        if history is None:
            continue
        for backup in backups:
            window = window_of(index, history, backup)
            if window is None:
                continue
            last = found[-1] if found and found[-1].timeline == timeline else None
            if last is not None and window.begin_lsn <= last.end_lsn:
                continue  # Within: an earlier backup reaches as far.
            found.append(window)
    return found


def window_of(index: Index, history: History, backup: Backup) -> Window | None:
    wal = backup.manifest.wal
    if wal is None or not history.passed(wal.end_timeline):
        return None
    # What lies before its end the backup carries itself.
    end = parse_lsn(wal.end_lsn)
    left = history.end_of(wal.end_timeline)
    if left is not None and end > left:
        return None  # It went on where this history did not.
    reach = index.reach(history, end)
    if reach <= end:
        return None
    last = index.along(history, (reach - 1) // index.segment_bytes)
    return Window(history.timeline, backup.id, end, reach, backup.manifest.recovery_point, index.written[last])


def gaps(index: Index) -> list[Finding]:
    """Segments that are missing between others of their timeline, histories that are, and what does not belong."""
    found = []
    for timeline in index.timelines():
        numbers = sorted(segment.number for segment in {*index.segments, *index.pieces} if segment.timeline == timeline)
        for one, next_one in pairwise(numbers):
            if next_one > one + 1:
                first, last = Segment(timeline, one + 1), Segment(timeline, next_one - 1)
                names = f"{first.name(index.segment_bytes)} to {last.name(index.segment_bytes)}"
                count = next_one - one - 1
                found.append(Finding(Verdict.FAILED, timeline, f"gap: {count} segments are missing, {names}"))
        for segment in sorted(index.pieces):
            if segment.timeline == timeline and segment.number < numbers[-1] and segment not in index.segments:
                name, stored = segment.name(index.segment_bytes), index.open_bytes(segment)
                what = f"gap: {name} was never completed, its first {stored} bytes are stored"
                found.append(Finding(Verdict.FAILED, timeline, what))
        if index.history(timeline) is None:
            what = f"{timeline:08X}.history is missing: nothing says what this timeline grew out of"
            found.append(Finding(Verdict.FAILED, timeline, what))
    found += [Finding(Verdict.FAILED, 0, f"not WAL of this cluster: {key}") for key in index.foreign]
    return found


def read_all(
    archive: Archive,
    index: Index,
    level: Level,
    *,
    identities: Sequence[Any],
    tick: Callable[[int, int], None] = lambda done, expected: None,
) -> list[Finding]:
    """Read every object: `checksum` compares the SHA-256 that travels with it, `opens` unseals it as well."""
    work = [*index.segments, *(segment for segment in index.pieces if segment not in index.segments)]
    done = 0

    def look(segment: Segment) -> Finding | None:
        try:
            archive.check(segment, index, opens=level is Level.OPENS, identities=identities)
        except StoreUnreachable as problem:
            return Finding(Verdict.UNKNOWN, segment.timeline, f"{segment.name(index.segment_bytes)}: {problem}")
        except RecoveryError as problem:
            return Finding(Verdict.FAILED, segment.timeline, f"unreadable: {problem}")
        return None

    found = []
    with ThreadPoolExecutor(_READERS) as readers:
        for finding in readers.map(look, sorted(work)):
            done += 1
            tick(done, len(work))
            if finding is not None:
                found.append(finding)
    return found
