"""One backup from preflight to commit: who may write, what the server is, the copy, the manifest."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import recovery
from recovery.config import Configuration, PostgresSystem
from recovery.connections import Connection
from recovery.errors import ChainBroken, ObjectMissing, StoreError
from recovery.manifest import FORMAT_VERSION, KeyVersions, Maker, Manifest, Server, StoredObject, Wal
from recovery.postgres import base, ciphertext, combine, dump, inspect, trust
from recovery.postgres.tools import Tools
from recovery.repository import catalog, layout
from recovery.repository.catalog import Backup
from recovery.repository.heap import share_one_heap
from recovery.repository.lease import Lease
from recovery.repository.sealing import parse_recipient
from recovery.repository.store import ObjectStore
from recovery.vault import credentials

log = logging.getLogger(__name__)

Kind = Literal["full", "incremental", "dump"]
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
    base_connection: Connection | None = None
    """Where the configuration reads base backups from another server of the cluster, a standby."""
    vault: Connection | None = None
    """Where the configuration takes the login from a Vault."""
    check_login: Callable[[], None] = lambda: None
    """Raises VaultError when the login from Vault ends."""

    @classmethod
    def of(
        cls,
        configuration: Configuration,
        name: str,
        *,
        connection: Connection,
        store: ObjectStore,
        base_connection: Connection | None = None,
        vault: Connection | None = None,
    ) -> Source:
        settings = configuration.postgres_system(name)
        return cls(
            name=name,
            settings=settings,
            connection=connection,
            store=store,
            recipients=tuple(configuration.encryption.recipients),
            base_connection=base_connection,
            vault=vault,
        )

    @contextlib.contextmanager
    def logged_in(self) -> Iterator[Source]:
        """This source with a login that Vault gives for the block, where the configuration wants that.

        Call `check_login` of what is yielded while the work goes on. Raises as recovery.vault.credentials.leased does.
        """
        wanted, base = self.settings.credentials, self.base_connection
        if wanted is None:
            yield self
            return
        assert self.vault is not None
        with credentials.leased(self.vault, wanted.path) as login:
            yield replace(
                self,
                connection=login.into(self.connection),
                base_connection=login.into(base) if base is not None else None,
                check_login=login.check,
            )

    def read_for(self, kind: Kind) -> Source:
        """This source with the connection that a backup of this kind reads."""
        return (
            self if kind == "dump" or self.base_connection is None else replace(self, connection=self.base_connection)
        )


def take(source: Source, kind: Kind, *, progress: Progress = lambda what, done, expected: None) -> Backup:
    """Take a backup and commit it; returns what was committed.

    An incremental becomes a full one, in the same run, where the trust engine or the server says that it must; the
    reason is among its notes. Raises PreconditionError before anything is copied, LeaseError when another writer is at
    work, BackupError or StoreError when the copy fails, VaultError when Vault gives no login or it ends. Whatever is
    raised, nothing is committed and no upload is left open.
    """
    started = time.monotonic()
    share_one_heap()
    with source.read_for(kind).logged_in() as reader:
        server = inspect.inspect(reader.connection)
        tools = _preflight(reader, server, kind)
        source.store.check()
        with _lease(source, kind) as check_lease:
            work = _Work(reader, server, tools, progress, check_lease, started)
            return work.incremental() if kind == "incremental" else work.make(kind)


def _preflight(source: Source, server: Server, kind: Kind) -> Tools:
    where = f"PostgreSQL {source.connection.host}:{source.connection.port or 5432}"
    configured = source.settings.tools
    if kind != "dump":
        compression = source.settings.base.compression
        inspect.check_base_backup(source.connection, server, compression=compression, configured_tools=configured)
    tools = inspect.check_restorable(server, where=where, configured_tools=configured)
    if kind == "incremental" and server.major >= trust.FIRST_MAJOR:
        tools.path(combine.PROGRAM)
    return tools


@dataclass(frozen=True)
class _Work:
    source: Source
    server: Server
    tools: Tools
    progress: Progress
    check_lease: Callable[[], None]
    started: float

    def incremental(self) -> Backup:
        """An incremental where it can be trusted, else a full backup that says why."""
        source = self.source
        decision = trust.decide(
            catalog.read(source.store, source.name).backups,
            inspect.trust_state(source.connection, self.server),
            requested=self._request(),
            recipients=source.recipients,
            max_chain=source.settings.incremental.max_chain,
        )
        reason = decision.reason
        if decision.parent is not None:
            log.info("%s: an incremental backup is taken: %s", source.name, reason)
            try:
                return self.make("incremental", parent=decision.parent)
            except ChainBroken as problem:
                reason = problem.what
        note = f"a full backup was taken instead of an incremental one: {reason}"
        log.warning("%s: %s", source.name, note)
        return self.make("full", notes=[note])

    def make(self, kind: Kind, *, parent: Backup | None = None, notes: Sequence[str] = ()) -> Backup:
        moment, identifier, folder = self._unused_folder(kind)
        request = self._request() if kind == "full" else None
        prepared = time.monotonic()
        copy = self._dump(folder) if kind == "dump" else self._base(folder, f"recovery {identifier}", parent)
        copied = time.monotonic()
        keys, unknown = self._carried()
        made = Backup(
            Manifest(
                format_version=FORMAT_VERSION,
                id=identifier,
                kind=kind,
                product="postgresql",
                system=self.source.name,
                parent=parent.id if parent else None,
                chain=[*parent.manifest.chain, parent.id] if parent else [],
                started_at=moment,
                finished_at=datetime.now(UTC),
                server=self.server,
                wal=copy.wal,
                key_versions=keys,
                recipients=list(self.source.recipients),
                maker=Maker(program="recovery", version=recovery.__version__, host=socket.gethostname()),
                timings_seconds={"prepare": round(prepared - self.started, 3), "copy": round(copied - prepared, 3)},
                notes=[*notes, *copy.notes, *unknown],
                objects=copy.objects,
            ),
            folder,
        )
        self.check_lease()
        catalog.commit(self.source.store, made)
        if request is not None and self._request() == request:
            self.source.store.delete(layout.full_request(self.source.name))
        return made

    def _carried(self) -> tuple[dict[str, KeyVersions], list[str]]:
        """The versions of Vault's keys that rows carry now; what cannot be read is a note, and stops no backup."""
        options = self.source.settings.keys
        return ciphertext.versions(self.source.connection, options) if options is not None else ({}, [])

    def _request(self) -> bytes | None:
        """What asks for a full backup; one that comes while a full is copied asks for the next."""
        try:
            return self.source.store.get(layout.full_request(self.source.name))
        except ObjectMissing:
            return None

    def _unused_folder(self, kind: Kind) -> tuple[datetime, str, str]:
        """A moment that no other backup's id names, committed or not: ids are in the order in which backups began."""
        name, cluster = self.source.name, self.server.system_identifier
        while True:
            moment = datetime.now(UTC)
            identifier = layout.backup_id(moment, kind)
            taken = self.source.store.folders(layout.backups_folder(name, cluster))
            if not any(layout.moment_of(other) == layout.moment_of(identifier) for other in taken):
                return moment, identifier, layout.backup_folder(name, cluster, identifier)
            time.sleep(0.1)

    def _base(self, folder: str, label: str, parent: Backup | None) -> _Copy:
        what = "base backup" if parent is None else "incremental backup"

        def tick(done: int, expected: int) -> None:
            self.check_lease()
            self.source.check_login()
            self.progress(what, done, expected)

        taken = base.take(
            self.source.connection,
            self.source.store,
            folder=folder,
            label=label,
            server=self.server,
            options=self.source.settings.base,
            recipients=self._recipients(),
            parent=parent,
            tick=tick,
        )
        return _Copy(taken.objects, taken.wal)

    def _dump(self, folder: str) -> _Copy:
        total = 0

        def tick(database: str, sealed: int) -> None:
            nonlocal total
            total += sealed
            self.check_lease()
            self.source.check_login()
            self.progress(f"dump of {database}", total, None)

        objects, notes = dump.take(
            self.source.connection,
            self.source.store,
            folder=folder,
            server=self.server,
            options=self.source.settings.dump,
            tools=self.tools,
            recipients=self._recipients(),
            tick=tick,
        )
        return _Copy(objects, None, notes)

    def _recipients(self) -> list[Any]:
        return [parse_recipient(text) for text in self.source.recipients]


@dataclass(frozen=True)
class _Copy:
    """What one copy left in the store, not committed yet."""

    objects: list[StoredObject]
    wal: Wal | None
    notes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _lease(source: Source, kind: Kind) -> Iterator[Callable[[], None]]:
    """One writer per system of base backups, full and incremental, and one of dumps.

    A store that cannot keep leases does not stop a backup.
    """
    lease = Lease(source.store, kind="postgres", name=source.name, job=layout.job_of(kind))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lease)
        except StoreError:
            # Fail open: the store was reached a moment ago; one that only lacks conditional writes takes uploads.
            yield lambda: None
            return
        yield lease.check
