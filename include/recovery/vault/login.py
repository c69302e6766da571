"""How a connection says who it is: a token, or a login by AppRole or Kubernetes that makes one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from recovery.connections import Connection
from recovery.errors import ConfigurationError, PreconditionError
from recovery.vault.answers import errors_of, remedy_for, said_by

if TYPE_CHECKING:
    import hvac

_JWT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_REMEDIES = {
    "approle": "correct its login (the role id), its password (the secret id) or auth_mount_point",
    "kubernetes": "correct kubernetes_role or auth_mount_point, or bind the role to this service account",
}


def authenticate(client: hvac.Client, connection: Connection, where: str) -> bool:
    """Log in as the connection says; whether a token was made for it."""
    method = setting(connection, "auth_type") or "token"
    mount = setting(connection, "auth_mount_point").strip("/") or method
    if method == "token":
        client.token = _token(connection)
        return False
    if method == "approle":
        role = connection.login or setting(connection, "role_id")
        secret = connection.password or setting(connection, "secret_id")
        if not role:
            raise ConfigurationError("approle needs a role id", where=where, remedy="put it into the login")
        with _login(where, method, mount):
            client.auth.approle.login(role_id=role, secret_id=secret or None, mount_point=mount)
        return True
    if method == "kubernetes":
        role = setting(connection, "kubernetes_role")
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
            said = said_by(problem)
            raise PreconditionError(
                f"Vault refuses: no {method} login at auth/{mount} ({said})",
                where=where,
                remedy=remedy_for(said) or _REMEDIES[method],
            ) from None


def _token(connection: Connection) -> str:
    token = connection.password
    if not token and not setting(connection, "token_path"):
        raise ConfigurationError(
            "there is no token", where=f"connection {connection.id}", remedy="set the password, or token_path in extra"
        )
    return _header("the token", token or _read(connection, "token_path"), connection)


def namespace(connection: Connection) -> str | None:
    return _header("the namespace", setting(connection, "namespace"), connection) or None


def _header(what: str, value: str, connection: Connection) -> str:
    """A value fit for an HTTP header. What http clients say of another one quotes it."""
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ConfigurationError(
            f"{what} holds a space, a line break or another character that none has",
            where=f"connection {connection.id}",
            remedy="correct it",
        )
    return value


def setting(connection: Connection, key: str) -> str:
    """A text in `extra`, empty where there is none: Airflow's form stores empty fields as such."""
    value = connection.extra.get(key) or ""
    if not isinstance(value, str):
        raise ConfigurationError(f"{key} is not a text", where=f"connection {connection.id}", remedy="put it in quotes")
    return value


def _read(connection: Connection, key: str, default: str = "") -> str:
    """What the file holds that `extra` names, without white space around it."""
    path, where = setting(connection, key) or default, f"connection {connection.id}"
    try:
        text = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as problem:
        reason = (problem.strerror or str(problem)).lower() if isinstance(problem, OSError) else "not a text"
        raise ConfigurationError(f"{path} cannot be read ({reason})", where=where, remedy=f"correct {key}") from None
    if not text:
        raise ConfigurationError(f"{path} is empty", where=where, remedy=f"correct {key}")
    return text
