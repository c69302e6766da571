"""The moment that a restore is asked for, and the way there: a backup, and the WAL that leads on from it.

A moment that cannot be reached exactly is refused, with the windows that can. Nothing nearby is ever restored instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from recovery.errors import ConfigurationError, PreconditionError
from recovery.postgres import plan
from recovery.postgres.restore import RecoverySettings
from recovery.postgres.wal.archive import Archive, Index
from recovery.postgres.wal.audit import Window, window_of, windows
from recovery.postgres.wal.history import History
from recovery.postgres.wal.positions import Segment, format_lsn, parse_lsn
from recovery.repository.catalog import Backup, Catalog
from recovery.repository.layout import ID_PATTERN
from recovery.repository.store import ObjectStore

Kind = Literal["latest", "backup", "time", "lsn", "xid", "name"]
_SETTINGS: dict[Kind, Literal["", "_name", "_time", "_xid", "_lsn"]] = {
    "latest": "",
    "time": "_time",
    "lsn": "_lsn",
    "xid": "_xid",
    "name": "_name",
}
_MOST_SEGMENTS = 80
_FORMS = "latest, a backup's id, a time with its zone (2026-11-24T10:00:00Z), an LSN (0/3000158), xid:N or name:LABEL"


@dataclass(frozen=True)
class Moment:
    """What `--to` says. `time` and `lsn` are set for their kinds."""

    kind: Kind
    text: str
    time: datetime | None = None
    lsn: int | None = None


def parse(text: str) -> Moment:
    """Raises ConfigurationError for a form that is not known, and for a time without a zone."""
    if text == "latest":
        return Moment("latest", text)
    if ID_PATTERN.fullmatch(text):
        return Moment("backup", text)
    prefix, separator, rest = text.partition(":")
    if separator and rest and prefix == "name":
        return Moment("name", rest)
    if separator and prefix == "xid" and re.fullmatch(r"[1-9]\d*", rest):
        return Moment("xid", rest)
    try:
        return Moment("lsn", text, lsn=parse_lsn(text))
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"--to {text!r} names no moment", remedy=f"give {_FORMS}; recovery list shows the ids"
        ) from None
    if time.tzinfo is None:
        here = time.astimezone()
        raise ConfigurationError(
            f"--to {text!r} has no time zone",
            remedy=f"write {text}Z for UTC, or {here.isoformat()} for this machine's zone",
        )
    return Moment("time", text, time=time)


@dataclass(frozen=True)
class Route:
    """A chain of backups, full first, and the WAL after it; no `archive`: the last backup's own end is the moment."""

    moment: Moment
    chain: tuple[Backup, ...]
    archive: Archive | None = None
    index: Index | None = None
    history: History | None = None
    end_lsn: int = 0
    end: datetime | None = None
    note: str = ""
    """What a person should know before going there."""

    @property
    def backup(self) -> Backup:
        return self.chain[-1]

    def __str__(self) -> str:
        if self.history is None:
            return f"the end of {self.backup.id}"
        if self.moment.kind == "latest":
            return f"the end of the stored WAL, {format_lsn(self.end_lsn)} on timeline {self.history.timeline}"
        return f"{self.moment.kind} {self.moment.text} on timeline {self.history.timeline}"

    def segments(self) -> list[Segment]:
        """The WAL that recovery will read, in order."""
        wal = self.backup.manifest.wal
        if self.archive is None or self.index is None or self.history is None or wal is None:
            return []
        size = self.archive.segment_bytes
        last = (self.end_lsn - 1) // size
        return [self.index.along(self.history, number) for number in range(parse_lsn(wal.start_lsn) // size, last + 1)]

    def wal_bytes(self) -> int:
        """What will be fetched of it, at most."""
        if self.index is None:
            return 0
        pieces = self.index.pieces
        return sum(
            self.index.segments.get(segment, sum(pieces.get(segment, {}).values())) for segment in self.segments()
        )

    def replay_bytes(self) -> int:
        """The disk that the WAL takes while it is replayed: what recovery keeps between two restart points."""
        size = self.archive.segment_bytes if self.archive is not None else 0
        return min(len(self.segments()), _MOST_SEGMENTS) * size

    def recovery(self, restore_command: str, action: Literal["promote", "pause", "shutdown"]) -> RecoverySettings:
        """How PostgreSQL is told to go there."""
        if self.history is None:
            return RecoverySettings(action=action)
        moment = self.moment
        value = moment.text if moment.kind != "latest" else ""
        if moment.time is not None:
            value = moment.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
        return RecoverySettings(
            restore_command=restore_command,
            target=_SETTINGS[moment.kind],
            value=value,
            action=action,
            timeline=str(self.history.timeline),
        )


def find(store: ObjectStore, catalog: Catalog, name: str, moment: Moment, *, timeline: int | None = None) -> Route:
    """The way to a moment. Raises PreconditionError that names the recoverable windows, or ConfigurationError."""
    if moment.kind == "backup":
        return Route(moment, catalog.chain(plan.choose(catalog, moment.text)))
    newest = plan.choose(catalog, "latest")
    identifier = newest.manifest.server.system_identifier
    archive = Archive.find(store, name, identifier)
    index = archive.index()
    history = _history(index, timeline)
    backups = [
        backup
        for backup in catalog.backups
        if backup.manifest.kind in plan.PHYSICAL and backup.manifest.server.system_identifier == identifier
    ]
    chosen = _choose(index, history, backups, moment)
    if chosen is None and moment.kind == "latest" and timeline is None:
        # No WAL leads on from the newest backup: its own end is the latest that there is.
        end = parse_lsn(newest.manifest.wal.end_lsn) if newest.manifest.wal is not None else 0
        return Route(moment, catalog.chain(newest), note=_behind_a_gap(index, history, end))
    if chosen is None:
        raise _unreachable(store, index, backups, history, moment)
    backup, window = chosen
    end_lsn = moment.lsn if moment.lsn is not None else window.end_lsn
    note = _behind_a_gap(index, history, window.end_lsn) if moment.kind == "latest" else ""
    return Route(moment, catalog.chain(backup), archive, index, history, end_lsn, window.end, note)


def _behind_a_gap(index: Index, history: History, end_lsn: int) -> str:
    """The latest that can be reached is not the latest that is stored: a person must hear of it."""
    newest = index.end_of(history.timeline)
    if newest is None or newest <= end_lsn:
        return ""
    return (
        f"WAL up to {format_lsn(newest)} is stored behind a gap that begins at {format_lsn(end_lsn)}; no backup "
        "leads on from there yet: take a full one"
    )


def _history(index: Index, timeline: int | None) -> History:
    stored = index.timelines()
    wanted = timeline or max(stored, default=1)
    history = index.history(wanted)
    if history is None or (timeline is not None and stored and timeline not in stored):
        known = ", ".join(str(each) for each in stored) or "none"
        raise PreconditionError(
            f"the repository does not hold timeline {wanted} and its history", remedy=f"it has WAL of: {known}"
        )
    return history


def _choose(index: Index, history: History, backups: Sequence[Backup], moment: Moment) -> tuple[Backup, Window] | None:
    """The newest backup before the moment from which WAL leads to it."""
    reaching = [(backup, window) for backup in backups if (window := window_of(index, history, backup)) is not None]
    if moment.kind == "latest":
        return reaching[-1] if reaching and reaching[-1][0] is backups[-1] else None
    if moment.kind in ("xid", "name"):
        # Where in the WAL it lies is not known: the longest way through the last window passes it, if any does.
        ends = [window.end_lsn for _, window in reaching]
        return next((pair for pair in reaching if pair[1].end_lsn == max(ends)), None)
    for backup, window in reversed(reaching):
        if moment.lsn is not None and window.begin_lsn <= moment.lsn <= window.end_lsn:
            return backup, window
        if moment.time is not None and window.begin <= moment.time <= window.end:
            return backup, window
    return None


def _unreachable(
    store: ObjectStore, index: Index, backups: Sequence[Backup], history: History, moment: Moment
) -> PreconditionError:
    on_it = [window for window in windows(index, backups) if window.timeline == history.timeline]
    if moment.time is not None and moment.time > store.now():
        reason = "it is in the future"
    elif not on_it:
        reason = "no WAL that leads on from a backup is stored"
    elif _before(moment, on_it[0]):
        reason = "it is before the first backup that WAL leads on from"
    elif _after(moment, on_it[-1]):
        reason = "it is after the last WAL that is stored"
    else:
        reason = "it lies in a gap of the stored WAL"
    listed = "; ".join(str(window) for window in on_it) or "none; --to latest restores the newest backup"
    return PreconditionError(
        f"{moment.text} cannot be reached exactly: {reason}", remedy=f"the recoverable windows: {listed}"
    )


def _before(moment: Moment, window: Window) -> bool:
    if moment.lsn is not None:
        return moment.lsn < window.begin_lsn
    return moment.time is not None and moment.time < window.begin


def _after(moment: Moment, window: Window) -> bool:
    if moment.lsn is not None:
        return moment.lsn > window.end_lsn
    return moment.time is not None and moment.time > window.end
