"""Secrets by name: an Airflow connection id becomes a Connection. Outside Airflow it is read from AIRFLOW_CONN_<ID>."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from recovery.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Connection:
    """One external system and how to log in to it. The password is kept out of repr()."""

    id: str
    type: str = ""
    host: str = ""
    port: int | None = None
    login: str = ""
    password: str = field(default="", repr=False)
    schema: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, connection_id: str, value: str) -> Connection:
        """Airflow's JSON form of a connection; raises ValueError, TypeError or AttributeError when it is not one."""
        document = json.loads(value)
        extra = document.get("extra") or {}
        port = document.get("port")
        return cls(
            id=connection_id,
            type=document.get("conn_type") or "",
            host=document.get("host") or "",
            port=int(port) if port else None,
            login=document.get("login") or "",
            password=document.get("password") or "",
            schema=document.get("schema") or "",
            extra=dict(json.loads(extra) if isinstance(extra, str) else extra),
        )


Resolver = Callable[[str], Connection]
"""Finds a connection by id; raises ConfigurationError when there is none."""


def from_environment(connection_id: str) -> Connection:
    """Read `AIRFLOW_CONN_<ID>`, in Airflow's URI or JSON form (Airflow: Managing Connections).

    Raises ConfigurationError when the variable is missing or cannot be read; the value is never part of the message.
    """
    variable = f"AIRFLOW_CONN_{connection_id.upper()}"
    value = os.environ.get(variable, "")
    if not value:
        raise ConfigurationError(
            "the connection is not defined",
            where=f"connection {connection_id}",
            remedy=f"set {variable} (a URI or JSON, as Airflow reads it) or add the connection in Airflow",
        )
    try:
        if value.lstrip().startswith("{"):
            return Connection.from_json(connection_id, value)
        return _from_uri(connection_id, value)
    except (ValueError, TypeError, AttributeError) as problem:
        raise ConfigurationError(
            f"the value of {variable} is neither a connection URI nor a JSON object ({type(problem).__name__})",
            where=f"connection {connection_id}",
            remedy='write it as postgres://user:password@host:5432/database or {"conn_type": "postgres", ...}',
        ) from None


def _from_uri(connection_id: str, value: str) -> Connection:
    parts = urlsplit(value)
    if not parts.scheme:
        raise ValueError("no scheme")
    query = dict(parse_qsl(parts.query))
    extra = json.loads(query["__extra__"]) if "__extra__" in query else query
    return Connection(
        id=connection_id,
        type=parts.scheme.replace("-", "_"),
        host=unquote(parts.hostname or ""),
        port=parts.port,
        login=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        schema=unquote(parts.path.lstrip("/")),
        extra=extra,
    )
