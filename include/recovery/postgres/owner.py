"""Whom a restored cluster belongs to. PostgreSQL refuses to run as root, and on files that are not its user's."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from recovery.errors import ConfigurationError


@dataclass(frozen=True)
class Owner:
    name: str
    uid: int
    gid: int


def choose(name: str | None) -> Owner | None:
    """The user that files are given to, or None to leave them with the caller.

    Only root can give files away: it chooses `name`, or the user `postgres` where there is one. Raises
    ConfigurationError when that user does not exist.
    """
    if os.geteuid() != 0:
        return None
    wanted = name or "postgres"
    try:
        entry = pwd.getpwnam(wanted)
    except KeyError:
        raise ConfigurationError(
            f"there is no user {wanted!r} to own the restored cluster, and PostgreSQL does not run as root",
            where="sandbox.user",
            remedy="name an existing user with --owner, or in sandbox.user",
        ) from None
    if entry.pw_uid == 0:
        raise ConfigurationError("PostgreSQL does not run as root", where="sandbox.user", remedy="name another user")
    return Owner(wanted, entry.pw_uid, entry.pw_gid)


def give(path: Path, owner: Owner | None) -> None:
    """Hand one file or directory to its owner."""
    if owner is not None:
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
