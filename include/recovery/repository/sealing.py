"""The sealing stream: compress (zstd) → encrypt (age) → hash → upload; and its way back. Bounded memory, one pass.

age: https://age-encryption.org/v1. Sealing runs in a thread of its own, fed through a bounded pipe: a slow store slows
the source down, and neither side ever holds more than a few megabytes.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyrage
import xxhash
import zstandard

from recovery.connections import Connection
from recovery.errors import IntegrityError, RecoveryError, SealError
from recovery.repository.store import ObjectStore, Reader, Upload

MIB = 1 << 20
_PIPE_BYTES = 4 * MIB
_BATCH_BYTES = MIB
HASH_NAME = "xxh3-128"

Compression = Literal["zstd", "zstd-by-source", "none"]
"""Who compressed: this process, the source (a server's zstd stream, passed on as it came), or nobody."""


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """What was written under one key.

    `stored_*` describe the object as it lies in the store. `sealed_*` describe the bytes that this process was given:
    the plain content, or with "zstd-by-source" the compressed stream.
    """

    key: str
    compression: Compression
    encrypted: bool
    stored_bytes: int
    stored_sha256: str
    sealed_bytes: int
    sealed_hash: str

    def description(self) -> dict[str, str]:
        """What tells an object's content without a key, as metadata that travels with it."""
        return {
            "sealed-bytes": str(self.sealed_bytes),
            "sealed-hash": self.sealed_hash,
            "stored-sha256": self.stored_sha256,
        }


class ByteSink(Protocol):
    def write(self, data: bytes, /) -> object: ...


def parse_recipient(text: str) -> Any:
    """An age recipient (`age1...`) or an SSH public key; raises ValueError."""
    try:
        return (
            pyrage.ssh.Recipient.from_str(text) if text.startswith("ssh-") else pyrage.x25519.Recipient.from_str(text)
        )
    except pyrage.RecipientError as problem:
        raise ValueError(str(problem)) from None


def parse_identities(text: str, *, where: str) -> list[Any]:
    """The identities of an age key file or an SSH private key; raises SealError, which never quotes the text."""
    try:
        if "PRIVATE KEY-----" in text:
            return [pyrage.ssh.Identity.from_buffer(text.encode())]
        lines = [line.strip() for line in text.splitlines()]
        found = [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
    except pyrage.IdentityError:
        found = []
    if not found:
        raise SealError(
            "this is not an age identity",
            where=where,
            remedy="give the AGE-SECRET-KEY-1... line that age-keygen printed",
        )
    return found


def identities_of(connection: Connection) -> list[Any]:
    """The identities that a connection's password holds."""
    return parse_identities(connection.password.replace("\\n", "\n"), where=f"connection {connection.id}")


class SealingWriter:
    """Write bytes in, commit() to make the object, abort() to leave nothing behind.

    `recipients` empty means no encryption (only for what holds no data). Errors of the store surface from write() or
    commit(). `size_limit` bounds the object's size in bytes; the store chooses its part size by it.
    """

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        *,
        recipients: Sequence[Any],
        compression: Compression = "zstd",
        level: int = 1,
        workers: int = 0,
        size_limit: int,
    ) -> None:
        self.key = key
        self._recipients = list(recipients)
        self._hash = xxhash.xxh3_128()
        self._bytes = 0
        self._compression: Compression = compression
        self._compressor = (
            zstandard.ZstdCompressor(level=level, threads=workers, write_checksum=True).compressobj()
            if compression == "zstd"
            else None
        )
        self._batch: list[bytes | memoryview] = []
        self._batched = 0
        self._pipe = _Pipe(_PIPE_BYTES)
        self._sink = _UploadSink(store.upload(key, size_limit=size_limit))
        self._thread = threading.Thread(target=self._seal, name=f"seal {key}", daemon=True)
        self._thread.start()

    def write(self, data: bytes | memoryview, /) -> None:
        """Add content; blocks while the store is slower than the source."""
        self._bytes += len(data)
        self._hash.update(data)
        if self._compressor is not None:
            self._pipe.put(self._compressor.compress(data))
            return
        self._batch.append(data)
        self._batched += len(data)
        if self._batched >= _BATCH_BYTES:
            self._flush()

    def commit(self) -> Sealed:
        """Finish the object and say what it is. On an error the upload is aborted."""
        try:
            if self._compressor is None:
                self._flush()
            else:
                self._pipe.put(self._compressor.flush())
            self._pipe.close()
            self._thread.join()
            self._pipe.raise_failure()
            self._sink.finish()
        except BaseException:
            self.abort()
            raise
        return Sealed(
            key=self.key,
            compression=self._compression,
            encrypted=bool(self._recipients),
            stored_bytes=self._sink.size,
            stored_sha256=self._sink.sha256.hexdigest(),
            sealed_bytes=self._bytes,
            sealed_hash=f"{HASH_NAME}:{self._hash.hexdigest()}",
        )

    def abort(self) -> None:
        self._pipe.fail(RecoveryError("the upload was abandoned", where=self.key))
        self._thread.join()
        self._sink.upload.abort()

    def _flush(self) -> None:
        self._pipe.put(b"".join(self._batch))
        self._batch.clear()
        self._batched = 0

    def _seal(self) -> None:
        try:
            if self._recipients:
                pyrage.encrypt_io(self._pipe, self._sink, self._recipients)
            else:
                while data := self._pipe.read(_BATCH_BYTES):
                    self._sink.write(data)
        except BaseException as problem:
            self._pipe.fail(self._sink.problem or problem)


class _Pipe:
    """A bounded queue of bytes between two threads. A failure on either side reaches the other at its next call."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._closed = False
        self._failure: BaseException | None = None
        self._change = threading.Condition()
        self._current, self._position = b"", 0

    def put(self, data: bytes) -> None:
        if not data:
            self.raise_failure()
            return
        with self._change:
            self._change.wait_for(lambda: self._size < self._limit or self._failure)
            self.raise_failure()
            self._chunks.append(data)
            self._size += len(data)
            self._change.notify_all()

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()

    def fail(self, problem: BaseException) -> None:
        with self._change:
            self._failure = self._failure or problem
            self._change.notify_all()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def read(self, size: int) -> bytes:
        if self._position >= len(self._current):
            self._current, self._position = self._next(), 0
        begin, self._position = self._position, self._position + size
        return self._current[begin : self._position]

    def _next(self) -> bytes:
        with self._change:
            self._change.wait_for(lambda: self._chunks or self._closed or self._failure)
            self.raise_failure()
            if not self._chunks:
                return b""
            data = self._chunks.popleft()
            self._size -= len(data)
            self._change.notify_all()
            return data


class _UploadSink:
    """Hashes what is stored and cuts it into the upload's parts. Keeps a failure, which pyrage would turn into text."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.problem: BaseException | None = None
        self._pieces: list[bytes] = []
        self._held = 0

    def write(self, data: bytes, /) -> int:
        try:
            self._pieces.append(data)
            self._held += len(data)
            if self._held >= self.upload.part_size:
                self._send(self.upload.part_size)
        except BaseException as problem:
            self.problem = problem
            raise
        return len(data)

    def flush(self) -> None:
        """Called by pyrage; parts are cut by size alone."""

    def finish(self) -> None:
        self._send(self._held)
        self.upload.complete()

    def _send(self, size: int) -> None:
        """Cut the last piece, so that a part is copied once."""
        rest = b""
        if self._held > size:
            last = self._pieces.pop()
            keep = len(last) - (self._held - size)
            self._pieces.append(last[:keep])
            rest = last[keep:]
        part = b"".join(self._pieces)
        self._pieces = [rest] if rest else []
        self._held = len(rest)
        self.sha256.update(part)
        self.size += len(part)
        self.upload.write_part(part)


def check_stored(store: ObjectStore, sealed: Sealed, *, progress: Callable[[int], None] | None = None) -> None:
    """Read one object and compare its size and SHA-256; needs no key. Raises IntegrityError or ObjectMissing."""
    reader = _StoredReader(store, sealed, progress=progress)
    try:
        reader.drain()
        reader.compare()
    finally:
        reader.close()


def unseal(
    store: ObjectStore,
    sealed: Sealed,
    sink: ByteSink,
    *,
    identities: Sequence[Any],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fetch, decrypt and decompress one object into `sink`, comparing every hash on the way.

    The sink gets plain content in pieces of about 1 MiB, before the last hash is known: it must not act on it as true
    until this returns. Raises SealError (no identity fits), IntegrityError (damaged), ObjectMissing.
    """
    reader = _StoredReader(store, sealed, progress=progress)
    inner = _InnerSink(sealed, sink)
    try:
        _decrypt(reader, inner, identities=identities, encrypted=sealed.encrypted)
        reader.drain()
        reader.compare()
        inner.finish()
    finally:
        reader.close()


def unseal_bytes(store: ObjectStore, sealed: Sealed, *, identities: Sequence[Any]) -> bytes:
    """A small sealed object whole."""
    pieces: list[bytes] = []

    class Collect:
        def write(self, data: bytes, /) -> None:
            pieces.append(data)

    unseal(store, sealed, Collect(), identities=identities)
    return b"".join(pieces)


def _decrypt(reader: _StoredReader, inner: _InnerSink, *, identities: Sequence[Any], encrypted: bool) -> None:
    if not encrypted:
        while data := reader.read(_BATCH_BYTES):
            inner.write(data)
        return
    try:
        pyrage.decrypt_io(reader, inner, list(identities))
    except Exception as problem:
        if own := reader.problem or inner.problem:
            raise own from None
        # A damaged object also fails to decrypt: the stored hash tells damage from a wrong key.
        reader.drain()
        reader.compare()
        raise not_decrypted(problem, reader.where) from None


def not_decrypted(problem: Exception, where: str) -> RecoveryError:
    """A failure of age in this project's words: a key that does not fit, or damage."""
    if "matching keys" in str(problem):
        return SealError(
            "no identity given here opens this object",
            where=where,
            remedy="use the identity of one of the recipients that the backup names",
        )
    return IntegrityError(
        f"the object cannot be decrypted ({problem})", where=where, remedy="use another backup, or another copy"
    )


class _StoredReader:
    """Reads an object as stored, in pieces of 1 MiB, hashing it on the way."""

    def __init__(self, store: ObjectStore, sealed: Sealed, *, progress: Callable[[int], None] | None) -> None:
        self.where = f"{store.description}/{sealed.key}"
        self.problem: BaseException | None = None
        self._sealed = sealed
        self._progress = progress
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._body: Reader = store.open(sealed.key)
        self._current = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        try:
            if not self._current:
                self._current = memoryview(self._fetch())
        except BaseException as problem:
            self.problem = problem
            raise
        if size < 0:
            size = len(self._current)
        piece = self._current[:size]
        self._current = self._current[size:]
        return bytes(piece)

    def drain(self) -> None:
        while self._fetch():
            pass

    def compare(self) -> None:
        expected = self._sealed
        if self._size != expected.stored_bytes:
            raise IntegrityError(
                f"the object has {self._size} bytes, and {expected.stored_bytes} were written",
                where=self.where,
                remedy="use another backup, or another copy of this one",
            )
        if self._sha256.hexdigest() != expected.stored_sha256:
            raise IntegrityError(
                "the object's SHA-256 differs from what was written",
                where=self.where,
                remedy="use another backup, or another copy of this one",
            )

    def close(self) -> None:
        self._body.close()

    def _fetch(self) -> bytes:
        data = self._body.read(_BATCH_BYTES)
        self._sha256.update(data)
        self._size += len(data)
        if data and self._progress is not None:
            self._progress(len(data))
        return data


class _InnerSink:
    """Takes decrypted bytes, decompresses them and passes the content on; hashes what the writer was given."""

    def __init__(self, sealed: Sealed, sink: ByteSink) -> None:
        self.problem: BaseException | None = None
        self._sealed, self._sink = sealed, sink
        self._hash = xxhash.xxh3_128()
        self._size = 0
        # stream_writer hands content on in bounded pieces, however far a few compressed bytes expand.
        self._decompressor = zstandard.ZstdDecompressor().stream_writer(
            _Measuring(self),  # type: ignore[arg-type]  # zstandard only calls write()
            write_size=_BATCH_BYTES,
            closefd=False,
        )
        self._batch = bytearray()

    def write(self, data: bytes, /) -> int:
        self._batch += data
        if len(self._batch) >= 256 * 1024:
            self._flush()
        return len(data)

    def flush(self) -> None:
        """Called by pyrage; batches are cut by size alone."""

    def finish(self) -> None:
        self._flush()
        where = self._sealed.key
        if (
            self._size != self._sealed.sealed_bytes
            or f"{HASH_NAME}:{self._hash.hexdigest()}" != self._sealed.sealed_hash
        ):
            raise IntegrityError(
                "the content differs from what was sealed", where=where, remedy="use another backup, and report this"
            )

    def _flush(self) -> None:
        data = bytes(self._batch)
        self._batch.clear()
        try:
            if self._sealed.compression == "none":
                self.content(data)
                return
            if self._sealed.compression == "zstd-by-source":
                self.measure(data)
            self._decompressor.write(data)
        except zstandard.ZstdError as problem:
            self.problem = IntegrityError(f"cannot be decompressed ({problem})", where=self._sealed.key)
            raise self.problem from None
        except BaseException as problem:
            self.problem = problem
            raise

    def content(self, data: bytes) -> None:
        if self._sealed.compression != "zstd-by-source":
            self.measure(data)
        self._sink.write(data)

    def measure(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)


class _Measuring:
    """The far side of the decompressor."""

    def __init__(self, inner: _InnerSink) -> None:
        self._inner = inner

    def write(self, data: bytes, /) -> int:
        self._inner.content(data)
        return len(data)
