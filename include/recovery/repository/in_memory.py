"""Sealing what fits in memory: segments of WAL and small objects. The same format as the stream's (sealing.py)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import pyrage
import xxhash
import zstandard

from recovery.errors import IntegrityError
from recovery.repository.sealing import HASH_NAME, Sealed, not_decrypted
from recovery.repository.store import ObjectStore


def seal_in_memory(
    key: str, data: bytes | bytearray | memoryview, *, recipients: Sequence[Any], level: int = 1
) -> tuple[bytes, Sealed]:
    """The object that sealing these bytes gives, and what it is; for what fits in memory."""
    packed = zstandard.ZstdCompressor(level=level, write_checksum=True).compress(data)
    if recipients:
        output = io.BytesIO()
        pyrage.encrypt_io(io.BytesIO(packed), output, list(recipients))
        packed = output.getvalue()
    return packed, Sealed(
        key=key,
        compression="zstd",
        encrypted=bool(recipients),
        stored_bytes=len(packed),
        stored_sha256=hashlib.sha256(packed).hexdigest(),
        sealed_bytes=len(data),
        sealed_hash=content_hash(data),
    )


def content_hash(data: bytes | bytearray | memoryview) -> str:
    """The hash of sealed content, with its name."""
    return f"{HASH_NAME}:{xxhash.xxh3_128(data).hexdigest()}"


def unseal_in_memory(stored: bytes, *, identities: Sequence[Any], where: str) -> bytes:
    """Decrypt and decompress an object in memory; age and zstd tell damage. Raises SealError, IntegrityError."""
    output = io.BytesIO()
    try:
        pyrage.decrypt_io(io.BytesIO(stored), output, list(identities))
    except Exception as problem:
        raise not_decrypted(problem, where) from None
    try:
        return zstandard.ZstdDecompressor().decompress(output.getvalue())
    except zstandard.ZstdError as problem:
        raise IntegrityError(f"cannot be decompressed ({problem})", where=where) from None


def seal_bytes(store: ObjectStore, key: str, data: bytes, *, recipients: Sequence[Any], level: int = 3) -> Sealed:
    """Seal a small object that is in memory."""
    stored, sealed = seal_in_memory(key, data, recipients=recipients, level=level)
    store.put(key, stored)
    return sealed
