"""Writing a volume's members below a target directory, and nowhere else."""

from __future__ import annotations

import errno
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from recovery.errors import IntegrityError, RestoreError
from recovery.postgres.owner import Owner, give
from recovery.postgres.tar import Member, TarStream

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


class Unpacker:
    """Takes one volume's content. Paths that leave the target are refused before anything of them is written.

    Symbolic links (tablespaces) are not made from the archive: the caller maps tablespaces itself.
    """

    def __init__(self, target: Path, *, owner: Owner | None) -> None:
        self._target = target
        self._owner = owner
        self._tar = TarStream(self)
        self._file: BinaryIO | None = None
        self._name = ""
        self._folders = {target}

    def write(self, data: bytes, /) -> None:
        try:
            self._tar.write(data)
        except OSError as problem:
            raise explained(problem, self._target, self._name) from None

    def finish(self) -> None:
        self._tar.finish()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # What TarStream calls.

    def begin(self, member: Member) -> None:
        path = self._safe(member.name)
        self._name = member.name
        if member.kind == tarfile.DIRTYPE:
            self._folder(path)
        elif member.kind == tarfile.SYMTYPE:
            return
        else:
            self._folder(path.parent)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _FILE_MODE)
            if self._owner is not None:
                os.fchown(descriptor, self._owner.uid, self._owner.gid)
            self._file = os.fdopen(descriptor, "wb", buffering=0)

    def data(self, piece: memoryview) -> None:
        if self._file is not None:
            while piece:
                piece = piece[self._file.write(piece) :]

    def end(self) -> None:
        self.close()

    def _folder(self, path: Path) -> None:
        if path in self._folders:
            return
        self._folder(path.parent)
        if path.is_symlink():
            raise _untrusted(f"the archive has a member that would be written through a link: {self._name!r}", path)
        if not path.is_dir():
            path.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            give(path, self._owner)
        self._folders.add(path)

    def _safe(self, name: str) -> Path:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\0" in name:
            raise _untrusted(
                f"the archive has a member that would be written outside the target: {name!r}", self._target
            )
        return self._target / pure


def _untrusted(what: str, where: Path) -> IntegrityError:
    return IntegrityError(what, where=str(where), remedy="do not trust this backup; find out who wrote it")


def explained(problem: OSError, target: Path, name: str) -> RestoreError:
    """The operating system's error while `name` was written below `target`."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return RestoreError(
            "the disk is full", where=str(target), remedy="free space, or choose another target; see `recovery plan`"
        )
    if problem.errno == errno.EEXIST:
        return RestoreError(
            f"{name} appears twice, or something else writes here", where=str(target), remedy="use an empty directory"
        )
    return RestoreError(
        f"{name}: {(problem.strerror or str(problem)).lower()}",
        where=str(target),
        remedy="check the directory's owner and mode",
    )
