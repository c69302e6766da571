"""What differs between two exports: which files came, went or changed, and their lines as a unified diff."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

_NO_NEWLINE = "\\ No newline at end of file"


@dataclass(frozen=True)
class Change:
    """One file of the tree that differs. `lines` is a unified diff without its two header lines."""

    path: str
    kind: Literal["added", "removed", "changed"]
    lines: tuple[str, ...]


def compare(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[Change]:
    """The files that differ, sorted by path."""
    changes = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        kind: Literal["added", "removed", "changed"] = "changed"
        if old is None:
            kind = "added"
        elif new is None:
            kind = "removed"
        changes.append(Change(path, kind, unified((old or b"").decode(), (new or b"").decode())))
    return changes


def unified(before: str, after: str) -> tuple[str, ...]:
    """The lines of a unified diff without its headers; characters that a terminal would obey are spelled out."""
    lines = list(difflib.unified_diff(_lines(before), _lines(after), lineterm=""))[2:]
    return tuple(_visible(part) for line in lines for part in line.split("\n"))


def render(changes: Sequence[Change]) -> str:
    """As plain text: one heading per file, its lines below, and a newline at the end of each."""
    return "".join(
        f"{change.kind}: {change.path}\n" + "".join(f"  {line}\n" for line in change.lines) for change in changes
    )


def _lines(text: str) -> list[str]:
    """Split at newlines alone, as HCL and JSON do; a last line without one says so, as git shows it."""
    lines = text.split("\n")
    last = lines.pop()
    return [*lines, f"{last}\n{_NO_NEWLINE}"] if last else lines


def _visible(line: str) -> str:
    return "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode() for char in line
    )
