"""The demo's accident: a table of the live database is dropped, and brought back as it was the second before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, sql

from lab import app038
from lab.clients import installation_of
from lab.errors import LabError
from lab.system import Lab
from recovery.postgres import owner, tools
from recovery.postgres.server import SandboxServer
from recovery.postgres.wal.positions import parse_lsn

_TABLE = "documents"
_CONTENT = "SELECT count(*), md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM documents AS t"
_STORED_SECONDS = 60.0


def destroy_and_restore(lab: Lab, system: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Drop a table, restore to the second before with the command, and compare it; the cluster stays as it is."""
    with psycopg.connect(lab.app038.dsn(app038.DATABASE), autocommit=True) as session:
        before = _content(session)
        moment = _one(session, "SELECT clock_timestamp()")
        time.sleep(1)
        session.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(_TABLE)))
        dropped = _one(session, "SELECT clock_timestamp()")
        end = _one(session, "SELECT pg_current_wal_flush_lsn()::text")
    say(f"the table {_TABLE} was dropped at {dropped:%H:%M:%S.%f}; {before[0]} rows are gone")
    waited = _wait_stored(lab, parse_lsn(end))
    say(f"its WAL is in the repository {waited:.1f} s later; now back to {moment:%H:%M:%S.%f}")
    target = lab.root / "sandbox" / "before-the-accident"
    begun = time.monotonic()
    try:
        document = _restore(lab, system, moment.isoformat(), target)
        after = _restored_content(lab, system, target)
    finally:
        for folder in target.parent.glob(f"{target.name}*"):
            shutil.rmtree(folder)
    return {
        "table": _TABLE,
        "rows": before[0],
        "moment": moment.isoformat(),
        "dropped_at": dropped.isoformat(),
        "chain": document["chain"],
        "wal_segments": document["wal_segments"],
        "equal": before == after,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _wait_stored(lab: Lab, lsn: int) -> float:
    begun = time.monotonic()
    while time.monotonic() - begun < _STORED_SECONDS:
        rows = lab.app038.execute("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'recovery'")
        if rows and rows[0][0] and parse_lsn(rows[0][0]) >= lsn:
            return time.monotonic() - begun
        time.sleep(0.1)
    raise LabError(
        f"the WAL of the accident was not stored in {_STORED_SECONDS:.0f} s: is postgres_wal_archive running?"
    )


def _restore(lab: Lab, system: str, to: str, target: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "recovery", "restore", "postgres", system, "--to", to, "--pgdata", target]
    for (name,) in lab.app038.execute("SELECT spcname FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''"):
        command += ["--tablespace", f"{name}={target.with_name(f'{target.name}-{name}')}"]
    done = subprocess.run([*command, "--json"], env=os.environ | lab.env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"the restore failed: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _restored_content(lab: Lab, system: str, target: Path) -> tuple[Any, ...]:
    settings = installation_of(lab).configuration
    server = SandboxServer(
        target,
        tools=tools.find(lab.app038.major, configured=settings.postgres_system(system).tools),
        superuser="postgres",
        owner=owner.choose(settings.sandbox.user),
    )
    with server, server.connect(app038.DATABASE) as session:
        return _content(session)


def _content(session: Connection[Any]) -> tuple[Any, ...]:
    session.execute("SET timezone = 'UTC'")
    row = session.execute(_CONTENT).fetchone()
    assert row is not None
    return tuple(row)


def _one(session: Connection[Any], query: Any) -> Any:
    row = session.execute(query).fetchone()
    assert row is not None
    return row[0]
