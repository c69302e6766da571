"""The directories that a restore writes: claimed while empty, locked while in work, cleaned when it fails.

A restore that was killed leaves a marker whose lock is free: the next one recognises the remains as its own and
clears them. Anything else in a directory is somebody's, and is refused.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from recovery.errors import PreconditionError, RestoreError
from recovery.postgres.owner import Owner, give

MARKER = "recovery.incomplete"
_MODE = 0o700


class Target:
    """Directories held for one restore. Leaving the block without keep() empties them."""

    def __init__(self, reserve_bytes: Mapping[Path, int], *, owner: Owner | None) -> None:
        """`reserve_bytes`: each directory, and the room that it needs on its file system."""
        self._reserve, self._owner = dict(reserve_bytes), owner
        self._locks: list[int] = []
        self._claimed: list[Path] = []
        self._kept = False

    def __enter__(self) -> Target:
        try:
            for folder in self._reserve:
                self._claim(folder)
            self._check_room()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()

    def keep(self) -> None:
        """The restore is whole: take the markers away."""
        for folder in self._claimed:
            (folder / MARKER).unlink()
        self._kept = True

    def _claim(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=_MODE, parents=True, exist_ok=True)
            marker = folder / MARKER
            others = [entry.name for entry in folder.iterdir() if entry.name != MARKER]
            if others and not marker.exists():
                raise PreconditionError(
                    f"the target directory is not empty (it holds {others[0]!r})",
                    where=str(folder),
                    remedy="name an empty or a new directory",
                )
            self._lock(marker)
            self._claimed.append(folder)
            _empty(folder)
            folder.chmod(_MODE)
            give(folder, self._owner)
        except OSError as problem:
            raise RestoreError(
                f"the target cannot be written ({(problem.strerror or str(problem)).lower()})",
                where=str(folder),
                remedy="check the directory's owner and mode, and its parents'",
            ) from None

    def _lock(self, marker: Path) -> None:
        descriptor = os.open(marker, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise PreconditionError(
                "another restore is writing to this directory",
                where=str(marker.parent),
                remedy="wait for it, or name another",
            ) from None
        self._locks.append(descriptor)

    def _check_room(self) -> None:
        """Directories that share a file system need its room together."""
        needed: dict[int, int] = {}
        for folder, size in self._reserve.items():
            device = folder.stat().st_dev
            needed[device] = needed.get(device, 0) + size
            status = os.statvfs(folder)
            free = status.f_bavail * status.f_frsize
            if free < needed[device]:
                raise PreconditionError(
                    f"the restore needs {needed[device] / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
                    where=str(folder),
                    remedy="free space, or name a directory on another disk",
                )

    def _release(self) -> None:
        if not self._kept:
            for folder in self._claimed:
                _empty(folder)
                (folder / MARKER).unlink(missing_ok=True)
        for descriptor in self._locks:
            os.close(descriptor)
        self._locks.clear()


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == MARKER:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
