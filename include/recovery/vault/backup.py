"""One backup of a Vault: the snapshot, verified while it streams, the export of its policies, and the manifest."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import recovery
from recovery.config import Configuration, VaultSystem
from recovery.connections import Connection
from recovery.errors import StoreError, VaultUnreachable
from recovery.manifest import FORMAT_VERSION, Maker, RaftSnapshot, StoredObject, VaultManifest
from recovery.repository import layout
from recovery.repository.heap import share_one_heap
from recovery.repository.lease import Lease
from recovery.repository.sealing import SealingWriter, parse_recipient
from recovery.repository.store import ObjectStore
from recovery.vault import catalog, export, inspect
from recovery.vault.catalog import Snapshot
from recovery.vault.session import Session, log_in
from recovery.vault.snapshot import SnapshotVerifier
from recovery.vault.stream import snapshot_of

if TYPE_CHECKING:
    import hvac

log = logging.getLogger(__name__)

Kind = Literal["full", "snapshot", "policies"]
Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, the bytes done and the bytes expected (None: not known)."""

JOB = "snapshot"
# Its size is not known before its end, and the parts of an upload must be: 64 GiB are parts of 8 MiB in S3.
_SIZE_LIMIT = 64 << 30
_ELECTION_SECONDS = 60.0
_ELECTION_POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Source:
    """One Vault of the configuration, with its secrets and its store resolved."""

    name: str
    settings: VaultSystem
    connection: Connection
    store: ObjectStore
    recipients: tuple[str, ...]

    @classmethod
    def of(cls, configuration: Configuration, name: str, *, connection: Connection, store: ObjectStore) -> Source:
        return cls(
            name=name,
            settings=configuration.vault_system(name),
            connection=connection,
            store=store,
            recipients=tuple(configuration.encryption.recipients),
        )


def take(source: Source, kind: Kind = "full", *, progress: Progress = lambda what, done, expected: None) -> Snapshot:
    """Take a backup and commit it; returns what was committed.

    A node that is lost under way is passed over: the work begins again on the next active one, for a minute. Raises
    VaultUnreachable or PreconditionError before anything is copied, IntegrityError for a snapshot that does not verify,
    LeaseError when another writer is at work. Whatever is raised, nothing is committed and no upload is left open.
    """
    share_one_heap()
    source.store.check()
    with _lease(source) as check_lease:
        work = _Work(source, kind, progress, check_lease)
        deadline = time.monotonic() + _ELECTION_SECONDS
        while True:
            try:
                with log_in(source.connection) as session:
                    return work.make(session)
            except VaultUnreachable as problem:
                if not work.begun or time.monotonic() >= deadline:
                    raise
                log.warning("%s: %s; waiting for an active node", source.name, problem)
                time.sleep(_ELECTION_POLL_SECONDS)


class _Work:
    def __init__(self, source: Source, kind: Kind, progress: Progress, check_lease: Callable[[], None]) -> None:
        self._source, self._kind, self._progress, self._check_lease = source, kind, progress, check_lease
        self._recipients = [parse_recipient(text) for text in source.recipients]
        self._started = time.monotonic()
        self.begun = False

    def make(self, session: Session) -> Snapshot:
        source, kind = self._source, self._kind
        moment, identifier, folder = self._unused_folder()
        server = inspect.describe(session.client)
        objects: list[StoredObject] = []
        found = None
        prepared = time.monotonic()
        if kind != "policies":
            inspect.check_storage(session.client)
            self.begun = True
            stored, found = self._snapshot(session, folder)
            objects.append(stored)
            transit = inspect.merged(server.transit, inspect.transit(session.client))
            server = server.model_copy(update={"transit": transit})
        if kind != "snapshot":
            objects.append(self._export(session.client, folder))
        copied = time.monotonic()
        made = Snapshot(
            VaultManifest(
                format_version=FORMAT_VERSION,
                id=identifier,
                kind=kind,
                product=source.settings.product,
                system=source.name,
                started_at=moment,
                finished_at=datetime.now(UTC),
                server=server,
                snapshot=found,
                recipients=list(source.recipients),
                maker=Maker(program="recovery", version=recovery.__version__, host=socket.gethostname()),
                timings_seconds={
                    "prepare": round(prepared - self._started, 3),
                    "copy": round(copied - prepared, 3),
                },
                objects=objects,
            ),
            folder,
        )
        session.check()
        self._check_lease()
        catalog.commit(source.store, made)
        return made

    def _unused_folder(self) -> tuple[datetime, str, str]:
        while True:
            moment = datetime.now(UTC)
            identifier = layout.backup_id(moment, self._kind)
            taken = self._source.store.folders(layout.snapshots_folder(self._source.name))
            if not any(layout.moment_of(other) == layout.moment_of(identifier) for other in taken):
                return moment, identifier, layout.snapshot_folder(self._source.name, identifier)
            time.sleep(0.1)

    def _snapshot(self, session: Session, folder: str) -> tuple[StoredObject, RaftSnapshot]:
        taken_at = datetime.now(UTC)
        verifier = SnapshotVerifier()
        with contextlib.closing(verifier), self._sealed(folder + layout.SNAPSHOT) as writer:
            done = 0
            for piece in snapshot_of(session.client):
                verifier.write(piece)
                writer.write(piece)
                done += len(piece)
                session.check()
                self._check_lease()
                self._progress("snapshot", done, None)
            facts = verifier.finish()
            sealed = writer.commit()
        stored = StoredObject.of(sealed, folder=folder, role="snapshot")
        return stored, RaftSnapshot(
            taken_at=taken_at,
            index=facts.index,
            term=facts.term,
            state_bytes=facts.state_bytes,
            state_sha256=facts.state_sha256,
            key_counts=facts.keys,
            mount_key_counts=facts.mount_keys,
        )

    def _export(self, client: hvac.Client, folder: str) -> StoredObject:
        self._progress("policies", 0, None)
        content = export.pack(export.collect(client, product=self._source.settings.product))
        with self._sealed(folder + layout.EXPORT) as writer:
            writer.write(content)
            sealed = writer.commit()
        return StoredObject.of(sealed, folder=folder, role="export")

    @contextlib.contextmanager
    def _sealed(self, key: str) -> Iterator[SealingWriter]:
        writer = SealingWriter(self._source.store, key, recipients=self._recipients, size_limit=_SIZE_LIMIT)
        try:
            yield writer
        except BaseException:
            writer.abort()
            raise


@contextlib.contextmanager
def _lease(source: Source) -> Iterator[Callable[[], None]]:
    """One writer per Vault. A store that cannot keep leases does not stop a backup."""
    lease = Lease(source.store, kind="vault", name=source.name, job=JOB)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lease)
        except StoreError:
            yield lambda: None
            return
        yield lease.check
