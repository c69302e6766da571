"""Who runs the Postgres servers: the caller, or, where the caller is root (which Postgres refuses), another user.

That user must be able to reach the binaries and the data, which a home directory or pytest's `tmp_path` prevents.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError


@dataclass(frozen=True)
class ServiceUser:
    """An unprivileged account that servers run as."""

    name: str
    uid: int
    gid: int


def service_user() -> ServiceUser | None:
    """The account for Postgres servers; None means the caller itself."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return ServiceUser(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise LabError("root cannot run postgres, and there is no user 'postgres' or 'nobody' to run it as")


def blocking_directory(path: Path, user: ServiceUser) -> Path | None:
    """The outermost existing directory on the way to `path` that `user` may not enter, or None."""
    for directory in [*reversed(path.absolute().parents), path.absolute()]:
        try:
            status = directory.stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(status.st_mode):
            return None
        if status.st_uid == user.uid:
            needed = stat.S_IXUSR
        else:
            needed = stat.S_IXGRP if status.st_gid == user.gid else stat.S_IXOTH
        if not status.st_mode & needed:
            return directory
    return None


def require_reachable(path: Path, user: ServiceUser | None) -> None:
    """Raise, naming the directory in the way, where `user` cannot reach `path`."""
    blocked = blocking_directory(path, user) if user else None
    if user and blocked:
        raise LabError(
            f"{path} cannot be reached by user {user.name}, which runs postgres because the caller is root: "
            f"{blocked} is closed to it; choose a directory below /var/tmp or /tmp (tests: lab.users.scratch)"
        )


def make_directory(path: Path, *, user: ServiceUser | None, mode: int = 0o700) -> Path:
    """Create `path`, owned by `user`; its parents stay the caller's, and open for passing through."""
    require_reachable(path.parent, user)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.mkdir(mode=mode, exist_ok=True)
    if user:
        os.chown(path, user.uid, user.gid)
    return path


@contextmanager
def scratch(prefix: str = "recovery-lab-") -> Iterator[Path]:
    """A temporary directory with a short path that the service user can reach; removed at the end."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
