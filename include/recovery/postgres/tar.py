"""A tar stream (ustar) as PostgreSQL or Vault writes it, parsed while it passes; nothing is held but a header.

Used to cut the server's stream into volumes at member boundaries, to check a stored volume, to unpack one, and to
verify a Vault's snapshot.
"""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass, replace
from typing import Protocol

from recovery.errors import IntegrityError

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
_KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE)
_STRICT_KINDS = (*_KINDS, tarfile.XHDTYPE)
_EXTENDED_SIZE = re.compile(rb"(\d{1,3}) size=(\d{1,18})\n")


@dataclass(frozen=True)
class Member:
    """One member: `kind` is tarfile's type flag, `header` its 512 bytes as they came."""

    name: str
    kind: bytes
    size: int
    mode: int
    link: str
    header: bytes


class Handler(Protocol):
    """Told of each member and its content as it passes."""

    def begin(self, member: Member) -> None: ...
    def data(self, piece: memoryview) -> None: ...
    def end(self) -> None: ...


class TarStream:
    """Push bytes in with write(); call finish() at the end of the archive.

    Raises IntegrityError for a damaged header, an unknown kind of member, or an archive that ends early; `strict`, also
    for padding that is not zero, an end of archive of less than two blocks, and anything but zeros behind it. `strict`
    also reads the extended header (pax) that Go writes before a member of 8 GiB or more: it names the size, no more.
    """

    def __init__(self, handler: Handler, *, strict: bool = False) -> None:
        self._handler = self._sink = handler
        self._strict = strict
        self._extended: _ExtendedHeader | None = None
        self._zeros = 0
        self._header = bytearray()
        self._content = 0
        self._padding = 0
        self._ended = False

    def write(self, data: bytes | memoryview, /) -> None:
        view = memoryview(data)
        while view:
            if self._ended:
                self._take_rest(view)
                return
            if self._content:
                view = self._take_content(view)
            elif self._padding:
                view = self._take_padding(view)
            else:
                view = self._take_header(view)

    def finish(self) -> None:
        """The archive must have reached its end-of-archive block."""
        if not self._ended:
            raise IntegrityError("the tar ends before its end-of-archive block", remedy="use another backup")
        if self._strict and (self._zeros < BLOCK or self._zeros % BLOCK):
            raise IntegrityError("the tar ends within its end-of-archive blocks", remedy="use another backup")

    def _take_content(self, view: memoryview) -> memoryview:
        piece = view[: self._content]
        self._sink.data(piece)
        self._content -= len(piece)
        if not self._content:
            self._close_member()
        return view[len(piece) :]

    def _take_padding(self, view: memoryview) -> memoryview:
        piece = view[: self._padding]
        if self._strict and any(piece):
            raise IntegrityError("the padding of a tar member is not zero", remedy="use another backup")
        self._padding -= len(piece)
        return view[len(piece) :]

    def _take_rest(self, view: memoryview) -> None:
        if self._strict and bytes(view).strip(b"\0"):
            raise IntegrityError("something follows the end of the tar", remedy="use another backup")
        self._zeros += len(view)

    def _take_header(self, view: memoryview) -> memoryview:
        missing = BLOCK - len(self._header)
        self._header += view[:missing]
        if len(self._header) == BLOCK:
            block = bytes(self._header)
            self._header.clear()
            if not any(block):
                self._refuse_dangling_extension()
                self._ended = True
            else:
                self._open_member(_parse(block, kinds=_STRICT_KINDS if self._strict else _KINDS))
        return view[missing:]

    def _open_member(self, member: Member) -> None:
        if member.kind == tarfile.XHDTYPE:
            self._refuse_dangling_extension()
            self._sink = self._extended = _ExtendedHeader()
        else:
            self._sink = self._handler
            if self._extended is not None:
                member = replace(member, size=self._extended.size)
                self._extended = None
        self._sink.begin(member)
        self._content = member.size
        self._padding = -member.size % BLOCK
        if not member.size:
            self._close_member()

    def _refuse_dangling_extension(self) -> None:
        if self._extended is not None:
            raise IntegrityError("a tar's extended header has no member behind it", remedy="use another backup")

    def _close_member(self) -> None:
        self._sink.end()


def _parse(block: bytes, *, kinds: tuple[bytes, ...]) -> Member:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as problem:
        raise IntegrityError(f"a tar header is damaged ({problem})", remedy="use another backup") from None
    if info.size < 0:
        raise IntegrityError("a tar header is damaged (negative size)", where=info.name, remedy="use another backup")
    if info.type not in kinds:
        raise IntegrityError(f"a tar member has kind {info.type!r}, which no backup holds", where=info.name)
    return Member(info.name, info.type, info.size, info.mode, info.linkname, block)


class _ExtendedHeader:
    """The content of an extended header: the `size` of the member that follows, and nothing else."""

    def __init__(self) -> None:
        self.size = 0
        self._content = b""

    def begin(self, member: Member) -> None:
        if not 0 < member.size <= BLOCK:
            raise self._unknown()

    def data(self, piece: memoryview) -> None:
        self._content += piece

    def end(self) -> None:
        found = _EXTENDED_SIZE.fullmatch(self._content)
        if not found or int(found[1]) != len(self._content):
            raise self._unknown()
        self.size = int(found[2])

    def _unknown(self) -> IntegrityError:
        return IntegrityError("a tar's extended header says more than a size", remedy="use another backup")


class Ignore:
    """A handler for reading an archive to its end only."""

    def begin(self, member: Member) -> None:
        pass

    def data(self, piece: memoryview) -> None:
        pass

    def end(self) -> None:
        pass
