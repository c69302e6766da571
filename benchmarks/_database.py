"""The database that is backed up: pgbench's tables, an event table and random blobs, filled once and kept."""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import LiteralString

import psycopg

from lab.postgres import SUPERUSER, PostgresServer

# Of the whole size. What each part is like for a compressor: text that repeats itself, rows, and nothing to gain.
_PGBENCH, _EVENTS, _BLOBS = 0.48, 0.34, 0.18
_MB_PER_SCALE = 15.7
_EVENTS_PER_MB = 5_370
_BLOB_BYTES = 32_768
_WHILE_FILLING = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "summarize_wal": "off"}

_EVENT_TABLE: LiteralString = """
CREATE TABLE events (
    id bigint PRIMARY KEY, happened_at timestamptz NOT NULL, kind text NOT NULL, actor bigint NOT NULL,
    payload jsonb NOT NULL
)
"""
_EVENT_ROWS: LiteralString = """
INSERT INTO events
SELECT n, now() - n * interval '3 seconds',
       (ARRAY['login','order.placed','order.paid','order.shipped','logout'])[1 + n %% 5], hashint8(n) %% 50000,
       jsonb_build_object('ip', '10.1.' || n %% 250 || '.' || n %% 199, 'request', md5('r' || n), 'ms', n %% 977)
FROM generate_series(1, %(rows)s) AS n
"""


def prepare(folder: Path, *, size_mb: int) -> PostgresServer:
    """A server on a database of about `size_mb` MB below `folder`, made there unless it is kept from a run before.

    The server is running; the caller stops it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "filled.json"
    known = json.loads(note.read_text()) if note.exists() else {"password": secrets.token_urlsafe(18)}
    server = PostgresServer(folder / "data", settings={"max_wal_size": "4GB"}, passwords={SUPERUSER: known["password"]})
    server.start()
    if not note.exists():
        try:
            _fill(server, size_mb)
        except BaseException:
            server.stop()
            raise
        descriptor = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(known, file)
    return server


def _fill(server: PostgresServer, size_mb: int) -> None:
    for name, value in _WHILE_FILLING.items():
        server.execute(psycopg.sql.SQL("ALTER SYSTEM SET {} = {}").format(psycopg.sql.Identifier(name), value))
    server.execute("SELECT pg_reload_conf()")
    with ThreadPoolExecutor(2) as pool:
        parts = [pool.submit(_pgbench, server, size_mb), pool.submit(_events_and_blobs, server, size_mb)]
        for part in parts:
            part.result()
    server.execute("VACUUM ANALYZE")
    server.execute("ALTER SYSTEM RESET ALL")
    server.execute("SELECT pg_reload_conf()")
    server.execute("SELECT pg_switch_wal()")
    server.execute("CHECKPOINT")


def _pgbench(server: PostgresServer, size_mb: int) -> None:
    scale = max(1, round(_PGBENCH * size_mb / _MB_PER_SCALE))
    subprocess.run(
        [server.bindir / "pgbench", "--initialize", "--init-steps=dtgp", "--quiet", f"--scale={scale}", "postgres"],
        env={"PATH": os.defpath, "PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": SUPERUSER}
        | {"PGPASSWORD": server.passwords[SUPERUSER]},
        stderr=subprocess.DEVNULL,
        check=True,
    )


def _events_and_blobs(server: PostgresServer, size_mb: int) -> None:
    generator = random.Random(38)
    with psycopg.connect(server.dsn()) as connection:
        connection.execute(_EVENT_TABLE)
        connection.execute(_EVENT_ROWS, {"rows": round(_EVENTS * size_mb * _EVENTS_PER_MB)})
        connection.execute("CREATE TABLE blobs (id bigint PRIMARY KEY, content bytea NOT NULL)")
        connection.execute("ALTER TABLE blobs ALTER COLUMN content SET STORAGE EXTERNAL")
        with connection.cursor().copy("COPY blobs FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int8", "bytea"])
            for number in range(round(_BLOBS * size_mb * 1e6 / _BLOB_BYTES)):
                copy.write_row((number, generator.randbytes(_BLOB_BYTES)))
