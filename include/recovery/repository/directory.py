"""A repository in a local directory: for tests, for benchmarks, and for a copy on a mounted disk."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

from recovery.errors import ObjectExists, ObjectMissing, StoreError
from recovery.repository.store import ObjectInfo, Unfinished

PART_SIZE = 1 << 20
_WRITEBACK_BYTES = 16 << 20
_STAGING = ".uploads"
_METADATA = ".metadata"
_OWN = {_STAGING, _METADATA}


class DirectoryStore:
    """Objects are files below `root`. A file appears under its name only when it is whole and synced."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def description(self) -> str:
        return str(self.root)

    def put(
        self,
        key: str,
        data: bytes,
        *,
        only_if_absent: bool = False,
        locked: bool = True,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if metadata:
            self._keep_metadata(key, metadata, only_if_absent=only_if_absent)
        with _explained(key, self.description):
            upload = _FileUpload(self, key)
            try:
                upload.write_part(data)
                upload.publish(only_if_absent=only_if_absent)
            finally:
                upload.abort()

    def upload(self, key: str, *, size_limit: int) -> _FileUpload:
        with _explained(key, self.description):
            return _FileUpload(self, key)

    def get(self, key: str) -> bytes:
        with _explained(key, self.description):
            return self.path(key).read_bytes()

    def open(self, key: str) -> BinaryIO:
        with _explained(key, self.description):
            return self.path(key).open("rb")

    def head(self, key: str) -> ObjectInfo:
        with _explained(key, self.description):
            info = _info(key, self.path(key))
        try:
            return replace(info, metadata=json.loads(self.get(f"{_METADATA}/{key}")))
        except ObjectMissing:
            return info

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        base = self.root / prefix.rpartition("/")[0]
        with _explained(prefix, self.description):
            # Directories vanish while others delete; os.walk() goes on then.
            walk = os.walk(base, onerror=_unless_gone)
            paths = [Path(folder, name) for folder, _, names in walk for name in names]
            paths = [path for path in paths if not _OWN.intersection(path.parts)]
            keys = sorted((path.relative_to(self.root).as_posix(), path) for path in paths)
            for key, path in keys:
                if key.startswith(prefix):
                    # Another process may have deleted it meanwhile (a lease that was swept).
                    with contextlib.suppress(FileNotFoundError):
                        yield _info(key, path)

    def folders(self, prefix: str) -> list[str]:
        with _explained(prefix, self.description):
            try:
                entries = list((self.root / prefix).iterdir())
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(entry.name for entry in entries if entry.is_dir() and entry.name not in _OWN)

    def delete(self, key: str) -> None:
        with _explained(key, self.description):
            for path in (self.path(key), self.path(f"{_METADATA}/{key}")):
                path.unlink(missing_ok=True)
                self._prune(path.parent)

    def unfinished(self, prefix: str) -> list[Unfinished]:
        """Every file in staging, whatever the prefix: nothing there tells what it was to become."""
        found = []
        for path in sorted((self.root / _STAGING).glob("*")):
            # Its writer may be completing it at this moment.
            with contextlib.suppress(FileNotFoundError):
                info = _info(f"{_STAGING}/{path.name}", path)
                found.append(Unfinished(info.key, info.modified, partial(path.unlink, missing_ok=True)))
        return found

    def now(self) -> datetime:
        return datetime.now(UTC)

    def check(self) -> None:
        with _explained("", self.description):
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass

    def _prune(self, folder: Path) -> None:
        """Remove directories that became empty: an empty one is no folder of a repository."""
        while folder != self.root:
            try:
                folder.rmdir()
            except OSError:
                return  # Something is in it again, or was all along.
            folder = folder.parent

    def _keep_metadata(self, key: str, metadata: Mapping[str, str], *, only_if_absent: bool) -> None:
        """In a file of its own, written first: an object never stands without it."""
        if only_if_absent and self.path(key).exists():
            raise ObjectExists("an object of this name exists already", where=f"{self.description}/{key}")
        self.put(f"{_METADATA}/{key}", json.dumps(dict(metadata)).encode())

    def path(self, key: str) -> Path:
        return self.root / key


class _FileUpload:
    part_size = PART_SIZE

    def __init__(self, store: DirectoryStore, key: str) -> None:
        self._store, self._key = store, key
        staging = store.root / _STAGING
        staging.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=staging)
        self._temporary = Path(name)
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._written = self._advised = 0

    def write_part(self, data: bytes, /) -> None:
        with _explained(self._key, self._store.description):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
            self._written += len(data)
            if self._written - self._advised >= _WRITEBACK_BYTES:
                self._start_writeback()

    def complete(self) -> None:
        with _explained(self._key, self._store.description):
            self.publish(only_if_absent=False)

    def publish(self, *, only_if_absent: bool) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        target = self._store.path(self._key)
        while not self._placed(target, only_if_absent=only_if_absent):
            pass
        # Without its directory the object was deleted already, and there is nothing to sync.
        with contextlib.suppress(FileNotFoundError):
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _placed(self, target: Path, *, only_if_absent: bool) -> bool:
        """Give the file its name; False when the directory for it was pruned at this moment."""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError):
            if target.parent.exists() and not target.parent.is_dir():
                raise
            return False
        try:
            if only_if_absent:
                os.link(self._temporary, target)
            else:
                self._temporary.replace(target)
        except FileNotFoundError:
            if not self._temporary.exists():
                raise
            return False
        return True

    def _start_writeback(self) -> None:
        """Let the kernel begin to write: fsync() then has little to wait for, and the database keeps its page cache."""
        length = self._written - self._advised
        os.posix_fadvise(self._file.fileno(), self._advised, length, os.POSIX_FADV_DONTNEED)
        self._advised = self._written

    def abort(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _unless_gone(problem: OSError) -> None:
    if not isinstance(problem, FileNotFoundError):
        raise problem


def _info(key: str, path: Path) -> ObjectInfo:
    status = path.stat()
    return ObjectInfo(key=key, size=status.st_size, modified=datetime.fromtimestamp(status.st_mtime, UTC))


@contextlib.contextmanager
def _explained(key: str, store: str) -> Iterator[None]:
    """The operating system's errors in this project's words."""
    where = f"{store}/{key}" if key else store
    try:
        yield
    except FileExistsError:
        raise ObjectExists("an object of this name exists already", where=where) from None
    except (FileNotFoundError, IsADirectoryError):
        raise ObjectMissing("the object is not there", where=where) from None
    except OSError as problem:
        raise StoreError(
            (problem.strerror or str(problem)).lower(),
            where=where,
            remedy="check the disk and the directory's permissions",
        ) from None
