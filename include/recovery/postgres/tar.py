"""A tar stream as PostgreSQL writes it (ustar, no extensions), parsed while it passes; nothing is held but a header.

Used to cut the server's stream into volumes at member boundaries, to check a stored volume, and to unpack one.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import Protocol

from recovery.errors import IntegrityError

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)


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

    Raises IntegrityError for a damaged header, an unknown kind of member, or an archive that ends early.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._header = bytearray()
        self._content = 0
        self._padding = 0
        self._ended = False

    def write(self, data: bytes | memoryview, /) -> None:
        view = memoryview(data)
        while view:
            if self._ended:
                return
            if self._content:
                view = self._take_content(view)
            elif self._padding:
                taken = min(self._padding, len(view))
                self._padding -= taken
                view = view[taken:]
            else:
                view = self._take_header(view)

    def finish(self) -> None:
        """The archive must have reached its end-of-archive block."""
        if not self._ended:
            raise IntegrityError("the tar ends before its end-of-archive block", remedy="use another backup")

    def _take_content(self, view: memoryview) -> memoryview:
        piece = view[: self._content]
        self._handler.data(piece)
        self._content -= len(piece)
        if not self._content:
            self._close_member()
        return view[len(piece) :]

    def _take_header(self, view: memoryview) -> memoryview:
        missing = BLOCK - len(self._header)
        self._header += view[:missing]
        if len(self._header) == BLOCK:
            block = bytes(self._header)
            self._header.clear()
            if not any(block):
                self._ended = True
            else:
                self._open_member(_parse(block))
        return view[missing:]

    def _open_member(self, member: Member) -> None:
        self._handler.begin(member)
        self._content = member.size
        self._padding = -member.size % BLOCK
        if not member.size:
            self._close_member()

    def _close_member(self) -> None:
        self._handler.end()


def _parse(block: bytes) -> Member:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as problem:
        raise IntegrityError(f"a tar header is damaged ({problem})", remedy="use another backup") from None
    if info.size < 0:
        raise IntegrityError("a tar header is damaged (negative size)", where=info.name, remedy="use another backup")
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE):
        raise IntegrityError(f"a tar member has kind {info.type!r}, which no backup holds", where=info.name)
    return Member(info.name, info.type, info.size, info.mode, info.linkname, block)


class Ignore:
    """A handler for reading an archive to its end only."""

    def begin(self, member: Member) -> None:
        pass

    def data(self, piece: memoryview) -> None:
        pass

    def end(self) -> None:
        pass
