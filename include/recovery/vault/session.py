"""A login to Vault or OpenBao: the active node, a token that lives as long as the work, and errors in plain words.

Connections have the form of Airflow's HashiCorp provider: `host` (several, with commas), `port`, and in `extra` the
`auth_type`: `token` (in the password, or in the file `token_path`), `approle` (login and password are role id and
secret id) or `kubernetes` (`kubernetes_role`, `kubernetes_jwt_path`). Also in `extra`: `use_tls`, `ca_cert` (a private
CA's file), `auth_mount_point`, `namespace`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from recovery.connections import Connection
from recovery.errors import ConfigurationError, PreconditionError, RecoveryError, VaultError, VaultUnreachable
from recovery.vault.answers import errors_of, said_by
from recovery.vault.login import authenticate, namespace, setting

if TYPE_CHECKING:
    import hvac

_DEFAULT_PORT = 8200
# To connect, and between two bytes of an answer.
_TIMEOUT_SECONDS = (10, 30)
_RETRY_SECONDS = 30.0
_TLS_TYPES = ("vaults", "https")
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")
_POLICY = "include/config/vault/backup.hcl"

__all__ = ["Session", "addresses", "client_of", "errors_of", "log_in", "renewing"]


@dataclass
class Session:
    """A logged-in client of the active node. `check()` raises VaultError when its token could not be kept alive."""

    client: hvac.Client
    address: str
    _lifetime: int = 0
    _ending: bool = False
    _lost: list[RecoveryError] = field(default_factory=list)

    def check(self) -> None:
        if self._lost:
            raise self._lost[0]

    @contextlib.contextmanager
    def _renewed(self, lifetime: int) -> Iterator[None]:
        """Renew the token while the block runs; `lifetime` in seconds, 0 where it lives as long as it lives."""
        if not lifetime:
            yield
            return
        self._lifetime = lifetime
        with renewing(self._renew, lifetime=lifetime, what="the token", lost=self._lost):
            yield

    def _renew(self) -> int:
        try:
            with errors_of(self.address):
                seconds = int(self.client.auth.token.renew_self()["auth"]["lease_duration"])
        except VaultUnreachable:
            raise
        except RecoveryError:
            if not self._ending:
                raise
            raise VaultError(
                "its maximum lifetime is reached",
                where=self.address,
                remedy="raise token_max_ttl of its role above the longest run",
            ) from None
        self._ending = seconds < self._lifetime
        self._lifetime = max(self._lifetime, seconds)
        return seconds


@contextlib.contextmanager
def renewing(renew: Callable[[], int], *, lifetime: int, what: str, lost: list[RecoveryError]) -> Iterator[None]:
    """Call `renew` whenever half of the lifetime that it returned (seconds) has gone; a failure goes into `lost`.

    A Vault that is out of reach is asked again until the lifetime is over.
    """
    stop = threading.Event()

    def keep() -> None:
        until, wait = time.monotonic() + lifetime, lifetime / 2
        while not stop.wait(max(wait, 0.5)):
            asked = time.monotonic()
            try:
                seconds = renew()
                until, wait = asked + seconds, seconds / 2
            except RecoveryError as problem:
                left = until - time.monotonic()
                if left <= 0 or not isinstance(problem, VaultUnreachable):
                    failed = f"{what} could not be renewed: {problem.what}"
                    lost.append(VaultError(failed, where=problem.where, remedy=problem.remedy))
                    return
                wait = min(left / 2, _RETRY_SECONDS)

    thread = threading.Thread(target=keep, name=f"renew {what}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def log_in(connection: Connection) -> Iterator[Session]:
    """Log in at the active node, keep the token alive, and revoke it afterwards if it was made for this.

    Raises VaultUnreachable (no active node answers), PreconditionError (the login is refused), ConfigurationError.
    """
    client = _active(connection)
    where = f"connection {connection.id}, {client.url}"
    client.adapter.namespace = namespace(connection)
    made_here = authenticate(client, connection, where)
    try:
        session = Session(client, client.url)
        with session._renewed(_renewable_seconds(client, where)):
            yield session
    finally:
        if made_here:
            with contextlib.suppress(Exception):  # It expires by itself.
                client.auth.token.revoke_self()
        client.adapter.close()


def addresses(connection: Connection) -> list[str]:
    """Every address that a connection names, as URLs."""
    where = f"connection {connection.id}"
    hosts = [host.strip() for host in connection.host.split(",")]
    found = [_address(host, connection) for host in hosts if host]
    if not found:
        raise ConfigurationError("the connection names no host", where=where, remedy="set its host and port")
    return found


def _address(host: str, connection: Connection) -> str:
    """A host, perhaps with its port, or a URL, as a URL. One without a port has the connection's."""
    is_url = "://" in host
    url = host if is_url else f"{'https' if _uses_tls(connection) else 'http'}://{host}"
    try:
        parts = urlsplit(url)
        port = parts.port
        usable = parts.scheme in ("http", "https") and parts.hostname and not parts.netloc.endswith(":")
    except ValueError:
        usable = False
    # A login in the host would be shown with it in every message.
    if not usable or "@" in host:
        raise ConfigurationError(
            "its host is not one",
            where=f"connection {connection.id}",
            remedy="write vault.example.com, and set the port",
        )
    wanted = connection.port or (None if is_url else _DEFAULT_PORT)
    if port is None and wanted is not None:
        parts = parts._replace(netloc=f"{parts.netloc}:{wanted}")
    return parts.geturl().rstrip("/")


