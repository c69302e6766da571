"""One measured process: does one piece of work and prints its seconds and peak memory as JSON.

Run by `_measure.measure` as `python -m benchmarks._worker WORK ARGUMENTS`, so that each figure is of a fresh process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recovery import config
from recovery.installation import Installation
from recovery.postgres import backup, inspect, owner, restore
from recovery.postgres.replication import BaseBackup, StreamOptions
from recovery.repository import catalog

SYSTEM = "bench"


def drain(where: str) -> int:
    """The protocol stream with the same compression, and nothing else: neither sealed nor written."""
    import zstandard

    installation = Installation(config.load())
    settings = installation.configuration.postgres_system(SYSTEM)
    connection = installation.connection(settings.connection)
    level, workers = settings.base.compression.level, settings.base.compression.workers
    server = inspect.inspect(connection)
    options = StreamOptions(label="bench", server_compression=(level, workers) if where == "server" else None)
    compressor = zstandard.ZstdCompressor(level=level, threads=workers).compressobj() if where == "client" else None
    total, batch, batched = 0, [], 0
    with BaseBackup(connection, options, version_number=server.version_number) as stream:
        for message in stream.messages():
            if isinstance(message, memoryview):
                total += len(message)
                batch.append(message)
                batched += len(message)
                if batched >= 1 << 20:
                    if compressor is not None:
                        compressor.compress(b"".join(batch))
                    batch.clear()
                    batched = 0
    if compressor is not None:
        compressor.flush()
    return total


def base() -> int:
    return backup.take(Installation(config.load()).source(SYSTEM), "full").manifest.stored_bytes


def dump() -> int:
    return backup.take(Installation(config.load()).source(SYSTEM), "dump").manifest.stored_bytes


def restored(target: str) -> int:
    installation = Installation(config.load())
    store = installation.store_of(SYSTEM)
    newest = catalog.read(store, SYSTEM).newest("full")
    assert newest is not None
    done = restore.restore_base(
        store,
        newest,
        Path(target),
        identities=installation.identities(),
        tablespaces={},
        owner=owner.choose(installation.configuration.sandbox.user),
    )
    return done.fetched_bytes


WORK: dict[str, Callable[..., int]] = {"drain": drain, "base": base, "dump": dump, "restore": restored}


def peak_rss_bytes() -> int:
    """This process's high-water mark (proc_pid_status(5), VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError("VmHWM")


def main() -> None:
    begun, moment = time.monotonic(), datetime.now(UTC)
    size = WORK[sys.argv[1]](*sys.argv[2:])
    result: dict[str, Any] = {
        "seconds": time.monotonic() - begun,
        "bytes": size,
        "peak_rss_bytes": peak_rss_bytes(),
        "started_at": moment.isoformat(),
        "pid": os.getpid(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
