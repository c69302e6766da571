"""One measured process: does one piece of work and prints its seconds, and what it wrote, as JSON.

Run by `_measure.worker` as `python -m benchmarks._worker WORK ARGUMENTS`, so that each figure is of a fresh process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zstandard

from benchmarks._processes import status_bytes
from recovery import config
from recovery.installation import Installation
from recovery.postgres import backup, inspect, moment, owner, replay, tools
from recovery.postgres import verify as postgres_verify
from recovery.postgres.replication import BaseBackup, StreamOptions
from recovery.postgres.wal import stream
from recovery.postgres.wal.positions import parse_lsn
from recovery.postgres.wal.receiver import Progress
from recovery.repository import catalog
from recovery.repository.verify import Level, Verdict
from recovery.vault import backup as vault_backup
from recovery.vault.session import log_in

SYSTEM = "bench"
_BATCH_BYTES = 1 << 20


def drain(where: str) -> int:
    """The protocol stream with the same compression, and nothing else: neither sealed nor written."""
    installation = Installation(config.load())
    settings = installation.configuration.postgres_system(SYSTEM)
    connection = installation.connection(settings.connection)
    level, workers = settings.base.compression.level, settings.base.compression.workers
    server = inspect.inspect(connection)
    options = StreamOptions(label="bench", server_compression=(level, workers) if where == "server" else None)
    compressor = zstandard.ZstdCompressor(level=level, threads=workers, write_checksum=True).compressobj()
    total = batched = 0
    batch: list[memoryview] = []
    with BaseBackup(connection, options, version_number=server.version_number) as stream:
        for message in stream.messages():
            if not isinstance(message, memoryview):
                continue
            total += len(message)
            if where == "server":
                continue
            batch.append(message)
            batched += len(message)
            if batched >= _BATCH_BYTES:
                compressor.compress(b"".join(batch))
                batch.clear()
                batched = 0
    compressor.compress(b"".join(batch))
    compressor.flush()
    return total


def base() -> int:
    return backup.take(Installation(config.load()).source(SYSTEM), "full").manifest.stored_bytes


def incremental() -> int:
    made = backup.take(Installation(config.load()).source(SYSTEM), "incremental").manifest
    if made.kind != "incremental":
        raise RuntimeError(f"a full was taken: {made.notes}")
    return made.stored_bytes


def dump() -> int:
    return backup.take(Installation(config.load()).source(SYSTEM), "dump").manifest.stored_bytes


def wal(end: str) -> int:
    """Stream until everything before `end` is stored."""
    wanted = parse_lsn(end)
    reached = Progress()

    def tick(progress: Progress) -> None:
        nonlocal reached
        reached = progress

    stream.stream(
        lambda: Installation(config.load()).source(SYSTEM), stop=lambda: reached.received >= wanted, tick=tick
    )
    store = Installation(config.load()).store_of(SYSTEM)
    return sum(info.size for info in store.scan("postgres/"))


def restored(target: str, to: str = "end") -> int:
    """To the end of the newest backup, or with `latest` to the end of the stored WAL."""
    installation = Installation(config.load())
    store, settings = installation.store_of(SYSTEM), installation.configuration.postgres_system(SYSTEM)
    found = catalog.read(store, SYSTEM)
    wanted = moment.parse(_newest(installation).id if to == "end" else to)
    route = moment.find(store, found, SYSTEM, wanted)
    done, _ = replay.restore_to(
        store,
        route,
        Path(target),
        identities=installation.identities(),
        tablespaces={},
        tools=tools.find(route.backup.manifest.server.major, configured=settings.tools),
        owner=owner.choose(installation.configuration.sandbox.user),
    )
    return done.fetched_bytes


def verified(level: str) -> int:
    installation = Installation(config.load())
    report = postgres_verify.verify(installation, SYSTEM, _newest(installation), Level(level))
    if report.verdict is not Verdict.OK:
        raise RuntimeError(str(report))
    return report.bytes_read


def vault_save(target: str) -> int:
    """As an agent does: what the API returns, into a file."""
    installation = Installation(config.load())
    with log_in(installation.connection("bench_vault")) as session, Path(target).open("wb") as file:
        for piece in session.client.sys.take_raft_snapshot().iter_content(_BATCH_BYTES):
            file.write(piece)
    return Path(target).stat().st_size


def vault_snapshot() -> int:
    return vault_backup.take(Installation(config.load()).vault_source(SYSTEM), "snapshot").manifest.stored_bytes


def _newest(installation: Installation) -> catalog.Backup:
    newest = catalog.read(installation.store_of(SYSTEM), SYSTEM).newest("full", "incremental")
    if newest is None:
        raise LookupError("no backup was taken")
    return newest


WORK: dict[str, Callable[..., int]] = {
    "drain": drain,
    "base": base,
    "incremental": incremental,
    "dump": dump,
    "restore": restored,
    "wal": wal,
    "verify": verified,
    "vault-save": vault_save,
    "vault-snapshot": vault_snapshot,
}


def written_bytes() -> int:
    """What this process and the children it waited for gave to file systems to keep (proc_pid_io(5), write_bytes)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))


def main() -> None:
    begun = time.perf_counter()
    size = WORK[sys.argv[1]](*sys.argv[2:])
    result = {
        "seconds": time.perf_counter() - begun,
        "bytes": size,
        "peak_rss_bytes": status_bytes("self", "VmHWM"),
        "written_bytes": written_bytes(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
