"""The tar parser against Python's own, and what it refuses."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery.errors import IntegrityError
from recovery.postgres.tar import BLOCK, Ignore, Member, TarStream

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="/"), min_size=1, max_size=40)
MEMBERS = st.lists(
    st.tuples(
        st.lists(NAMES.filter(lambda name: name.strip(".")), min_size=1, max_size=2).map("/".join),
        st.sampled_from(["file", "folder", "link"]),
        st.one_of(st.binary(max_size=1300), st.sampled_from([b"x" * 511, b"x" * 512, b"x" * 513, b"x" * 8192])),
    ),
    max_size=8,
    unique_by=lambda member: member[0],
)


class Record:
    """A handler that keeps everything it is told."""

    def __init__(self) -> None:
        self.members: list[tuple[Member, bytes]] = []
        self._content = b""

    def begin(self, member: Member) -> None:
        self._member, self._content = member, b""

    def data(self, piece: memoryview) -> None:
        self._content += bytes(piece)

    def end(self) -> None:
        self.members.append((self._member, self._content))


def make_tar(members: list[tuple[str, str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            if kind == "file":
                info.size = len(content)
            elif kind == "folder":
                info.type = tarfile.DIRTYPE
            else:
                info.type, info.linkname = tarfile.SYMTYPE, "/somewhere/else"
            tar.addfile(info, io.BytesIO(content) if kind == "file" else None)
    return buffer.getvalue()


def feed(data: bytes, sizes: list[int]) -> Record:
    record = Record()
    stream = TarStream(record)
    at = 0
    for size in sizes:
        stream.write(data[at : at + size])
        at += size
    stream.write(memoryview(data)[at:])
    stream.finish()
    return record


@given(members=MEMBERS, sizes=st.lists(st.integers(0, 3000), max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_chunking_gives_what_tarfile_sees(members: list[tuple[str, str, bytes]], sizes: list[int]) -> None:
    data = make_tar(members)
    seen = feed(data, sizes).members
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [
            (
                info.name,
                info.type,
                info.size,
                info.mode,
                info.linkname,
                extracted.read() if (extracted := tar.extractfile(info)) and info.isreg() else b"",
            )
            for info in tar
            if not info.issym()
        ]
        links = [(info.name, info.linkname) for info in tar if info.issym()]
    assert [
        (m.name, m.kind, m.size, m.mode, m.link, content) for m, content in seen if m.kind != tarfile.SYMTYPE
    ] == expected
    assert [(m.name, m.link) for m, _ in seen if m.kind == tarfile.SYMTYPE] == links


@given(members=MEMBERS.filter(bool), cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, deadline=None)
def test_a_truncated_tar_is_refused(members: list[tuple[str, str, bytes]], cut: float) -> None:
    data = make_tar(members)
    whole = len(data.rstrip(b"\0"))
    whole += -whole % BLOCK
    stream = TarStream(Ignore())
    stream.write(data[: int(whole * cut)])
    with pytest.raises(IntegrityError, match="ends before its end-of-archive block"):
        stream.finish()


@given(byte=st.integers(0, BLOCK - 1), value=st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_damaged_header_is_refused(byte: int, value: int) -> None:
    data = bytearray(make_tar([("PG_VERSION", "file", b"17\n")]))
    data[byte] ^= value
    stream = TarStream(Ignore())
    try:
        stream.write(data)
    except IntegrityError:
        return
    # A checksum field is read up to its first blank or NUL: what lies behind it decides nothing.
    assert 148 <= byte < 156


def test_a_member_of_an_unknown_kind_is_refused() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("device")
        info.type = tarfile.CHRTYPE
        tar.addfile(info)
    with pytest.raises(IntegrityError, match="has kind b'3', which no backup holds"):
        TarStream(Ignore()).write(buffer.getvalue())


def test_a_negative_size_is_refused() -> None:
    header = bytearray(make_tar([("file", "file", b"")])[:BLOCK])
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(IntegrityError, match="header is damaged"):
        TarStream(Ignore()).write(bytes(header) + bytes(2 * BLOCK))


def test_what_follows_the_end_of_the_archive_is_ignored() -> None:
    record = Record()
    stream = TarStream(record)
    stream.write(make_tar([("a", "file", b"1")]) + make_tar([("b", "file", b"2")]))
    stream.finish()
    assert [member.name for member, _ in record.members] == ["a"]
