"""A Vault's drill: restore a snapshot into a throwaway node, unseal it with the escrowed shares, check it, destroy it.

Alone, or as half of a recovery set beside a restored database (recovery.drill.postgres).
"""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import recovery
from recovery import recovery_set
from recovery.drill import canaries, evidence, reconcile
from recovery.drill.evidence import Check, Evidence
from recovery.drill.reconcile import Loose
from recovery.drill.record import Progress, Record
from recovery.drill.workplace import workplace
from recovery.errors import (
    ConfigurationError,
    PreconditionError,
    RecoveryError,
    SealError,
    ServerError,
    StoreUnreachable,
)
from recovery.installation import Installation
from recovery.manifest import VaultServer
from recovery.postgres.server import SandboxServer
from recovery.repository.catalog import Backup
from recovery.repository.verify import Verdict, worst
from recovery.vault import apply, catalog, compare, content, shares
from recovery.vault.catalog import Snapshot
from recovery.vault.server import SandboxVault, find_binary

if TYPE_CHECKING:
    import hvac

_CIRCUMSTANCES = (StoreUnreachable, SealError, PreconditionError, ServerError)
"""What says nothing about the backup: the drill could not be made."""


@dataclass
class Half:
    """The Vault's half of a recovery set, or a snapshot that is drilled alone."""

    installation: Installation
    name: str
    snapshot: Snapshot | None
    risk: str = ""
    apart_seconds: float = 0.0
    system: str | None = None
    """The PostgreSQL system of the set."""
    loose: list[Loose] = field(default_factory=list)
    _client: hvac.Client | None = None
    _server: VaultServer | None = None

    @contextlib.contextmanager
    def restored(self, folder: Path, record: Record) -> Iterator[None]:
        """Restore it and check it against its manifest. What goes wrong is a check's finding; the block runs anyhow."""
        if self.snapshot is None:
            record.checks.append(Check("recovery set", Verdict.FAILED, self.risk))
            yield
            return
        if self.system is not None:
            word = "after" if self.apart_seconds >= 0 else "before"
            apart = f"{self.snapshot.id}, {abs(self.apart_seconds):.0f} s {word} the recovery point"
            record.checks.append(Check("recovery set", Verdict.OK, f"{apart}; {self.risk}" if self.risk else apart))
        with contextlib.ExitStack() as stack:
            try:
                self._client = stack.enter_context(self._node(self.snapshot, folder, record))
            except ConfigurationError:
                raise
            except _CIRCUMSTANCES as problem:
                record.checks.append(Check("vault restore", Verdict.UNKNOWN, f"the Vault's half: {problem}"))
            except RecoveryError as problem:
                record.checks.append(Check("vault restore", Verdict.FAILED, f"the Vault's half is wrong: {problem}"))
            else:
                self._check(self._client, self.snapshot, record)
            yield
            if self._client is not None:
                with record.phase("vault seal"):
                    record.checks.append(self._trial(self._client, self.snapshot))

    def check(self, server: SandboxServer, record: Record) -> None:
        """What takes both halves: the canaries, and the credentials that each of them knows of."""
        settings = self.installation.configuration.postgres_system(str(self.system))
        if self._client is None or self._server is None or settings.keys is None:
            return
        with record.phase("canaries"):
            try:
                record.checks += canaries.check(server.connect, self._client, settings.keys, self._server.transit)
            except RecoveryError as problem:
                record.checks.append(Check("canaries", Verdict.UNKNOWN, str(problem)))
        with record.phase("reconcile"), server.connect("postgres") as session:
            try:
                source = self.installation.connection(settings.drill.source or settings.connection)
                taken_by = settings.credentials.path.rpartition("/")[2] if settings.credentials else None
                self.loose = reconcile.reconcile(
                    session, self._client, self._server.mounts, source, backup_role=taken_by
                )
            except RecoveryError as problem:
                record.checks.append(Check("credentials", Verdict.UNKNOWN, str(problem)))
                return
        # Loose ends are work for whoever restores, and no fault of the backup.
        listed = "; ".join(f"{each.what}: {each.name}" for each in self.loose)
        record.checks.append(
            Check("credentials", Verdict.OK, listed or "every role has its lease, every lease its role")
        )

    @contextlib.contextmanager
    def _node(self, snapshot: Snapshot, folder: Path, record: Record) -> Iterator[hvac.Client]:
        """A throwaway node with the snapshot in it, unsealed; the client has a root token made from the shares."""
        configuration = self.installation.configuration
        settings = configuration.vault_system(self.name)
        if settings.shares is None:
            raise ConfigurationError(
                "a drill needs the escrowed unseal shares",
                where=f"vault.{self.name}.shares",
                remedy="name a connection that holds them; only drills and restores need it",
            )
        escrowed = shares.of_connection(self.installation.connection(settings.shares))
        store, identities = self.installation.vault_store(self.name), self.installation.identities()
        node = SandboxVault(
            folder,
            binary=find_binary(settings.product, settings.binary),
            product=settings.product,
            isolated=configuration.sandbox.network == "isolated",
            seal_config=settings.seal,
        )
        with contextlib.ExitStack() as stack:
            with record.phase("vault start"):
                stack.enter_context(node)
                client = node.initialise(snapshot.manifest.server.seal)
            with record.phase("vault restore"):
                apply.restore(client, content.stream(store, snapshot, identities), force=True)
                apply.wait_applied(client)
                apply.unseal(client, escrowed)
                apply.wait_active(client)
            with record.phase("vault root"):
                client = node.client(apply.generate_root(client, escrowed))
            yield client

    def _check(self, client: hvac.Client, snapshot: Snapshot, record: Record) -> None:
        with record.phase("vault checks"):
            try:
                self._server, found = compare.compare(client, snapshot.manifest)
            except RecoveryError as problem:
                record.checks.append(Check("vault checks", Verdict.UNKNOWN, f"the Vault's half: {problem}"))
                return
            for name, problems in found.items():
                record.check(f"vault {name}", problems, "as backed up")

    def _trial(self, client: hvac.Client, snapshot: Snapshot) -> Check:
        """Restored once more without force: a node takes only what its own keys have sealed. Ends the root token."""
        store, identities = self.installation.vault_store(self.name), self.installation.identities()
        try:
            apply.restore(client, content.stream(store, snapshot, identities), force=False)
            apply.wait_active(client)
        except apply.SealMismatch as problem:
            return Check("vault seal", Verdict.FAILED, problem.what)
        except RecoveryError as problem:
            return Check("vault seal", Verdict.UNKNOWN, str(problem))
        return Check("vault seal", Verdict.OK, "the escrowed keys sealed this snapshot: restored without force")


