"""A login to Vault or OpenBao: the active node, a token that lives as long as the work, and errors in plain words.

Connections have the form of Airflow's HashiCorp provider: `host` (several, with commas), `port`, and in `extra` the
`auth_type`: `token` (in the password, or in the file `token_path`), `approle` (login and password are role id and
secret id) or `kubernetes` (`kubernetes_role`, `kubernetes_jwt_path`). Also in `extra`: `use_tls`, `ca_cert` (a private
CA's file), `auth_mount_point`, `namespace`.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from recovery.connections import Connection
from recovery.errors import ConfigurationError, PreconditionError, RecoveryError, VaultError, VaultUnreachable

if TYPE_CHECKING:
    import hvac
    import hvac.exceptions

DEFAULT_PORT = 8200
# To connect, and between two bytes of an answer.
_TIMEOUT_SECONDS = (10, 30)
_RETRY_SECONDS = 30.0
_JWT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_TLS_TYPES = ("vaults", "https")
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")
_POLICY = "include/config/vault/backup.hcl"
_LOGIN_REMEDIES = {
    "approle": "correct its login (the role id), its password (the secret id) or auth_mount_point",
    "kubernetes": "correct kubernetes_role or auth_mount_point, or bind the role to this service account",
}
# What a server says, and what helps.
_REMEDIES = {
    "unavailable in namespaces": "remove namespace from the connection: snapshots exist in the root namespace only",
    "namespace not found": "correct namespace in the connection's extra",
    "HTTP request to an HTTPS server": "set use_tls in the connection's extra",
}
_NO_ACTIVE_NODE = "active cluster node not found"
# OpenSSL's codes (X509_V_ERR_...) for a certificate of another host or address, and for one out of its time.
_WRONG_NAME, _WRONG_TIME = (62, 64), (9, 10)


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
    client.adapter.namespace = _namespace(connection)
    made_here = _authenticate(client, connection, where)
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
    hosts = [host.strip().rstrip("/") for host in connection.host.split(",")]
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
        known, port, usable = parts.hostname, parts.port, parts.scheme in ("http", "https")
    except ValueError:
        known, port, usable = None, None, False
    # A login in the host would be shown with it in every message.
    if not known or not usable or "@" in host:
        raise ConfigurationError(
            "its host is not one",
            where=f"connection {connection.id}",
            remedy="write vault.example.com, and set the port",
        )
    wanted = connection.port or (None if is_url else DEFAULT_PORT)
    if port is None and wanted is not None:
        url = parts._replace(netloc=f"{parts.netloc}:{wanted}").geturl()
    return url


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

    ca_cert = _setting(connection, "ca_cert")
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
    with errors_of(client.url):
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


def _authenticate(client: hvac.Client, connection: Connection, where: str) -> bool:
    """Log in as the connection says; whether a token was made for it."""
    method = _setting(connection, "auth_type") or "token"
    mount = _setting(connection, "auth_mount_point").strip("/") or method
    if method == "token":
        client.token = _token(connection)
        return False
    if method == "approle":
        role = connection.login or _setting(connection, "role_id")
        secret = connection.password or _setting(connection, "secret_id")
        if not role:
            raise ConfigurationError("approle needs a role id", where=where, remedy="put it into the login")
        with _login(where, method, mount):
            client.auth.approle.login(role_id=role, secret_id=secret or None, mount_point=mount)
        return True
    if method == "kubernetes":
        role = _setting(connection, "kubernetes_role")
        if not role:
            raise ConfigurationError("kubernetes needs a role", where=where, remedy="set kubernetes_role in its extra")
        jwt = _read(connection, "kubernetes_jwt_path", _JWT_PATH)
        with _login(where, method, mount):
            client.auth.kubernetes.login(role=role, jwt=jwt, mount_point=mount)
        return True
    raise ConfigurationError(
        f"auth_type {method!r} is not known here", where=where, remedy="use token, approle or kubernetes"
    )


@contextlib.contextmanager
def _login(where: str, method: str, mount: str) -> Iterator[None]:
    from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest, Unauthorized

    with errors_of(where):
        try:
            yield
        except (Forbidden, InvalidPath, InvalidRequest, Unauthorized) as problem:
            said = _said(problem)
            raise PreconditionError(
                f"Vault refuses: no {method} login at auth/{mount} ({said})",
                where=where,
                remedy=_remedy(said) or _LOGIN_REMEDIES[method],
            ) from None


def _renewable_seconds(client: hvac.Client, where: str) -> int:
    """The time that the token still has; 0 where it does not end, or cannot be renewed."""
    import hvac.exceptions

    with errors_of(where):
        try:
            found = client.auth.token.lookup_self()["data"]
        except hvac.exceptions.Forbidden as problem:
            raise PreconditionError(
                f"Vault refuses: the token is not valid here, or may not look itself up ({_said(problem)})",
                where=where,
                remedy=f"correct the connection's secret, or give its role the policy {_POLICY}",
            ) from None
    return int(found["ttl"]) if found.get("renewable") else 0


def _token(connection: Connection) -> str:
    token = connection.password
    if not token and not _setting(connection, "token_path"):
        raise ConfigurationError(
            "there is no token", where=f"connection {connection.id}", remedy="set the password, or token_path in extra"
        )
    return _header("the token", token or _read(connection, "token_path"), connection)


def _namespace(connection: Connection) -> str | None:
    return _header("the namespace", _setting(connection, "namespace"), connection) or None


def _header(what: str, value: str, connection: Connection) -> str:
    """A value fit for an HTTP header. What http clients say of another one quotes it."""
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ConfigurationError(
            f"{what} holds a space, a line break or another character that none has",
            where=f"connection {connection.id}",
            remedy="correct it",
        )
    return value


def _setting(connection: Connection, key: str) -> str:
    """A text in `extra`, empty where there is none: Airflow's form stores empty fields as such."""
    value = connection.extra.get(key) or ""
    if not isinstance(value, str):
        raise ConfigurationError(f"{key} is not a text", where=f"connection {connection.id}", remedy="put it in quotes")
    return value


