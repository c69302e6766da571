"""A database login from Vault: a KV v2 secret, a static role, or a role that is leased for the work, then revoked."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from recovery.connections import Connection
from recovery.errors import PreconditionError, RecoveryError, VaultError, VaultUnreachable
from recovery.vault.session import Session, errors_of, log_in, renewing

log = logging.getLogger(__name__)

_KEYS = ("username", "password")
_POLICY = "include/config/vault/database.hcl"
# Work is stopped so long before its login ends for good: it must end its sessions and uploads by itself.
_MARGIN_SECONDS = 10.0


class Login:
    """A login and password, and the lease that they live by, if any."""

    def __init__(self, path: str, username: str, password: str, lease: _Lease | None) -> None:
        self._path, self._username, self._password, self._lease = path, username, password, lease

    def into(self, connection: Connection) -> Connection:
        """A connection to the same server with this login; its id says in messages whose password it is."""
        identifier = f"{connection.id} (login from {self._path})"
        return replace(connection, id=identifier, login=self._username, password=self._password)

    def check(self) -> None:
        """Raises VaultError when the login ends now, or has ended. Call it while the work goes on.

        A Vault that is out of reach is no reason: it revokes nothing meanwhile, and sessions that are open live on.
        """
        if self._lease is not None:
            self._lease.check()


@contextlib.contextmanager
def leased(vault: Connection, path: str) -> Iterator[Login]:
    """Log in to a Vault, read a login at `path`, keep its lease alive while the block runs, and revoke it afterwards.

    Raises VaultUnreachable, VaultError or ConfigurationError (the Vault), PreconditionError (the path or its rights).
    """
    with log_in(vault) as session:
        asked = time.monotonic()
        answer = _read(session, path)
        lease = _Lease(session, path, answer, asked=asked) if answer.get("lease_id") else None
        with lease.kept() if lease is not None else contextlib.nullcontext():
            username, password = (_value(answer["data"], key, where=_where(session, path)) for key in _KEYS)
            yield Login(path, username, password, lease)


class _Lease:
    def __init__(self, session: Session, path: str, answer: Mapping[str, Any], *, asked: float) -> None:
        self._session, self._where = session, _where(session, path)
        self._id, self._lifetime = str(answer["lease_id"]), int(answer["lease_duration"])
        self._renewable = self._extends = bool(answer["renewable"])
        self._until = asked + self._lifetime
        self._unreachable = self._warned = False
        self._lost: list[RecoveryError] = []

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        try:
            with contextlib.ExitStack() as stack:
                if self._renewable:
                    kept = renewing(self._renew, lifetime=self._lifetime, what="the lease", lost=self._lost)
                    stack.enter_context(kept)
                yield
        finally:
            self._revoke()

    def check(self) -> None:
        left = self._until - time.monotonic()
        refused = bool(self._lost) and not self._unreachable
        if not self._extends and (refused or left <= min(_MARGIN_SECONDS, self._lifetime / 10)):
            raise VaultError(
                "the database login ends now, and its lease cannot be renewed any more",
                where=self._where,
                remedy="raise max_ttl of its role (and of its mount) above the longest backup",
            )
        if refused:
            raise self._lost[0]
        if self._lost and not self._warned:
            self._warned = True
            log.warning("%s; sessions that are open go on, new ones may be refused", self._lost[0])

    def _renew(self) -> int:
        asked = time.monotonic()
        try:
            with errors_of(self._where, remedy=f"allow it as {_POLICY} does"):
                seconds = int(self._session.client.sys.renew_lease(self._id)["lease_duration"])
        except RecoveryError as problem:
            self._unreachable = isinstance(problem, VaultUnreachable)
            raise
        self._until = asked + seconds
        if seconds < self._lifetime and self._extends:
            self._extends = False
            log.warning("%s: the database login ends in %d s: its role's max_ttl is reached", self._where, seconds)
        return seconds

    def _revoke(self) -> None:
        """At once; where that fails, because the database is down for instance, Vault is asked to go on trying."""
        try:
            self._ask_to_revoke(at_once=True)
            return
        except RecoveryError as problem:
            reason = problem.what
            if not isinstance(problem, VaultUnreachable):
                with contextlib.suppress(RecoveryError):
                    self._ask_to_revoke(at_once=False)
        left = max(0.0, self._until - time.monotonic())
        log.warning("%s: the lease is not revoked yet (%s); it ends by itself in %.0f s", self._where, reason, left)

    def _ask_to_revoke(self, *, at_once: bool) -> None:
        body = {"lease_id": self._id, "sync": at_once}
        with errors_of(self._where):
            self._session.client.adapter.put("/v1/sys/leases/revoke", json=body)


def _read(session: Session, path: str) -> dict[str, Any]:
    """Vault's answer, with the fields under `data` whatever engine they come from."""
    where = _where(session, path)
    try:
        with errors_of(where, remedy="see that its role exists, and that Vault reaches the database"):
            answer = session.client.read(path)
    except PreconditionError as problem:
        remedy = _corrected(session, path) or f"allow it as {_POLICY} does"
        raise PreconditionError(problem.what, where=where, remedy=remedy) from None
    if answer is None:
        remedy = _corrected(session, path) or "correct credentials.path"
        raise PreconditionError("there is nothing at this path", where=where, remedy=remedy)
    fields = answer["data"]
    if "metadata" in fields and isinstance(fields.get("data"), dict):
        fields = fields["data"]
    return {**answer, "data": fields}


def _corrected(session: Session, path: str) -> str | None:
    """What to write instead, where a path below a KV engine of version 2 lacks its `data/`."""
    try:
        with errors_of(session.address):
            mount = session.client.adapter.get(f"/v1/sys/internal/ui/mounts/{path}")["data"]
    except RecoveryError:
        return None
    rest = path.removeprefix(mount["path"])
    if mount["type"] != "kv" or (mount["options"] or {}).get("version") != "2" or rest.startswith("data/"):
        return None
    return f"its engine is KV version 2: write {mount['path']}data/{rest}"


def _value(fields: Mapping[str, Any], key: str, *, where: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value:
        raise PreconditionError(f"it has no {key}", where=where, remedy=f"give it the keys {' and '.join(_KEYS)}")
    return value


def _where(session: Session, path: str) -> str:
    return f"Vault {session.address}, {path}"