def half_of(installation: Installation, system: str, backup: Backup, *, snapshot: str | None = None) -> Half:
    """The Vault's half of a backup's recovery set: the snapshot that fits it, or the one with this id.

    Raises ConfigurationError where no Vault holds the system's keys.
    """
    keys = installation.configuration.postgres_system(system).keys
    if keys is None:
        raise ConfigurationError(
            "no Vault holds the keys of this system", where=f"postgres.{system}.keys", remedy="name it as keys.vault"
        )
    entry = catalog.read(installation.vault_store(keys.vault), keys.vault)
    snapshots = entry.snapshots if snapshot is None else [entry.find(snapshot)]
    if snapshot is not None:
        apart = (snapshots[0].manifest.recovery_point - backup.manifest.recovery_point).total_seconds()
        return Half(installation, keys.vault, snapshots[0], "chosen by hand", apart, system)
    found = recovery_set.choose(backup.manifest.recovery_point, backup.manifest.key_versions, snapshots)
    return Half(installation, keys.vault, found.snapshot, found.risk, found.apart_seconds, system)


def drill(
    installation: Installation,
    name: str,
    snapshot: Snapshot,
    *,
    progress: Progress = lambda what, done, expected: None,
) -> Evidence:
    """Prove one snapshot and store the evidence, whatever the outcome.

    A snapshot that cannot be restored gives evidence with verdict `failed`; a store, a key or a program that is not at
    hand gives `unknown`. Raises only what keeps evidence from being written, and ConfigurationError.
    """
    record, started = Record(progress), datetime.now(UTC)
    identifier = f"{started:%Y%m%dT%H%M%SZ}-{name}-drill-{uuid.uuid4().hex[:6]}"
    half = Half(installation, name, snapshot)
    with workplace(installation, f"vault-{identifier}") as folder, half.restored(folder / "vault", record):
        pass
    objective = installation.configuration.vault_system(name).objectives.rto
    ready = any(phase.name == "vault checks" for phase in record.phases)
    waited = sum(phase.seconds for phase in record.phases if phase.name in ("vault start", "vault restore"))
    rto = round(waited, 3) if ready else None
    if objective is not None and rto is not None:
        detail = f"{rto:.1f} s, objective {objective.total_seconds():.0f} s"
        met = rto <= objective.total_seconds()
        record.checks.append(Check("rto objective", Verdict.OK if met else Verdict.FAILED, detail))
    manifest = snapshot.manifest
    found = Evidence(
        id=identifier,
        kind="vault",
        system=name,
        backup=snapshot.id,
        recovery_point=manifest.recovery_point,
        started_at=started,
        finished_at=datetime.now(UTC),
        verdict=worst(check.verdict for check in record.checks),
        rpo_seconds=round((started - manifest.recovery_point).total_seconds(), 3),
        rto_seconds=rto,
        rto_objective_seconds=objective.total_seconds() if objective else None,
        fetched_bytes=snapshot.object("snapshot").stored_bytes if ready else 0,
        restored_bytes=manifest.snapshot.state_bytes if manifest.snapshot else 0,
        phases=tuple(record.phases),
        checks=tuple(record.checks),
        tables=(),
        recovery_version=recovery.__version__,
        host=socket.gethostname(),
        vault=name,
        snapshot=snapshot.id,
    )
    evidence.write(installation.vault_store(name), found)
    return found