def _uses_tls(connection: Connection) -> bool:
    value = connection.extra.get("use_tls")
    if value is None or value == "":
        return connection.type in _TLS_TYPES
    text = str(value).lower()
    if text not in _YES + _NO:
        raise ConfigurationError(
            f"use_tls is {text!r}", where=f"connection {connection.id}", remedy="write true or false"
        )
    return text in _YES


def client_of(address: str, connection: Connection) -> hvac.Client:
    """A client that is not logged in, of the root namespace."""
    import hvac

    ca_cert = setting(connection, "ca_cert")
    if ca_cert and not Path(ca_cert).is_file():
        raise ConfigurationError(
            "the CA certificate is not there", where=f"connection {connection.id}: {ca_cert}", remedy="correct ca_cert"
        )
    client = hvac.Client(url=address, token="", verify=ca_cert or True, timeout=_TIMEOUT_SECONDS)
    # What ~/.netrc says about this host is not meant for Vault, and a proxy is no place for its secrets.
    client.session.trust_env = False
    client.token = None
    return client


def _active(connection: Connection) -> hvac.Client:
    """A client of the active node: standbys serve stale reads, and no snapshots."""
    problems = []
    for address in addresses(connection):
        try:
            return _active_from(address, connection)
        except VaultError as problem:
            problems.append(problem)
    raise VaultUnreachable(
        "; ".join(dict.fromkeys(f"{problem.where}: {problem.what}" for problem in problems)),
        where=f"connection {connection.id}",
        remedy="; ".join(dict.fromkeys(problem.remedy for problem in problems if problem.remedy)),
    )


def _active_from(address: str, connection: Connection) -> hvac.Client:
    client = client_of(address, connection)
    leader = _leader(client)
    if leader is None:
        return client
    client = client_of(leader, connection)
    try:
        next_leader = _leader(client)
    except VaultError as problem:
        what = f"the active node that {address} names: {problem.what}"
        raise VaultUnreachable(what, where=leader, remedy=f"{problem.remedy}; its api_addr must be reachable") from None
    if next_leader is not None:
        raise VaultUnreachable("it is not active yet", where=leader, remedy="wait for the election")
    return client


def _leader(client: hvac.Client) -> str | None:
    """The active node's address where this one is a standby; None where it is active itself."""
    with errors_of(client.url, remedy="correct host and port: it is not a Vault's answer"):
        seal = client.seal_status
        if not isinstance(seal, dict) or "sealed" not in seal:
            raise VaultError("what answers is not a Vault", where=client.url, remedy="correct host and port")
        if not seal.get("initialized"):
            raise VaultUnreachable(
                "it is not initialised", where=client.url, remedy="initialise it, or restore into it"
            )
        if seal["sealed"]:
            raise VaultUnreachable("it is sealed", where=client.url, remedy="unseal it")
        status = client.sys.read_leader_status()
    if status.get("is_self") or not status.get("ha_enabled"):
        return None
    leader = str(status.get("leader_address") or "").rstrip("/")
    if not leader:
        raise VaultUnreachable("the cluster has no active node", where=client.url, remedy="wait for its election")
    return leader


def _renewable_seconds(client: hvac.Client, where: str) -> int:
    """The time that the token still has; 0 where it does not end, or cannot be renewed."""
    import hvac.exceptions

    with errors_of(where):
        try:
            found = client.auth.token.lookup_self()["data"]
        except hvac.exceptions.Forbidden as problem:
            raise PreconditionError(
                f"Vault refuses: the token is not valid here, or may not look itself up ({said_by(problem)})",
                where=where,
                remedy=f"correct the connection's secret, or give its role the policy {_POLICY}",
            ) from None
    return int(found["ttl"]) if found.get("renewable") else 0
