"""LSNs and the names of WAL segments (PostgreSQL manual, 28.6; xlog_internal.h). Here an LSN is an int, in bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
_FOUR_GIB = 1 << 32


def parse_lsn(text: str) -> int:
    """`16/B374D848` → bytes; raises ValueError."""
    match = _LSN.fullmatch(text)
    if match is None:
        raise ValueError(f"not an LSN: {text!r}")
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


@dataclass(frozen=True, order=True)
class Segment:
    """One segment of one timeline; `number` counts segments from the beginning of the LSN space."""

    timeline: int
    number: int

    @classmethod
    def at(cls, timeline: int, lsn: int, size: int) -> Segment:
        """The segment that holds the byte at `lsn`."""
        return cls(timeline, lsn // size)

    @classmethod
    def parse(cls, name: str, size: int) -> Segment | None:
        """From a file name; None when it is not a segment's."""
        match = _SEGMENT.fullmatch(name)
        if match is None:
            return None
        timeline, high, low = (int(part, 16) for part in match.groups())
        return cls(timeline, high * (_FOUR_GIB // size) + low)

    def name(self, size: int) -> str:
        per_four_gib = _FOUR_GIB // size
        return f"{self.timeline:08X}{self.number // per_four_gib:08X}{self.number % per_four_gib:08X}"

    def start(self, size: int) -> int:
        return self.number * size

    def next(self) -> Segment:
        return Segment(self.timeline, self.number + 1)
