"""Restore a snapshot into a running node: first the plan, then the restore, then the checks against the manifest.

Restored is one fresh node; its peers join it afterwards (`operator raft join`). A node that is in use already is
replaced only when that is asked for, and one that the configuration names as production only by its name.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from recovery.connections import Connection
from recovery.errors import ConfigurationError, PreconditionError, RecoveryError, VaultError
from recovery.installation import Installation
from recovery.manifest import Seal
from recovery.vault import apply, compare, content
from recovery.vault.catalog import Snapshot
from recovery.vault.session import addresses, client_of, errors_of, log_in

if TYPE_CHECKING:
    import hvac

Progress = Callable[[str, int, int | None], None]
Pieces = Generator[bytes, None, None]

_THROWAWAY = "the node is initialised with keys that nobody has: empty its storage before the next try"
_SEALED = "the snapshot is in the node, which stays sealed until `operator unseal` is given its original shares"


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
    status = _status(client)
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
    if (active := _active_of(client, status)) is not None:
        blocked.append(f"the node is a standby: name the active one, {active}")
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
    """Restore as planned. Raises PreconditionError for a blocked plan, and RestoreError or what a step raises.

    An error says what it leaves in a fresh node, or in one that the shares given do not open.
    """
    if made.blocked_by:
        raise PreconditionError(made.blocked_by[0], where=made.target)
    seal = made.backup.manifest.server.seal
    _require_enough(seal, escrowed)
    backup = made.backup
    store, identities = installation.vault_store(backup.manifest.system), installation.identities()
    total = backup.object("snapshot").stored_bytes

    def pieces() -> Pieces:
        return content.stream(store, backup, identities, tick=lambda done: progress("restore", done, total))

    client, sealed = client_of(made.target, target), True
    if made.replaces:
        with log_in(replace(target, host=made.target)) as session:
            sealed = _replace(session.client, pieces)
    else:
        _fill(client, seal, pieces)
    if sealed and seal.type == "shamir":
        progress("unseal", 0, None)
        with _leaving(_SEALED):
            apply.unseal(client, escrowed)
    apply.wait_active(client)
    return _checked(installation, made)


def _fill(client: hvac.Client, seal: Seal, pieces: Callable[[], Pieces]) -> None:
    """Into a fresh node, whose own keys are thrown away."""
    source = pieces()
    # Before the node is touched: the object is there, and the identity opens it.
    first = next(source)
    with contextlib.closing(source), _leaving(_THROWAWAY):
        client.token = apply.initialise(client, seal)
        apply.restore(client, itertools.chain([first], source), force=True)
        apply.wait_applied(client)


def _replace(client: hvac.Client, pieces: Callable[[], Pieces]) -> bool:
    """Without force where the keys of the node are the snapshot's: then it stays open. Returns whether it is sealed."""
    try:
        apply.restore(client, pieces(), force=False)
    except apply.SealMismatch:
        apply.restore(client, pieces(), force=True)
        apply.wait_applied(client)
        return True
    return False


@contextlib.contextmanager
def _leaving(words: str) -> Iterator[None]:
    """What goes wrong inside says also what it leaves."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(words) from None
    except RecoveryError as problem:
        remedy = "; ".join(filter(None, (problem.remedy, words)))
        raise type(problem)(problem.what, where=problem.where, remedy=remedy) from None


def _require_enough(seal: Seal, escrowed: Sequence[str]) -> None:
    given = len(set(escrowed))
    if seal.type == "shamir" and given < seal.threshold:
        raise PreconditionError(
            f"{given} different shares were given, and this snapshot needs {seal.threshold}",
            remedy="give as many of the original shares as its threshold says; nothing has been touched",
        )


def _checked(installation: Installation, made: Plan) -> Restored:
    """Compared as the backup identity: what it may read there it may read here, for its role came with the snapshot."""
    settings = installation.configuration.vault_system(made.backup.manifest.system)
    try:
        connection = replace(installation.connection(settings.connection), host=made.target)
        with log_in(connection) as session:
            return Restored(compare.compare(session.client, made.backup.manifest)[1])
    except RecoveryError as problem:
        return Restored({}, f"the restored node could not be compared with the manifest: {problem}")


def _status(client: hvac.Client) -> dict[str, Any]:
    import hvac.exceptions

    with errors_of(client.url):
        try:
            status = client.seal_status
        except hvac.exceptions.InvalidPath:
            status = None
    if not isinstance(status, dict) or not {"initialized", "sealed", "version"} <= status.keys():
        raise VaultError("what answers there is no Vault", where=client.url, remedy="correct the address")
    return status


def _active_of(client: hvac.Client, status: dict[str, Any]) -> str | None:
    """The address of the active node of the cluster that a standby follows."""
    if status["sealed"] or not status["initialized"]:
        return None
    with errors_of(client.url):
        found = client.sys.read_leader_status()
    return None if found.get("is_self") or not found.get("ha_enabled") else str(found.get("leader_address"))


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
    wanted = _endpoints(address)
    for name, settings in installation.configuration.vault.items():
        for known in addresses(installation.connection(settings.connection)):
            if wanted & _endpoints(known):
                return name
    return None


def _endpoints(address: str) -> set[tuple[str, int]]:
    """An address by its name and by every IP address of that: two names of one host have one in common."""
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    return {(host, port), *((str(entry[4][0]), port) for entry in found)}


def _held(client: hvac.Client, status: dict[str, Any]) -> str:
    sealed = ", sealed" if status["sealed"] else ""
    return f"all of cluster {status.get('cluster_id') or 'unknown'} (version {status['version']}{sealed})"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split("-")[0].split(".")[:2] if part.isdigit())
