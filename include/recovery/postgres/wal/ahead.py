"""`restore_command` ahead of the server: the segments that follow are fetched together with the one it asks for.

Every call is a process of its own and leaves none behind, so a call whose segment is not in the spool, or is the last
one there, fetches the next ones side by side before it returns; the calls after it only rename. The spool is a
directory that only the calling user may enter, one for each data directory, locked while a call uses it. Only finished
segments go in, for they never change. It is a cache: whatever is wrong with it, the file that was asked for comes from
the store, and what is wrong with a later segment is said when that one is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import IO

from recovery.errors import PreconditionError
from recovery.postgres.wal.fetch import Source, place
from recovery.postgres.wal.positions import Segment

_SIDE_BY_SIDE = 4
_BYTES_AT_ONCE = 256 << 20
_SILENCE_SECONDS = 60.0
_HEADER = struct.Struct("=8xQ8xQI")
"""A segment begins with its address, the system identifier and its size (xlog_internal.h, XLogLongPageHeaderData)."""
_ANY_SIZE = 16 << 20


def fetch(
    source: Callable[[], Source],
    file: str,
    path: Path,
    *,
    spool: Spool | None,
    ahead: int,
    patience_seconds: float,
    warn: Callable[[PreconditionError], object],
) -> bool:
    """Put the file at `path`, and see that the `ahead` - 1 segments after it are at hand; False when it is not stored.

    `source` is asked for only when something has to be read from the store. Raises as Source.read does, and OSError
    where `path` cannot be written; `warn` is told of a spool that takes nothing.
    """
    size = spool.take(file, path) if spool else None
    if size is None:
        found = source().read(file, patience_seconds=patience_seconds)
        if found is None:
            return False
        _place(path, found.data, spool)
        size = len(found.data) if found.whole else None
    if spool is not None and size is not None:
        try:
            if missing := spool.keep(_following(file, size, ahead - 1)):
                spool.fill(missing, source())
        except OSError as problem:
            warn(_unusable(spool.folder, problem))
        except Exception:
            # The file is where it was wanted: a store that fails from here on is told of by the call that needs it.
            return True
    return True


def _place(path: Path, data: bytes, spool: Spool | None) -> None:
    try:
        place(path, data)
    except OSError as problem:
        if spool is None or problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # The room that is missing may be the spool's.
        spool.clear()
        place(path, data)


def _following(file: str, size: int, count: int) -> dict[str, Segment]:
    """The next segments, by name, of the same timeline: after a switch the server asks for other names."""
    segment, following = Segment.parse(file, size), {}
    for _ in range(count):
        assert segment is not None
        segment = segment.next()
        following[segment.name(size)] = segment
    return following


@contextmanager
def spool_of(parent: Path, name: str, pgdata: Path, system_identifier: str) -> Iterator[Spool]:
    """The spool of a data directory, which is made where there is none yet, for this call alone.

    Raises PreconditionError where others may enter it, where it cannot be made, and while another call has it.
    """
    identity = hashlib.sha256(os.fsencode(f"{name}\0{pgdata.resolve()}\0{system_identifier}")).hexdigest()[:16]
    folder = parent / f"recovery-wal-{os.geteuid()}-{identity}"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as problem:
        raise _unusable(folder, problem) from None
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PreconditionError(
                "this directory is not the caller's alone, and nothing is fetched ahead",
                where=str(folder),
                remedy="remove it, or name another place with --spool",
            )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise _unusable(folder, problem) from None
        yield Spool(folder, handle, system_identifier)
    finally:
        # A lock ends with the last handle.
        os.close(handle)


def _unusable(folder: Path, problem: OSError) -> PreconditionError:
    reason = "another call uses it" if problem.errno == errno.EWOULDBLOCK else problem.strerror
    return PreconditionError(
        f"nothing is fetched ahead ({reason})",
        where=str(folder),
        remedy="the recovery goes on, one segment at a time; --spool names another place",
    )


class Spool:
    """Finished segments under their names. All access goes through the handle: what the path means may change."""

    def __init__(self, folder: Path, handle: int, system_identifier: str) -> None:
        self.folder = folder
        self._handle, self._system_identifier = handle, system_identifier

    def take(self, file: str, path: Path) -> int | None:
        """Move a segment to `path`; its size in bytes, or None when it is not here. Raises OSError for `path` alone.

        Anything else than a segment is asked for when a recovery begins, when it ends, and at the end of WAL: what is
        left then is of no more use, and goes.
        """
        if Segment.parse(file, _ANY_SIZE) is None:
            self.clear()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            return None
        size = self._size(file)
        if size is None:
            self._delete(file)
            return None
        try:
            os.rename(file, path, src_dir_fd=self._handle)
        except OSError as problem:
            if problem.errno != errno.EXDEV:
                raise
            return self._copy(file, path)
        return size

    def clear(self) -> None:
        for name in self._names():
            self._delete(name)

    def keep(self, following: Mapping[str, Segment]) -> list[Segment]:
        """Remove everything else. What of it is to be fetched: nothing while the first of them is here."""
        present = self._names()
        for other in present - set(following):
            self._delete(other)
        missing = [name for name in following if name not in present]
        return [following[name] for name in missing] if missing[:1] == list(following)[:1] else []

    def fill(self, segments: Sequence[Segment], source: Source) -> None:
        """Fetch these, up to the first that cannot be had: the end of WAL, or what its own call will say.

        Raises OSError for the spool, RecoveryError for the store.
        """
        size = source.archive.segment_bytes
        threads = max(1, min(_SIDE_BY_SIDE, _BYTES_AT_ONCE // size))
        for segment, data in _read_side_by_side(segments, source.read_segment, threads):
            self._put(segment.name(size), data)

    def _copy(self, file: str, path: Path) -> int | None:
        data = None
        with contextlib.suppress(OSError), self._open(file, os.O_RDONLY, "rb") as stored:
            data = stored.read()
        self._delete(file)
        if data is None:
            return None
        place(path, data)
        return len(data)

    def _put(self, name: str, data: bytes) -> None:
        temporary = f".{name}"
        try:
            with self._open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=self._handle, dst_dir_fd=self._handle)
        except OSError:
            self._delete(temporary)
            raise

    def _size(self, file: str) -> int | None:
        """In bytes; None where it is not here, or is not the whole segment of that name: a crash can cut it short."""
        with contextlib.suppress(OSError, struct.error), self._open(file, os.O_RDONLY, "rb") as stored:
            address, identifier, size = _HEADER.unpack(stored.read(_HEADER.size))
            length = os.fstat(stored.fileno()).st_size
            if length != size or str(identifier) != self._system_identifier:
                return None
            segment = Segment.parse(file, size)
            return size if segment and segment.start(size) == address else None
        return None

    def _names(self) -> set[str]:
        with os.scandir(self._handle) as entries:
            return {entry.name for entry in entries}

    def _open(self, name: str, flags: int, mode: str) -> IO[bytes]:
        return os.fdopen(os.open(name, flags | os.O_NOFOLLOW, 0o600, dir_fd=self._handle), mode)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._handle)


def _read_side_by_side(
    segments: Sequence[Segment], read: Callable[[Segment], bytes], threads: int
) -> Iterator[tuple[Segment, bytes]]:
    """In the order in which they come, until one cannot be had, or nothing has come for a minute.

    The threads do not keep the process: a store that has fallen silent costs the wait, and no more.
    """
    left = deque(segments)
    results: Queue[tuple[Segment, bytes] | None] = Queue(maxsize=1)

    def work() -> None:
        try:
            while True:
                segment = left.popleft()
                results.put((segment, read(segment)))
        except Exception:
            # None is left, or the store has failed: whatever it was is said when that segment is asked for.
            left.clear()
        results.put(None)

    for _ in range(threads):
        threading.Thread(target=work, name="wal ahead", daemon=True).start()
    try:
        while threads:
            result = results.get(timeout=_SILENCE_SECONDS)
            if result is None:
                threads -= 1
            else:
                yield result
    except Empty:
        return
    finally:
        left.clear()
