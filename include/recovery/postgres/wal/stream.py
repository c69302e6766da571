"""Keeps a cluster's WAL streaming into its repository: where to begin, timeline switches, failovers, lost connections.

The repository alone says where a stream goes on. The slot on the server is the lock: PostgreSQL lets one receiver at a
time use it, and frees it when that one is gone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from recovery.config import WalOptions
from recovery.errors import ConfigurationError, PreconditionError, StoreError, VaultError, WalError, WalGone
from recovery.postgres.backup import Source
from recovery.postgres.wal import slot as slots
from recovery.postgres.wal.archive import Archive, Index, Piece
from recovery.postgres.wal.history import History, parse_history
from recovery.postgres.wal.positions import Segment, format_lsn
from recovery.postgres.wal.receiver import Progress, Receiver, Tick
from recovery.postgres.wal.session import Identity, WalSession
from recovery.repository import layout
from recovery.repository.sealing import parse_recipient

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_BOUND_SECONDS = 10.0


@dataclass(frozen=True)
class Gap:
    """WAL that was lost before it was stored: from one LSN up to another."""

    timeline: int
    begin: int
    end: int

    def __str__(self) -> str:
        return f"WAL from {format_lsn(self.begin)} to {format_lsn(self.end)} (timeline {self.timeline}) was lost"


@dataclass
class Outcome:
    """What a stream did until it was told to stop."""

    progress: Progress = field(default_factory=Progress)
    gaps: list[Gap] = field(default_factory=list)
    reconnects: int = 0


@dataclass(frozen=True)
class _Beginning:
    """Where a stream goes on: the start of a segment, and the pieces of it that are stored."""

    timeline: int
    lsn: int
    pieces: Iterable[Piece] = ()


def stream(
    open_source: Callable[[], Source],
    *,
    stop: Callable[[], bool],
    tick: Tick = lambda progress: None,
    pause: Callable[[float], object] = time.sleep,
) -> Outcome:
    """Stream until `stop()` is true. What fails before the first byte is raised; later it is tried again, for ever.

    Told to stop while a stream is broken, it raises what broke it: not all that was written may be stored.

    `open_source` is called for every connection: changed credentials are read, also where the lease of a login from
    Vault ends. Raises IntegrityError when the repository holds other WAL under a name that this server uses: going on
    would mix two histories.
    """
    outcome = Outcome()
    started, wait = False, _FIRST_PAUSE

    def ticked(progress: Progress) -> None:
        nonlocal started
        started = True
        tick(progress)

    while True:
        before = outcome.progress.bytes_stored
        try:
            with open_source().logged_in() as source:
                _Stream(source, outcome, ticked, stop).run()
            return outcome
        except (StoreError, WalError, VaultError, PreconditionError) as problem:
            if not started:
                raise
            wait = _FIRST_PAUSE if outcome.progress.bytes_stored > before else min(2 * wait, _LONGEST_PAUSE)
            log.warning("the WAL stream broke: %s; it goes on in %.1f s", problem, wait)
            broken = problem
        outcome.reconnects += 1
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            if stop():
                raise broken
            pause(0.1)


class _Stream:
    """One connection's worth."""

    def __init__(self, source: Source, outcome: Outcome, tick: Tick, stop: Callable[[], bool]) -> None:
        if source.settings.wal is None:
            raise ConfigurationError(
                "continuous WAL is not configured for this system",
                where=f"postgres.{source.name}.wal",
                remedy="add `wal: {}` to it",
            )
        self._source, self._outcome, self._tick, self._stop = source, outcome, tick, stop
        self._options: WalOptions = source.settings.wal
        self._asked = time.monotonic()

    def run(self) -> None:
        connection = self._source.connection
        state = slots.read(connection, self._options.slot)
        self._guard(state.slot, state.version_number)
        with WalSession(connection, version_number=state.version_number) as session:
            identity = session.identify()
            archive = Archive(
                self._source.store,
                self._source.name,
                identity.system_identifier,
                session.segment_bytes(),
                [parse_recipient(text) for text in self._source.recipients],
            )
            index = archive.index()
            created = self._prepare_slot(session, state.slot)
            history = self._keep_histories(session, archive, index, identity)
            beginning = _where(index, history, identity, where=session.where)
            if beginning is None:
                beginning = self._fresh(archive, history, identity, created or state.slot)
        # The server ends a session in which it was asked for WAL that it no longer has.
        for attempt in (_one_before(index, beginning), beginning):
            with WalSession(connection, version_number=state.version_number) as session:
                try:
                    self._receive(session, archive, attempt)
                    return
                except WalGone:
                    continue
        stored = beginning.lsn + index.open_bytes(Segment.at(beginning.timeline, beginning.lsn, index.segment_bytes))
        with WalSession(connection, version_number=state.version_number) as session:
            self._receive(session, archive, self._after_gap(session, archive, history, beginning, stored))

    def _receive(self, session: WalSession, archive: Archive, beginning: _Beginning) -> None:
        while True:
            log.info("WAL streams from %s on timeline %d", format_lsn(beginning.lsn), beginning.timeline)
            receiver = Receiver(
                session,
                archive,
                slot=self._options.slot,
                interval_seconds=self._options.interval.total_seconds(),
                progress=self._outcome.progress,
                tick=self._watched,
                stop=self._stop,
            )
            ends = receiver.run(beginning.timeline, beginning.lsn, beginning.pieces)
            if ends is None:
                return
            log.info("timeline %d goes on as %d at %s", beginning.timeline, ends.timeline, format_lsn(ends.lsn))
            archive.put_history(ends.timeline, session.history(ends.timeline))
            beginning = _Beginning(ends.timeline, ends.lsn - ends.lsn % archive.segment_bytes)

    def _watched(self, progress: Progress) -> None:
        self._source.check_login()
        if self._options.give_up_gib is not None and time.monotonic() >= self._asked + _BOUND_SECONDS:
            self._asked = time.monotonic()
            slot = slots.read(self._source.connection, self._options.slot).slot
            self._check_bound(slot.retained_bytes if slot is not None else 0)
        self._tick(progress)

    def _guard(self, slot: slots.Slot | None, version_number: int) -> None:
        """Before the store is asked for anything: it may be what is down, and the server's disk cannot wait for it."""
        if slot is not None and not slot.active and not slot.lost and self._beyond(slot.retained_bytes):
            with WalSession(self._source.connection, version_number=version_number) as session:
                session.drop_slot(self._options.slot)
            self._give_up(slot.retained_bytes)

    def _check_bound(self, retained_bytes: int) -> None:
        if self._beyond(retained_bytes):
            raise WalError(
                f"{retained_bytes / slots.GIB:.1f} GiB of WAL wait for the store",
                where=f"postgres.{self._source.name}.wal.give_up_gib",
                remedy="the slot is given up at the next attempt",
            )

    def _beyond(self, retained_bytes: int) -> bool:
        bound = self._options.give_up_gib
        return bound is not None and retained_bytes > bound * slots.GIB

    def _give_up(self, retained_bytes: int) -> None:
        message = (
            f"slot {self._options.slot} retained {retained_bytes / slots.GIB:.1f} GiB of WAL and was dropped, before "
            "the server's disk would fill"
        )
        log.error("%s; what the server removes before a new stream begins is lost", message)
        raise WalError(
            message,
            where=f"postgres.{self._source.name}.wal.give_up_gib",
            remedy="mend what keeps WAL from being stored; a new slot is made when the store answers",
        )

    def _prepare_slot(self, session: WalSession, slot: slots.Slot | None) -> slots.Slot | None:
        """Make the slot where there is none that works; returns the new one."""
        if slot is not None and not slot.lost:
            return None
        if slot is not None:
            log.error("slot %s has lost WAL that was not stored yet; it is made anew", self._options.slot)
            session.drop_slot(self._options.slot)
        session.create_slot(self._options.slot)
        return slots.read(self._source.connection, self._options.slot).slot

    def _keep_histories(self, session: WalSession, archive: Archive, index: Index, identity: Identity) -> History:
        """Store the histories that lead to the server's timeline."""
        if identity.timeline == 1:
            return History(1)
        text = session.history(identity.timeline)
        archive.put_history(identity.timeline, text)
        history = parse_history(identity.timeline, text)
        for ancestor in history.ancestors:
            if ancestor.timeline != 1 and ancestor.timeline not in index.histories:
                archive.put_history(ancestor.timeline, session.history(ancestor.timeline))
        return history

    def _fresh(self, archive: Archive, history: History, identity: Identity, slot: slots.Slot | None) -> _Beginning:
        """Nothing is stored yet, or nothing that this could go on from: the slot's first segment is the first."""
        reserved = slot.restart_lsn if slot is not None and slot.restart_lsn is not None else identity.flush_lsn
        lsn = reserved - reserved % archive.segment_bytes
        return _Beginning(history.timeline_at(lsn), lsn)

    def _after_gap(
        self, session: WalSession, archive: Archive, history: History, wanted: _Beginning, stored: int
    ) -> _Beginning:
        """The server no longer has what comes next: say so, ask for a full backup, and go on from what it has."""
        identity = session.identify()
        beginning = self._fresh(
            archive, history, identity, slots.read(self._source.connection, self._options.slot).slot
        )
        if beginning.lsn <= wanted.lsn:
            # The slot itself begins earlier, and even that is gone.
            beginning = _Beginning(identity.timeline, identity.flush_lsn - identity.flush_lsn % archive.segment_bytes)
        gap = Gap(wanted.timeline, stored, beginning.lsn)
        self._outcome.gaps.append(gap)
        log.error("%s; moments in it cannot be restored. A full backup is requested", gap)
        request_full(self._source, str(gap))
        return beginning


