"""Timelines: how one grew out of another (PostgreSQL manual, 26.3.6), and which WAL a point on one of them needs."""

from __future__ import annotations

from dataclasses import dataclass

from recovery.errors import IntegrityError
from recovery.postgres.wal.positions import parse_lsn


@dataclass(frozen=True)
class Ancestor:
    """A timeline that was left at `end`."""

    timeline: int
    end: int


@dataclass(frozen=True)
class History:
    """The ancestors of one timeline, oldest first; empty for the first timeline."""

    timeline: int
    ancestors: tuple[Ancestor, ...] = ()

    def timeline_at(self, lsn: int) -> int:
        """The timeline on which this history passed the byte at `lsn`."""
        return next((each.timeline for each in self.ancestors if lsn < each.end), self.timeline)

    def end_of(self, timeline: int) -> int | None:
        """Where this history left one of its timelines: None for its own; raises KeyError when it never passed it."""
        if timeline == self.timeline:
            return None
        for each in self.ancestors:
            if each.timeline == timeline:
                return each.end
        raise KeyError(timeline)

    def passed(self, timeline: int) -> bool:
        return timeline == self.timeline or any(each.timeline == timeline for each in self.ancestors)

    def after(self, timeline: int) -> int:
        """The timeline that this history went on with after one of its ancestors."""
        row = [*(each.timeline for each in self.ancestors), self.timeline]
        return row[row.index(timeline) + 1]

    def begin_of(self, timeline: int) -> int:
        """Where this history entered one of its timelines."""
        begin = 0
        for each in self.ancestors:
            if each.timeline == timeline:
                return begin
            begin = each.end
        return begin


def parse_history(timeline: int, text: bytes) -> History:
    """A `.history` file: lines of timeline, LSN, reason; raises IntegrityError."""
    ancestors = []
    for line in text.decode("utf-8", "replace").splitlines():
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            ancestors.append(Ancestor(int(fields[0]), parse_lsn(fields[1])))
        except (ValueError, IndexError):
            raise IntegrityError(
                f"the history of timeline {timeline} has a line that is none: {line!r}",
                remedy="copy the file again from the server's pg_wal",
            ) from None
    return History(timeline, tuple(ancestors))
