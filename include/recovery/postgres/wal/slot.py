"""The replication slot that keeps WAL on the server until it is stored, and the bound at which it must not any more."""

from __future__ import annotations

from dataclasses import dataclass

from recovery.connections import Connection
from recovery.postgres import connect
from recovery.postgres.wal.positions import parse_lsn

GIB = 1 << 30
_SLOT = """
SELECT restart_lsn::text, wal_status = 'lost', active,
       coalesce(greatest(pg_wal_lsn_diff(redo_lsn, restart_lsn), 0), 0)::bigint
  FROM pg_replication_slots, pg_control_checkpoint() WHERE slot_name = %s
"""


@dataclass(frozen=True)
class Slot:
    """`lost`: WAL that it needed is gone. `retained_bytes` is the WAL that the server keeps for nothing but the slot.

    What lies after the last checkpoint's redo position it keeps anyway, and bounds it by max_wal_size.
    """

    restart_lsn: int | None
    lost: bool
    active: bool
    retained_bytes: int


@dataclass(frozen=True)
class ServerState:
    """What a stream asks a server before it begins. `slot` is None where there is none of the name."""

    version_number: int
    system_identifier: str
    in_recovery: bool
    slot: Slot | None


def read(connection: Connection, name: str) -> ServerState:
    """Raises PreconditionError."""
    with connect.session(connection) as session:
        row = session.execute("SELECT system_identifier::text, pg_is_in_recovery() FROM pg_control_system()").fetchone()
        assert row is not None
        found = session.execute(_SLOT, (name,)).fetchone()
        slot = None
        if found is not None:
            lsn, lost, active, retained = found
            slot = Slot(parse_lsn(lsn) if lsn else None, bool(lost), bool(active), int(retained))
        return ServerState(session.info.server_version, row[0], row[1], slot)
