"""Restore a snapshot into a running node: first the plan, then the restore, then the checks against the manifest.

Restored is one fresh node; its peers join it afterwards (`operator raft join`). A node that is in use already is
replaced only when that is asked for, and one that the configuration names as production only by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from recovery.connections import Connection
from recovery.errors import ConfigurationError, PreconditionError, RecoveryError
from recovery.installation import Installation
from recovery.vault import apply, compare, content
from recovery.vault.catalog import Snapshot
from recovery.vault.session import addresses, client_of, errors_of, log_in

if TYPE_CHECKING:
    import hvac

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a restore would do. Nothing has been touched."""

    backup: Snapshot
    target: str
    replaces: str
    """What the target holds now, in words; empty for a fresh node."""
    production: str | None
    """The configured Vault that the target is, or is a node of."""
    blocked_by: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        found = self.backup.manifest
        return {
            "backup": found.id,
            "product": found.product,
            "server_version": found.server.version,
            "recovery_point": found.recovery_point.isoformat(),
            "fetch_bytes": self.backup.object("snapshot").stored_bytes,
            "seal": found.server.seal.model_dump(),
            "cluster_id": found.server.cluster_id,
            "mounts": len(found.server.mounts),
            "policies": len(found.server.policies),
            "target": self.target,
            "replaces": self.replaces,
            "production": self.production,
            "blocked_by": list(self.blocked_by),
        }


@dataclass(frozen=True)
class Restored:
    """What came of it: each check with its problems; `unchecked` says why nothing could be compared."""

    checks: compare.Found
    unchecked: str = ""

    @property
    def good(self) -> bool:
        return not self.unchecked and not any(self.checks.values())


def plan(
    installation: Installation,
    backup: Snapshot,
    target: Connection,
    *,
    replace_it: bool = False,
    production: str | None = None,
) -> Plan:
    """Look at the target, and say what a restore into it would do; raises VaultUnreachable, ConfigurationError."""
    (address,) = _single(target)
    client = client_of(address, target)
    with errors_of(address):
        status = client.seal_status
    fresh = not status["initialized"]
    found = backup.manifest.server
    name = _production(installation, address, str(status.get("cluster_id", "")), backup)
    blocked = []
    if name is not None and production != name:
        blocked.append(f"this is production: give --production {name} if it is meant")
    if not fresh and not replace_it and name is None:
        blocked.append("the node is in use: give --replace if all that it holds is to be lost")
    if _release(status["version"]) < _release(found.version):
        blocked.append(f"the node runs {status['version']}, and the snapshot is of {found.version}: upgrade the node")
    replaces = "" if fresh else _held(client, status)
    return Plan(backup=backup, target=address, replaces=replaces, production=name, blocked_by=tuple(blocked))


def run(
    installation: Installation,
    made: Plan,
    target: Connection,
    escrowed: Sequence[str],
    *,
    progress: Progress = lambda what, done, expected: None,
) -> Restored:
    """Restore as planned. Raises PreconditionError for a blocked plan, RestoreError when a step fails."""
    if made.blocked_by:
        raise PreconditionError(made.blocked_by[0], where=made.target)
    backup, settings = made.backup, installation.configuration.vault_system(made.backup.manifest.system)
    store, identities = installation.vault_store(backup.manifest.system), installation.identities()
    total = backup.object("snapshot").stored_bytes

    def pieces() -> Any:
        return content.stream(store, backup, identities, tick=lambda done: progress("restore", done, total))

    client = client_of(made.target, target)
    if made.replaces:
        with log_in(replace(target, host=made.target)) as session:
            _replace(session.client, pieces)
    else:
        client.token = apply.initialise(client, backup.manifest.server.seal)
        apply.restore(client, pieces(), force=True)
        apply.wait_applied(client)
    progress("unseal", 0, None)
    if backup.manifest.server.seal.type == "shamir":
        apply.unseal(client, escrowed)
    apply.wait_active(client)
    return _checked(made, installation.connection(settings.connection))


def _replace(client: hvac.Client, pieces: Callable[[], Any]) -> None:
    """Without force where the node's keys are those of the snapshot: then it need not be unsealed by others."""
    try:
        apply.restore(client, pieces(), force=False)
    except apply.SealMismatch:
        apply.restore(client, pieces(), force=True)
        apply.wait_applied(client)


def _checked(made: Plan, connection: Connection) -> Restored:
    """Compared as the backup identity: what it may read there it may read here, for its role came with the snapshot."""
    try:
        with log_in(replace(connection, host=made.target)) as session:
            return Restored(compare.compare(session.client, made.backup.manifest)[1])
    except RecoveryError as problem:
        return Restored({}, f"the restored node could not be compared with the manifest: {problem}")


def _single(target: Connection) -> list[str]:
    found = addresses(target)
    if len(found) != 1:
        raise ConfigurationError(
            "a restore goes into one node", where=f"connection {target.id}", remedy="name one address"
        )
    return found


def _production(installation: Installation, address: str, cluster_id: str, backup: Snapshot) -> str | None:
    """The configured Vault that an address belongs to: by its address, or by the identity of its cluster."""
    if cluster_id and cluster_id == backup.manifest.server.cluster_id:
        return backup.manifest.system
    for name, settings in installation.configuration.vault.items():
        known = {_endpoint(each) for each in addresses(installation.connection(settings.connection))}
        if _endpoint(address) in known:
            return name
    return None


def _endpoint(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    host = (parts.hostname or "").lower()
    return "127.0.0.1" if host == "localhost" else host, parts.port or (443 if parts.scheme == "https" else 80)


def _held(client: hvac.Client, status: dict[str, Any]) -> str:
    sealed = ", sealed" if status["sealed"] else ""
    return f"all of cluster {status.get('cluster_id') or 'unknown'} (version {status['version']}{sealed})"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split("-")[0].split(".")[:2] if part.isdigit())
