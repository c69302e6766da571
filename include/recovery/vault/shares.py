"""The escrowed unseal shares of a Vault: read from a connection, a file or a prompt, never from an argument."""

from __future__ import annotations

import re
from pathlib import Path

from recovery.connections import Connection
from recovery.errors import ConfigurationError


def of_connection(connection: Connection) -> list[str]:
    """A connection's shares: its password, or the file that `path` in its extra names; one a line, or with commas."""
    if connection.password:
        return parse(connection.password.replace("\\n", "\n"), where=f"connection {connection.id}")
    path = connection.extra.get("path")
    if not path:
        raise ConfigurationError(
            "the connection holds no shares",
            where=f"connection {connection.id}",
            remedy="put them into its password, one a line, or name a file as `path` in its extra",
        )
    return of_file(Path(path))


def of_file(path: Path) -> list[str]:
    """The shares in a file, one a line; raises ConfigurationError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "not text"
        raise ConfigurationError(
            f"the shares cannot be read ({reason})", where=str(path), remedy="name a file with one share a line"
        ) from None
    return parse(text, where=str(path))


def parse(text: str, *, where: str) -> list[str]:
    """Shares one a line or with commas; lines that begin with # are remarks. Raises ConfigurationError."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found = [share for share in re.split(r"[\s,]+", "\n".join(lines)) if share]
    if not found:
        raise ConfigurationError("there is no share", where=where, remedy="write one share a line")
    return found
