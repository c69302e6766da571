"""A directory for one drill, removed afterwards; the remains of drills that were killed are removed by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from recovery.errors import RestoreError
from recovery.installation import Installation

SOCKET = "socket"
"""A link in the directory to where a sandbox server keeps its socket, for whoever sweeps after a kill."""


@contextlib.contextmanager
def workplace(installation: Installation, name: str) -> Iterator[Path]:
    """The directory, below `sandbox.directory`; raises RestoreError where there can be none."""
    parent = installation.configuration.sandbox.directory
    try:
        parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        _sweep(parent)
        folder = parent / name
        folder.mkdir(mode=0o711)
        lock = _lock(folder)
    except OSError as problem:
        raise RestoreError(
            f"the sandbox directory cannot be used ({(problem.strerror or str(problem)).lower()})",
            where=str(parent),
            remedy="name a writable one under sandbox.directory",
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        if lock is not None:
            os.close(lock)


def _sweep(parent: Path) -> None:
    for folder in parent.iterdir():
        if folder.is_dir() and (folder / "drill.lock").exists():
            lock = _lock(folder)
            if lock is not None:
                if (folder / SOCKET).is_symlink():
                    shutil.rmtree((folder / SOCKET).readlink(), ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """The folder's lock, or None while its drill lives."""
    descriptor = os.open(folder / "drill.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