def request_full(source: Source, reason: str) -> None:
    """Ask the next physical backup of a system to be a full one."""
    document = {"reason": reason, "requested_at": datetime.now(UTC).isoformat()}
    source.store.put(layout.full_request(source.name), json.dumps(document, sort_keys=True).encode(), locked=False)


def _one_before(index: Index, beginning: _Beginning) -> _Beginning:
    """Where nothing of the next segment is stored, the last whole one is received again, if the server still has it.

    It proves that the server goes on from what is stored: one that was rolled back would have written other WAL.
    """
    lsn = beginning.lsn - index.segment_bytes
    if tuple(beginning.pieces) or Segment.at(beginning.timeline, lsn, index.segment_bytes) not in index.segments:
        return beginning
    return _Beginning(beginning.timeline, lsn)


def _where(index: Index, history: History, identity: Identity, *, where: str) -> _Beginning | None:
    """Where the repository's WAL goes on along the server's history; None when it has nothing of it.

    Raises WalError when the server is behind the repository: it is not the server that the WAL came from last.
    """
    timelines = index.timelines()
    newer = [timeline for timeline in timelines if timeline > history.timeline]
    if newer:
        raise WalError(
            f"this server is on timeline {history.timeline}, and the repository has WAL of timeline {newer[-1]}",
            where=where,
            remedy="is it an old primary? point the connection at the present one",
        )
    for timeline in sorted(timelines, reverse=True):
        if not history.passed(timeline):
            continue
        end, left = index.end_of(timeline), history.end_of(timeline)
        assert end is not None
        if left is not None and end >= left:
            following = history.after(timeline)
            return _Beginning(following, left - left % index.segment_bytes)
        if left is None and end > identity.flush_lsn:
            raise WalError(
                f"this server's WAL ends at {format_lsn(identity.flush_lsn)}, and the repository has it up to "
                f"{format_lsn(end)}",
                where=where,
                remedy="was it rolled back, or does it lag? point the connection at the present primary",
            )
        segment = Segment.at(timeline, end, index.segment_bytes)
        return _Beginning(timeline, segment.start(index.segment_bytes), tuple(index.pieces.get(segment, ())))
    return None
