"""One backup from preflight to commit: who may write, what the server is, the copy, the manifest."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import recovery
from recovery.config import Configuration, PostgresSystem
from recovery.connections import Connection
from recovery.errors import StoreError
from recovery.manifest import FORMAT_VERSION, Maker, Manifest, Server, StoredObject, Wal
from recovery.postgres import base, dump, inspect
from recovery.repository import catalog, layout
from recovery.repository.catalog import Backup
from recovery.repository.heap import share_one_heap
from recovery.repository.lease import Lease
from recovery.repository.sealing import parse_recipient
from recovery.repository.store import ObjectStore

Kind = Literal["full", "dump"]
Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, the bytes done and the bytes expected (None: not known)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One PostgreSQL system of the configuration, with its secrets and its store resolved."""

    name: str
    settings: PostgresSystem
    connection: Connection
    store: ObjectStore
    recipients: tuple[str, ...]

    @classmethod
    def of(cls, configuration: Configuration, name: str, *, connection: Connection, store: ObjectStore) -> Source:
        settings = configuration.postgres_system(name)
        return cls(
            name=name,
            settings=settings,
            connection=connection,
            store=store,
            recipients=tuple(configuration.encryption.recipients),
        )


def take(source: Source, kind: Kind, *, progress: Progress = lambda what, done, expected: None) -> Backup:
    """Take a backup and commit it; returns what was committed.

    Raises PreconditionError before anything is copied, LeaseError when another writer is at work, BackupError or
    StoreError when the copy fails. Whatever is raised, nothing is committed and no upload is left open.
    """
    started = time.monotonic()
    share_one_heap()
    server = inspect.inspect(source.connection)
    tools = _preflight(source, server, kind)
    source.store.check()
    with _lease(source, kind) as check_lease:
        moment, identifier, folder = _unused_folder(source, server, kind)
        prepared = time.monotonic()
        work = _Work(source, folder, identifier, server, progress, check_lease)
        objects, wal, notes = work.base() if kind == "full" else work.dump(tools)
        copied = time.monotonic()
        made = Backup(
            Manifest(
                format_version=FORMAT_VERSION,
                id=identifier,
                kind=kind,
                product="postgresql",
                system=source.name,
                started_at=moment,
                finished_at=datetime.now(UTC),
                server=server,
                wal=wal,
                recipients=list(source.recipients),
                maker=Maker(program="recovery", version=recovery.__version__, host=socket.gethostname()),
                timings_seconds={"prepare": round(prepared - started, 3), "copy": round(copied - prepared, 3)},
                notes=notes,
                objects=objects,
            ),
            folder,
        )
        check_lease()
        catalog.commit(source.store, made)
    return made


def _unused_folder(source: Source, server: Server, kind: Kind) -> tuple[datetime, str, str]:
    """A moment whose id no other backup has, committed or not: one second is an id's finest step."""
    while True:
        moment = datetime.now(UTC)
        identifier = layout.backup_id(moment, kind)
        folder = layout.backup_folder(source.name, server.system_identifier, identifier)
        if not any(True for _ in source.store.scan(folder)):
            return moment, identifier, folder
        time.sleep(0.1)


def _preflight(source: Source, server: Server, kind: Kind) -> Any:
    where = f"PostgreSQL {source.connection.host}:{source.connection.port or 5432}"
    configured = source.settings.tools
    if kind == "full":
        compression = source.settings.base.compression
        inspect.check_base_backup(source.connection, server, compression=compression, configured_tools=configured)
    return inspect.check_restorable(server, where=where, configured_tools=configured)


@dataclass(frozen=True)
class _Work:
    source: Source
    folder: str
    identifier: str
    server: Server
    progress: Progress
    check_lease: Callable[[], None]

    def base(self) -> tuple[list[StoredObject], Wal | None, list[str]]:
        def tick(done: int, expected: int) -> None:
            self.check_lease()
            self.progress("base backup", done, expected)

        taken = base.take(
            self.source.connection,
            self.source.store,
            folder=self.folder,
            label=f"recovery {self.identifier}",
            server=self.server,
            options=self.source.settings.base,
            recipients=self._recipients(),
            tick=tick,
        )
        return taken.objects, taken.wal, []

    def dump(self, tools: Any) -> tuple[list[StoredObject], Wal | None, list[str]]:
        total = 0

        def tick(database: str, sealed: int) -> None:
            nonlocal total
            total += sealed
            self.check_lease()
            self.progress(f"dump of {database}", total, None)

        objects, notes = dump.take(
            self.source.connection,
            self.source.store,
            folder=self.folder,
            server=self.server,
            options=self.source.settings.dump,
            tools=tools,
            recipients=self._recipients(),
            tick=tick,
        )
        return objects, None, notes

    def _recipients(self) -> list[Any]:
        return [parse_recipient(text) for text in self.source.recipients]


@contextlib.contextmanager
def _lease(source: Source, kind: Kind) -> Iterator[Callable[[], None]]:
    """One writer per system and kind. A store that cannot keep leases does not stop a backup."""
    lease = Lease(source.store, kind="postgres", name=source.name, job=kind)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lease)
        except StoreError:
            # Fail open: the store was reached a moment ago; one that only lacks conditional writes takes uploads.
            yield lambda: None
            return
        yield lease.check
