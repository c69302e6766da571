"""Takes a restored data directory through its WAL to the moment that was asked for, and leaves it ready to start.

The server runs isolated while it recovers; the WAL is fetched ahead of it by this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recovery.errors import RestoreError, ServerError
from recovery.postgres.moment import Route
from recovery.postgres.owner import Owner
from recovery.postgres.restore import Restored, clear_recovery_settings, restore_base, write_recovery_settings
from recovery.postgres.server import SandboxServer, control_data
from recovery.postgres.tools import Tools
from recovery.postgres.wal.positions import parse_lsn
from recovery.postgres.wal.spool import Spool
from recovery.repository.store import ObjectStore

_SPOOL = "recovery.spool"

Tick = Callable[[int, int], None]
"""Called with the bytes of WAL replayed and the bytes to replay; it may raise to end the work."""


@dataclass(frozen=True)
class Reached:
    """Where recovery ended: the last replayed LSN, the last transaction's time (or ''), and the timeline now."""

    lsn: str
    last_commit: str
    timeline: int


def restore_to(
    store: ObjectStore,
    route: Route,
    pgdata: Path,
    *,
    identities: Sequence[Any],
    tablespaces: Mapping[int, Path],
    tools: Tools,
    owner: Owner | None,
    preload: Sequence[str] = (),
    pause: bool = False,
    fetched: Tick = lambda done, expected: None,
    replayed: Tick = lambda done, expected: None,
) -> tuple[Restored, Reached | None]:
    """Restore a route's chain and recover to its moment; after any error the target is as empty as it was found.

    Without WAL to replay nothing is started: the result recovers to its backup's end when it is. With `pause` recovery
    is left where it paused: the next start comes back to that point, and goes no further.
    """
    pgdata = pgdata.absolute()
    fixed: dict[str, Any] = {"identities": identities, "tablespaces": tablespaces, "tools": tools, "owner": owner}
    if route.archive is None:
        return restore_base(store, route.chain, pgdata, **fixed, tick=fetched), None
    segments = route.segments()
    names = [segment.name(route.archive.segment_bytes) for segment in segments]
    spool = Spool(pgdata / _SPOOL, route.archive, names, identities=identities, owner=owner)
    reached: list[Reached] = []

    def recover() -> None:
        _check_clock(pgdata, route, tools)
        reached.append(_replay(pgdata, route, spool, tools, owner, preload, replayed, pause=pause))
        if pause:
            write_recovery_settings(pgdata, route.recovery("false", "pause"), owner)
        else:
            clear_recovery_settings(pgdata, owner)

    restored = restore_base(
        store,
        route.chain,
        pgdata,
        **fixed,
        recovery=route.recovery(spool.restore_command, "pause" if pause else "promote"),
        replay=recover,
        replay_bytes=route.replay_bytes(),
        tick=fetched,
    )
    return restored, reached[0]


def _check_clock(pgdata: Path, route: Route, tools: Tools) -> None:
    """The backup's end is told by the clock of the host that made it. The server's own saw its last checkpoint.

    PostgreSQL refuses a time before the backup's end only where a transaction committed between the two.
    """
    seen = control_data(pgdata, tools)["Time of latest checkpoint"]
    checkpoint = datetime.strptime(seen, "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
    if route.moment.time is not None and route.moment.time < checkpoint:
        raise _too_early(route)


def _replay(
    pgdata: Path,
    route: Route,
    spool: Spool,
    tools: Tools,
    owner: Owner | None,
    preload: Sequence[str],
    tick: Tick,
    *,
    pause: bool,
) -> Reached:
    """Recover to the moment, and stop the server again; raises RestoreError that says why it did not get there."""
    wal = route.backup.manifest.wal
    assert wal is not None
    begin = parse_lsn(wal.start_lsn)

    def progress(lsn: int) -> None:
        tick(max(0, lsn - begin), max(1, route.end_lsn - begin))

    with spool:
        server = SandboxServer(
            pgdata,
            tools=tools,
            superuser=route.backup.manifest.server.superuser,
            owner=owner,
            preload=preload,
            lasting=True,
            paused=pause,
            tick=progress,
        )
        try:
            with server, server.connect() as session:
                row = session.execute(_REACHED).fetchone()
        except ServerError as problem:
            raise _explained(problem, spool, route) from None
    assert row is not None
    return Reached(str(row[0]), str(row[1] or ""), int(row[2]))


_REACHED = """
SELECT pg_last_wal_replay_lsn(), pg_last_xact_replay_timestamp(), timeline_id FROM pg_control_checkpoint()
"""


def _explained(problem: ServerError, spool: Spool, route: Route) -> BaseException:
    if spool.failure is not None:
        return spool.failure
    if "recovery ended before configured recovery target was reached" in problem.what:
        return RestoreError(
            f"the stored WAL ends before {route.moment.kind} {route.moment.text}",
            where=route.backup.id,
            remedy="nothing was kept; restore --to latest, or to an earlier moment",
        )
    if "before consistent recovery point" in problem.what:
        return _too_early(route)
    return problem


def _too_early(route: Route) -> RestoreError:
    return RestoreError(
        f"{route.moment.kind} {route.moment.text} lies before the end of the backup",
        where=route.backup.id,
        remedy="nothing was kept; is a clock wrong? give an LSN, or a moment some minutes later",
    )
