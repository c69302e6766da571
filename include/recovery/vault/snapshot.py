"""A Raft snapshot of Vault or OpenBao, verified while it passes: it is whole, and it is what its own sums say.

A gzip of a tar of `meta.json`, `state.bin` (every stored key and its ciphertext), `SHA256SUMS` and `SHA256SUMS.sealed`
(the sums, encrypted with the server's own key). Whether a node with the right keys takes it, only a restore can tell.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from dataclasses import dataclass

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from recovery.errors import IntegrityError
from recovery.postgres.tar import Member, TarStream

_MAGIC = b"\x1f\x8b"
_QUOTED_BYTES = 80
_INPUT_BYTES = 256 * 1024
_PIECE_BYTES = 1 << 20

_META, _STATE, _SUMS, _SEALED = _MEMBERS = ("meta.json", "state.bin", "SHA256SUMS", "SHA256SUMS.sealed")
_REGULAR = (b"0", b"\0")
_SMALL_BYTES = 1 << 20
_SUMS_TEXT = re.compile(rb"([0-9a-f]{64})  (meta\.json|state\.bin)\n" * 2)

# A StorageEntry: its two fields, of which the second is left out where it is empty.
_KEY, _VALUE = 0x0A, 0x12
# The longest key that the storage (bbolt) takes, and what stands around it.
_HEAD_BYTES = 32768 + 32
_UVARINT_BITS = 70
_CORE, _KEYRING = b"core", b"core/keyring"
_MOUNTED = (b"logical", b"auth")
_GROUP_BYTES = 128
_MOST_GROUPS = 100_000

_REMEDY = "take the snapshot again, or use another one"
_BUG = "Vault reports success all the same, a known bug: hashicorp/vault issue 13130"


@dataclass(frozen=True)
class SnapshotFacts:
    """What a whole snapshot says of itself.

    `servers` are the node ids of the Raft configuration; `keys` the number of stored keys per top-level prefix (`core`,
    `logical`, `auth`, `sys`); `mount_keys` the same per mount, by the mount's uuid.
    """

    index: int
    term: int
    version: int
    snapshot_id: str
    state_bytes: int
    state_sha256: str
    servers: tuple[str, ...]
    keys: dict[str, int]
    mount_keys: dict[str, int]


class _Server(BaseModel):
    id: str = Field(alias="ID")


class _Configuration(BaseModel):
    servers: list[_Server] = Field(alias="Servers")


class _Meta(BaseModel):
    version: NonNegativeInt = Field(alias="Version", strict=True)
    id: str = Field(alias="ID")
    index: NonNegativeInt = Field(alias="Index", strict=True)
    term: NonNegativeInt = Field(alias="Term", strict=True)
    size: NonNegativeInt = Field(alias="Size", strict=True)
    configuration: _Configuration = Field(alias="Configuration")


class SnapshotVerifier:
    """Push the stream in with write(); finish() says what it was. Both raise IntegrityError at the first thing wrong.

    Memory is bounded, whatever the stream expands to. No error quotes what a snapshot holds.
    """

    def __init__(self) -> None:
        self._start = b""
        self._is_gzip = False
        self._gzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._contents = _Contents()
        self._tar = TarStream(self._contents, strict=True)

    def write(self, data: bytes, /) -> None:
        if not self._is_gzip:
            data = self._start = self._start + data
            if not data.startswith(_MAGIC):
                if len(data) >= _QUOTED_BYTES:
                    raise _no_snapshot(data)
                return
            self._is_gzip, self._start = True, b""
        view = memoryview(data)
        for at in range(0, len(view), _INPUT_BYTES):
            self._expand(view[at : at + _INPUT_BYTES])

    def finish(self) -> SnapshotFacts:
        if not self._is_gzip:
            raise _no_snapshot(self._start)
        if not self._gzip.eof:
            raise self._contents.missing() or _wrong("it ends early")
        if problem := self._contents.missing():
            raise problem
        self._tar.finish()
        return self._contents.facts()

    def close(self) -> None:
        """Nothing is held open."""

    def _expand(self, data: bytes | memoryview) -> None:
        while True:
            if self._gzip.eof:
                if data:
                    raise _wrong("something follows its end")
                return
            try:
                piece = self._gzip.decompress(data, _PIECE_BYTES)
            except zlib.error as problem:
                raise _wrong(f"its gzip is damaged ({str(problem).rpartition(': ')[2]})") from None
            self._tar.write(piece)
            data = self._gzip.unused_data or self._gzip.unconsumed_tail
            if not data and len(piece) < _PIECE_BYTES:
                return


class _Contents:
    """The four members, in their order, each checked as soon as it has passed."""

    def __init__(self) -> None:
        self._opened = self._closed = 0
        self._small = bytearray()
        self._meta: _Meta | None = None
        self._meta_sha256 = ""
        self._state = _State()

    # What TarStream calls.

    def begin(self, member: Member) -> None:
        expected = _MEMBERS[self._opened] if self._opened < len(_MEMBERS) else "its end"
        if member.name != expected or member.kind not in _REGULAR:
            found = member.name if member.name in _MEMBERS and member.name != expected else "another member"
            raise _wrong(f"it has {found} where {expected} must come")
        self._opened += 1
        if expected == _STATE:
            if member.size != self._known.size:
                raise _wrong(f"state.bin has {member.size} bytes, and meta.json says {self._known.size}")
        elif member.size > _SMALL_BYTES:
            raise _wrong(f"{expected} has {member.size} bytes, more than any snapshot's")
        elif expected == _SEALED and not member.size:
            raise _not_sealed("is empty")

    def data(self, piece: memoryview) -> None:
        if _MEMBERS[self._closed] == _STATE:
            self._state.write(bytes(piece))
        else:
            self._small += piece

    def end(self) -> None:
        name = _MEMBERS[self._closed]
        if name == _META:
            self._meta = _read_meta(self._small)
            self._meta_sha256 = hashlib.sha256(self._small).hexdigest()
        elif name == _STATE:
            self._state.finish()
        elif name == _SUMS:
            self._check_sums()
        self._closed += 1
        self._small.clear()

    def missing(self) -> IntegrityError | None:
        """The error for the members that have not come whole."""
        if self._closed == len(_MEMBERS):
            return None
        name = _MEMBERS[self._closed]
        if name == _SEALED:
            return _not_sealed("is missing" if self._opened == self._closed else "is cut off")
        return _wrong(
            f"it ends before {name} is whole",
            remedy=f"take it again; where it ends early every time, see whether the server's seal works ({_BUG})",
        )

    def facts(self) -> SnapshotFacts:
        meta, state = self._known, self._state
        return SnapshotFacts(
            index=meta.index,
            term=meta.term,
            version=meta.version,
            snapshot_id=meta.id,
            state_bytes=meta.size,
            state_sha256=state.sha256.hexdigest(),
            servers=tuple(server.id for server in meta.configuration.servers),
            keys=state.keys(),
            mount_keys=state.mount_keys(),
        )

    @property
    def _known(self) -> _Meta:
        assert self._meta is not None
        return self._meta

    def _check_sums(self) -> None:
        found = _SUMS_TEXT.fullmatch(self._small)
        sums = {found[2]: found[1], found[4]: found[3]} if found else {}
        if len(sums) != 2:
            raise _wrong("SHA256SUMS does not name exactly meta.json and state.bin")
        for name, sha256 in ((_META, self._meta_sha256), (_STATE, self._state.sha256.hexdigest())):
            if sums[name.encode()] != sha256.encode():
                raise _wrong(f"{name} does not have the hash that SHA256SUMS says")


class _State:
    """state.bin: entries, each with its length before it. Counts the keys, and holds no more than one of them."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self._counts: Counter[bytes] = Counter()
        self._group = b""
        self._prefix: bytes | tuple[()] = ()
        self._has_keyring = False
        self._rest = b""
        self._skip = 0

    def write(self, data: bytes) -> None:
        self.sha256.update(data)
        if self._skip >= len(data):
            self._skip -= len(data)
            return
        buffer = self._rest + data[self._skip :]
        position = self._count(buffer)
        self._rest = buffer[position:]
        self._skip = max(position - len(buffer), 0)
        if len(self._rest) > _HEAD_BYTES:
            raise _damaged()

    def finish(self) -> None:
        if self._rest or self._skip:
            raise _damaged()
        if not self._has_keyring:
            raise _wrong("state.bin holds no core/keyring: it is not the storage of an initialised Vault")
        self._counts = +self._counts  # Without the empty group that stood before the first key.

    def keys(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for group, count in self._counts.items():
            found[group.partition(b"/")[0].decode()] += count
        return dict(sorted(found.items()))

    def mount_keys(self) -> dict[str, int]:
        groups = ((group.partition(b"/")[2].decode(), count) for group, count in self._counts.items())
        return {uuid: count for uuid, count in sorted(groups) if uuid}

    def _count(self, buffer: bytes) -> int:
        """Count the entries from the buffer's start; returns where the first entry begins that it has no whole key of.

        Keys come sorted, so that most have the prefix of the one before: what is done for every key is kept short.
        """
        prefix, count, position, end = self._prefix, 0, 0, len(buffer)
        try:
            while position < end:
                size, at = _uvarint(buffer, position)
                stop = at + size
                size, key = _uvarint(buffer, at + 1)
                value = key + size
                if value < stop:
                    size, value_at = _uvarint(buffer, value + 1)
                    if buffer[at] != _KEY or buffer[value] != _VALUE or value_at + size != stop:
                        raise _damaged()
                elif buffer[at] != _KEY or value > stop:
                    raise _damaged()
                elif stop > end:
                    break
                if not buffer.startswith(prefix, key):
                    self._counts[self._group] += count
                    prefix, count = self._begin_group(buffer[key:value]), 0
                count += 1
                position = stop
        except IndexError:  # The rest of it comes with the next piece.
            pass
        self._counts[self._group] += count
        self._prefix = prefix
        return position

    def _begin_group(self, key: bytes) -> bytes | tuple[()]:
        """Returns the prefix of every key of this key's group; none for `core`, whose few keys are looked at each."""
        top, _, rest = key.partition(b"/")
        group = top + b"/" + rest.partition(b"/")[0] if top in _MOUNTED else top
        if group not in self._counts and (not _is_name(group) or len(self._counts) > _MOST_GROUPS):
            raise _damaged()
        self._group = group
        self._has_keyring |= key == _KEYRING
        return () if top == _CORE else group + b"/"


def _uvarint(buffer: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and the position behind it; raises IndexError where it is not whole."""
    value = buffer[position]
    if value < 0x80:
        return value, position + 1
    value += (buffer[position + 1] - 1) << 7
    position, shift = position + 2, 14
    while value >> shift and shift < _UVARINT_BITS:
        value += (buffer[position] - 1) << shift
        position, shift = position + 1, shift + 7
    return value, position


def _is_name(group: bytes) -> bool:
    return len(group) <= _GROUP_BYTES and group.isascii() and group.decode().isprintable()


def _read_meta(content: bytes | bytearray) -> _Meta:
    try:
        return _Meta.model_validate_json(content)
    except ValidationError as problem:
        path = ".".join(str(part) for part in problem.errors(include_input=False)[0]["loc"])
        raise _wrong(f"meta.json is not a snapshot's ({path or 'no JSON'})") from None


def _no_snapshot(start: bytes) -> IntegrityError:
    """The error for a stream that is not gzip; a page of text (what a proxy may answer) is quoted, nothing else is."""
    text = start[:_QUOTED_BYTES].decode(errors="replace").rstrip("\N{REPLACEMENT CHARACTER}")
    if not start:
        return _wrong("nothing came: the stream is empty")
    binary = "\N{REPLACEMENT CHARACTER}" in text or not re.sub(r"[\t\r\n]", "", text).isprintable()
    if text and not binary:
        return _wrong(f"this is no snapshot but text: {text!r}", "see what answers at this address: a proxy?")
    return _wrong("this is no snapshot: it is not gzip")


def _not_sealed(state: str) -> IntegrityError:
    return _wrong(
        f"SHA256SUMS.sealed {state}: the server's seal could not sign it, and no server would restore it",
        f"make the seal work (the token of a transit seal may have expired; {_BUG}), then take it again",
    )


def _damaged() -> IntegrityError:
    return _wrong("state.bin does not read to its end as stored keys")


def _wrong(what: str, remedy: str = _REMEDY) -> IntegrityError:
    return IntegrityError(what, where="Raft snapshot", remedy=remedy)
