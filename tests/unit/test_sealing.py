"""The sealing stream alone, on a store in memory: what goes in comes out, what fails leaves nothing, memory is bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pyrage
import pytest
import zstandard
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery.errors import IntegrityError, ObjectMissing, SealError, StoreError
from recovery.repository import sealing
from recovery.repository.in_memory import seal_bytes
from recovery.repository.sealing import (
    MIB,
    Compression,
    Sealed,
    SealingWriter,
    check_stored,
    parse_identities,
    parse_recipient,
    unseal,
    unseal_bytes,
)
from tests.memory import MemoryStore

IDENTITY = pyrage.x25519.Identity.generate()
RECIPIENT = IDENTITY.to_public()
COMPRESSIONS: tuple[Compression, ...] = ("zstd", "zstd-by-source", "none")
# Pieces long enough to fill a batch are made of few drawn bytes: the sizes matter here, and drawing megabytes is slow.
PIECES = st.lists(
    st.builds(lambda unit, times: unit * times, st.binary(max_size=64), st.sampled_from([0, 1, 3, 700, 30_000])),
    max_size=8,
)


def seal(
    store: MemoryStore, pieces: list[bytes], *, compression: Compression = "zstd", encrypted: bool = True
) -> Sealed:
    writer = SealingWriter(
        store, "object", recipients=[RECIPIENT] if encrypted else [], compression=compression, size_limit=1 << 40
    )
    for piece in pieces:
        writer.write(piece)
    return writer.commit()


def opened(store: MemoryStore, sealed: Sealed) -> bytes:
    return unseal_bytes(store, sealed, identities=[IDENTITY])


@given(
    pieces=PIECES,
    compression=st.sampled_from(COMPRESSIONS),
    encrypted=st.booleans(),
    part_size=st.sampled_from([1, 1000, 65536]),
)
@settings(max_examples=150, deadline=None)
def test_what_is_sealed_opens_to_the_same_bytes(
    pieces: list[bytes], compression: Compression, encrypted: bool, part_size: int
) -> None:
    content = b"".join(pieces)
    if compression == "zstd-by-source":
        pieces = [zstandard.ZstdCompressor().compress(content)]
    store = MemoryStore(part_size=max(part_size, sum(map(len, pieces)) // 200))
    sealed = seal(store, pieces, compression=compression, encrypted=encrypted)
    assert opened(store, sealed) == content
    stored = store.get("object")
    assert sealed.stored_bytes == len(stored)
    assert sealed.sealed_bytes == sum(map(len, pieces))
    assert stored.startswith(b"age-encryption.org/v1") == encrypted
    check_stored(store, sealed)
    assert store.open_uploads == 0


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_megabytes_pass_through_every_compression(compression: Compression) -> None:
    content = bytes(range(256)) * 4096 * 20 + pyrage.x25519.Identity.generate().to_public().__str__().encode()
    given_ = zstandard.ZstdCompressor().compress(content) if compression == "zstd-by-source" else content
    store = MemoryStore(part_size=5 * MIB)
    sealed = seal(store, [given_[at : at + 300_001] for at in range(0, len(given_), 300_001)], compression=compression)
    assert opened(store, sealed) == content


def test_the_stored_object_needs_only_age_and_zstd() -> None:
    store = MemoryStore()
    seal(store, [b"plain content " * 1000])
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(pyrage.decrypt(store.get("object"), [IDENTITY]))
    assert plain == b"plain content " * 1000


def test_every_recipient_opens_the_object_alone() -> None:
    store, escrow = MemoryStore(), pyrage.x25519.Identity.generate()
    sealed = seal_bytes(store, "object", b"secret", recipients=[RECIPIENT, escrow.to_public()])
    assert unseal_bytes(store, sealed, identities=[escrow]) == b"secret"
    assert unseal_bytes(store, sealed, identities=[IDENTITY]) == b"secret"


def test_an_abandoned_write_leaves_nothing() -> None:
    store = MemoryStore()
    writer = SealingWriter(store, "object", recipients=[RECIPIENT], size_limit=MIB)
    writer.write(b"x" * 5 * MIB)
    writer.abort()
    assert not store.objects and store.open_uploads == 0


@pytest.mark.parametrize("operation", ["part", "complete"])
def test_a_failing_store_surfaces_and_leaves_nothing(operation: str) -> None:
    def fail(what: str, key: str) -> None:
        if what == operation:
            raise StoreError("the disk is on fire", where=key)

    store = MemoryStore(before=fail)
    writer = SealingWriter(store, "object", recipients=[RECIPIENT], compression="none", size_limit=MIB)
    with pytest.raises(StoreError, match="the disk is on fire"):
        try:
            for _ in range(40):
                writer.write(b"x" * MIB)
        except BaseException:
            writer.abort()
            raise
        writer.commit()
    assert not store.objects and store.open_uploads == 0
    assert not any(thread.name.startswith("seal ") for thread in threading.enumerate())


def test_a_slow_store_slows_the_writer_down_within_bounded_memory() -> None:
    go_on = threading.Event()
    store = MemoryStore(part_size=MIB, before=lambda what, key: None if what != "part" else (go_on.wait(30), None)[1])
    writer = SealingWriter(store, "object", recipients=[RECIPIENT], compression="none", size_limit=1 << 30)
    accepted = 0

    def write() -> None:
        nonlocal accepted
        for _ in range(64):
            writer.write(b"x" * MIB)
            accepted += 1

    source = threading.Thread(target=write)
    source.start()
    seen = -1
    while seen != accepted:
        seen = accepted
        time.sleep(0.3)
    held, waiting = accepted, source.is_alive()
    go_on.set()
    source.join()
    assert waiting
    # The pipe's 4 MiB, the part that waits, and what is between them.
    assert 4 <= held <= 8
    assert writer.commit().sealed_bytes == 64 * MIB


def test_a_few_bytes_that_expand_hugely_are_handed_on_in_bounded_pieces() -> None:
    store = MemoryStore()
    sealed = seal(store, [bytes(MIB)] * 64)
    assert sealed.stored_bytes < MIB
    largest = 0

    class Measure:
        def write(self, data: bytes, /) -> None:
            nonlocal largest
            largest = max(largest, len(data))

    unseal(store, sealed, Measure(), identities=[IDENTITY])
    assert largest <= MIB


def damaged(change: Callable[[bytearray], None]) -> tuple[MemoryStore, Sealed]:
    store = MemoryStore()
    sealed = seal(store, [bytes(range(256)) * 2000], compression="none")
    data = bytearray(store.get("object"))
    change(data)
    store.put("object", bytes(data))
    return store, sealed


def flip(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


def flip_in_the_header(data: bytearray) -> None:
    data[30] ^= 1


def truncate(data: bytearray) -> None:
    del data[-1000:]


def extend(data: bytearray) -> None:
    data += b"more"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, "SHA-256 differs"),
        (flip_in_the_header, "SHA-256 differs"),
        (truncate, "bytes were written|bytes, and"),
        (extend, "bytes, and"),
        (bytearray.clear, "has 0 bytes"),
    ],
)
def test_damage_is_told_as_damage_and_not_as_a_wrong_key(change: Callable[[bytearray], None], message: str) -> None:
    store, sealed = damaged(change)
    with pytest.raises(IntegrityError, match=message):
        check_stored(store, sealed)
    with pytest.raises(IntegrityError, match=message):
        opened(store, sealed)


def test_a_wrong_identity_is_told_as_a_wrong_identity() -> None:
    store = MemoryStore()
    sealed = seal(store, [b"content"])
    with pytest.raises(SealError, match="no identity given here opens this object"):
        unseal_bytes(store, sealed, identities=[pyrage.x25519.Identity.generate()])


def test_another_object_correctly_sealed_under_the_same_name_is_refused() -> None:
    store = MemoryStore()
    sealed = seal(store, [b"what the backup wrote"])
    seal(store, [b"what somebody with the public key wrote"])
    with pytest.raises(IntegrityError):
        opened(store, sealed)


def test_content_that_differs_from_the_manifest_is_refused() -> None:
    store = MemoryStore()
    sealed = replace(seal(store, [b"content"]), sealed_hash="xxh3-128:00")
    with pytest.raises(IntegrityError, match="differs from what was sealed"):
        opened(store, sealed)


def test_what_does_not_decompress_is_damage() -> None:
    store = MemoryStore()
    sealed = replace(seal(store, [b"no zstd frame" * 100], compression="none"), compression="zstd")
    with pytest.raises(IntegrityError, match="cannot be decompressed"):
        opened(store, sealed)


def test_a_missing_object_is_named() -> None:
    store = MemoryStore()
    sealed = seal(store, [b"content"])
    store.delete("object")
    with pytest.raises(ObjectMissing, match="memory/object"):
        opened(store, sealed)


def test_the_sinks_own_error_is_the_one_that_is_raised() -> None:
    store = MemoryStore()
    sealed = seal(store, [b"content" * 100_000])

    class Full:
        def write(self, data: bytes, /) -> None:
            raise StoreError("the sink is full")

    with pytest.raises(StoreError, match="the sink is full"):
        unseal(store, sealed, Full(), identities=[IDENTITY])


@pytest.mark.parametrize("text", ["", "# only a comment\n", "nonsense", "AGE-SECRET-KEY-1NOTONE", str(RECIPIENT)])
def test_what_is_no_identity_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(SealError) as caught:
        parse_identities(text, where="connection recovery_identity")
    assert "connection recovery_identity: this is not an age identity" in str(caught.value)
    assert not text.strip("# \n") or text not in str(caught.value)


def test_a_key_file_with_comments_and_several_identities_is_read() -> None:
    other = pyrage.x25519.Identity.generate()
    text = f"# created: 2026-01-01T00:00:00Z\n# public key: {RECIPIENT}\n{IDENTITY}\n\n{other}\n"
    assert [str(found.to_public()) for found in parse_identities(text, where="f")] == [
        str(RECIPIENT),
        str(other.to_public()),
    ]


def test_ssh_keys_are_recipients_and_identities_too() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    store = MemoryStore()
    sealed = seal_bytes(store, "object", b"secret", recipients=[parse_recipient(public)])
    assert unseal_bytes(store, sealed, identities=parse_identities(private, where="f")) == b"secret"


def test_progress_counts_every_stored_byte_once() -> None:
    store, seen = MemoryStore(), []
    sealed = seal(store, [b"x" * 3 * MIB], compression="none")
    check_stored(store, sealed, progress=seen.append)
    assert sum(seen) == sealed.stored_bytes


def test_the_pipe_delivers_a_failure_to_the_side_that_waits() -> None:
    pipe = sealing._Pipe(10)
    threading.Timer(0.1, lambda: pipe.fail(StoreError("broken"))).start()
    with pytest.raises(StoreError, match="broken"):
        pipe.read(1)
