"""The trust engine: may an incremental backup build on what there is? A pure function of the chain and the server.

Bugs in WAL summaries have corrupted incrementals silently: after promotions, and where hint bits are not logged. So
nothing is built on a parent across a timeline, a minor version or a change of checksums: a full backup is taken, and
the reason is said. What the server itself can tell (a stalled summarizer, summaries that vanish) it is left to refuse.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from recovery.manifest import Manifest
from recovery.postgres.plan import PHYSICAL
from recovery.postgres.wal.positions import parse_lsn
from recovery.repository.catalog import Backup

FIRST_MAJOR = 17


@dataclass(frozen=True, kw_only=True)
class State:
    """The server as it is now."""

    system_identifier: str
    version_number: int
    timeline: int
    data_checksums: bool
    wal_log_hints: bool
    summarize_wal: bool
    summarized_from: int | None
    """From this LSN on WAL is summarized without a gap, or will be; None where that is not known."""


@dataclass(frozen=True)
class Decision:
    """What to take, and why in one sentence. Without a parent it is a full backup."""

    parent: Backup | None
    reason: str


def decide(
    backups: Sequence[Backup],
    state: State,
    *,
    requested: bytes | None = None,
    recipients: Sequence[str],
    max_chain: int,
) -> Decision:
    """Whether the next backup may be an incremental, and on which parent.

    `backups` are committed, oldest first; `requested` is what asks for a full one (layout.full_request).
    """
    known = {backup.id: backup for backup in backups if _of(backup, state) and backup.manifest.kind in PHYSICAL}
    parent = next(reversed(known.values()), None)
    if (reason := _first(_of_server(state))) is not None:
        return Decision(None, reason)
    if requested is not None:
        return Decision(None, f"a full backup was requested: {_reason(requested)}")
    if parent is None:
        return Decision(None, _no_parent(backups))
    if (reason := _first(_of_chain(parent, known, recipients, max_chain))) is not None:
        return Decision(None, reason)
    if (reason := _first(_since(parent, state))) is not None:
        return Decision(None, reason)
    number = len(parent.manifest.chain) + 1
    return Decision(
        parent, f"it builds on {parent.id}, as incremental {number} of at most {max_chain} on one full backup"
    )


def unbroken_from(summaries: Iterable[tuple[int, int]]) -> int | None:
    """The LSN from which summaries, each from its start to its end, reach to the newest one without a gap."""
    start: int | None = None
    for begin, end in sorted(summaries, key=lambda summary: summary[1], reverse=True):
        if start is not None and end < start:
            break
        start = begin if start is None else min(start, begin)
    return start


Check = tuple[bool, str]


def _of_server(state: State) -> Iterator[Check]:
    major = state.version_number // 10000
    yield major < FIRST_MAJOR, f"PostgreSQL {major} has no incremental backups; {FIRST_MAJOR} has"
    yield not state.summarize_wal, "summarize_wal is off"
    yield (
        not (state.data_checksums or state.wal_log_hints),
        "data checksums and wal_log_hints are both off, so that WAL does not tell of every changed page",
    )


def _of_chain(parent: Backup, known: dict[str, Backup], recipients: Sequence[str], max_chain: int) -> Iterator[Check]:
    before = parent.manifest.chain
    missing = [identifier for identifier in before if identifier not in known]
    yield bool(missing), f"{parent.id} needs {', '.join(missing)}, which cannot be read in the repository"
    yield len(before) >= max_chain, f"{len(before)} incrementals build on one full backup already (max_chain)"
    members = [known[identifier] for identifier in before if identifier in known] + [parent]
    closed = [member.id for member in members if not set(recipients) <= set(member.manifest.recipients)]
    yield bool(closed), f"{', '.join(closed)} cannot be opened with every key that is configured now"


def _since(parent: Backup, state: State) -> Iterator[Check]:
    before = parent.manifest
    was, wal = before.server, before.wal
    yield (
        wal is None or wal.end_timeline != state.timeline,
        f"the server is on timeline {state.timeline}, and {parent.id} was on {wal.end_timeline if wal else 'none'}",
    )
    yield (
        was.version_number != state.version_number,
        f"the server's version changed since {parent.id}, which was taken from {was.version}",
    )
    yield (
        was.data_checksums != state.data_checksums,
        f"data checksums were switched {'on' if state.data_checksums else 'off'} since {parent.id}",
    )
    yield (
        not state.data_checksums and not was.wal_log_hints,
        f"data checksums are off, and wal_log_hints was off when {parent.id} was taken",
    )
    yield (
        not _summarized(before, state),
        f"WAL summaries do not reach back to {parent.id} (see wal_summary_keep_time, and when summarize_wal was set)",
    )


def _summarized(parent: Manifest, state: State) -> bool:
    return (
        parent.wal is not None
        and state.summarized_from is not None
        and state.summarized_from <= parse_lsn(parent.wal.start_lsn)
    )


def _of(backup: Backup, state: State) -> bool:
    return backup.manifest.server.system_identifier == state.system_identifier


def _no_parent(backups: Sequence[Backup]) -> str:
    newest = next((backup for backup in reversed(backups) if backup.manifest.kind in PHYSICAL), None)
    if newest is None:
        return "there is no full backup yet"
    return f"the server's system identifier is not that of {newest.id}: it is another cluster"


def _reason(request: bytes) -> str:
    try:
        return str(json.loads(request)["reason"])
    except (ValueError, KeyError, TypeError):
        return "no reason was given"


def _first(checks: Iterable[Check]) -> str | None:
    return next((reason for fails, reason in checks if fails), None)