def _read(connection: Connection, key: str, default: str = "") -> str:
    """What the file holds that `extra` names, without white space around it."""
    path, where = _setting(connection, key) or default, f"connection {connection.id}"
    try:
        text = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as problem:
        reason = (problem.strerror or str(problem)).lower() if isinstance(problem, OSError) else "not a text"
        raise ConfigurationError(f"{path} cannot be read ({reason})", where=where, remedy=f"correct {key}") from None
    if not text:
        raise ConfigurationError(f"{path} is empty", where=where, remedy=f"correct {key}")
    return text


@contextlib.contextmanager
def errors_of(where: str, *, remedy: str = "") -> Iterator[None]:
    """What hvac and requests raise, in this project's words. None of it quotes a token."""
    import hvac.exceptions
    import requests
    import urllib3

    try:
        yield
    except hvac.exceptions.Forbidden as problem:
        raise PreconditionError(
            f"Vault refuses: {_said(problem)}",
            where=where,
            remedy=remedy or f"give its role the policy {_POLICY}, or correct the connection's secret",
        ) from None
    except (hvac.exceptions.VaultDown, hvac.exceptions.VaultNotInitialized) as problem:
        raise VaultUnreachable(f"it does not serve: {_said(problem)}", where=where, remedy="unseal it") from None
    except hvac.exceptions.VaultError as problem:
        said = _said(problem)
        if isinstance(problem, hvac.exceptions.BadGateway) or _NO_ACTIVE_NODE in said:
            raise VaultUnreachable(
                f"it does not serve: {said}", where=where, remedy="wait for an active node"
            ) from None
        raise VaultError(f"Vault answers: {said}", where=where, remedy=_remedy(said) or remedy) from None
    except requests.exceptions.SSLError as problem:
        raise _no_tls(_root(problem), where) from None
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as problem:
        raise VaultUnreachable(
            f"no answer ({_reason(_root(problem))})", where=where, remedy="see that it runs"
        ) from None


def _no_tls(problem: BaseException, where: str) -> VaultUnreachable:
    code = problem.verify_code if isinstance(problem, ssl.SSLCertVerificationError) else None
    if code in _WRONG_NAME:
        remedy = "name it as its certificate does, or give it a certificate for this name"
    elif code in _WRONG_TIME:
        remedy = "renew its certificate"
    elif getattr(problem, "reason", "") == "WRONG_VERSION_NUMBER":
        remedy = "it speaks plain http: set use_tls to false, or give it TLS"
    else:
        remedy = "name the private CA's file in ca_cert"
    return VaultUnreachable(f"no TLS connection ({_reason(problem)})", where=where, remedy=remedy)


def _said(problem: hvac.exceptions.VaultError) -> str:
    texts = [str(text) for text in problem.errors or [] if text] or [str(problem.text or type(problem).__name__)]
    return " ".join("; ".join(texts).split())[:300]


def _remedy(said: str) -> str:
    return next((remedy for words, remedy in _REMEDIES.items() if words in said), "")


def _root(problem: BaseException) -> BaseException:
    """The innermost reason: requests wraps urllib3, which wraps the operating system."""
    inner = getattr(problem, "reason", None)
    if not isinstance(inner, BaseException):
        inner = next((arg for arg in problem.args if isinstance(arg, Exception)), problem.__cause__)
    return _root(inner) if inner is not None else problem


def _reason(problem: BaseException) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return problem.verify_message.rstrip(".")
    if isinstance(problem, ssl.SSLError) and problem.reason:
        return problem.reason.replace("_", " ").lower()
    if isinstance(problem, ValueError):  # Of a header or URL, which it would quote.
        return type(problem).__name__
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return " ".join(str(problem).split()) or type(problem).__name__
