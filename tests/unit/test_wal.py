"""Positions, histories, pieces, and what an index of stored WAL says of gaps and reach."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pyrage
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery.errors import IntegrityError
from recovery.postgres.wal.archive import Archive, Index, Piece, chain, covered
from recovery.postgres.wal.audit import gaps
from recovery.postgres.wal.history import Ancestor, History, parse_history
from recovery.postgres.wal.positions import Segment, format_lsn, parse_lsn
from tests.memory import MemoryStore

SIZE = 16 << 20
IDENTITY = pyrage.x25519.Identity.generate()
SMALL = 1 << 20


@given(st.integers(0, 2**64 - 1))
def test_an_lsn_is_read_back(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


@pytest.mark.parametrize("text", ["", "0", "0/", "/0", "123456789/0", "0/G", "0/0 "])
def test_what_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        parse_lsn(text)


@given(st.integers(1, 2**32 - 1), st.integers(0, 2**40), st.sampled_from([1 << 20, SIZE, 1 << 30]))
def test_a_segments_name_is_read_back_and_sorts(timeline: int, lsn: int, size: int) -> None:
    segment = Segment.at(timeline, lsn, size)
    assert Segment.parse(segment.name(size), size) == segment
    assert segment.name(size) < segment.next().name(size)
    assert segment.start(size) <= lsn < segment.next().start(size)


def test_names_are_postgresqls() -> None:
    assert Segment.at(1, parse_lsn("1/2000028"), SIZE).name(SIZE) == "000000010000000100000002"


HISTORY = b"1\t0/3000158\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-11-24 10:00:00+00\n"


def test_a_history_says_who_was_where() -> None:
    history = parse_history(3, HISTORY)
    assert history.ancestors == (Ancestor(1, parse_lsn("0/3000158")), Ancestor(2, parse_lsn("0/5000000")))
    assert [history.timeline_at(parse_lsn(lsn)) for lsn in ("0/3000157", "0/3000158", "0/5000000")] == [1, 2, 3]
    assert (history.after(1), history.after(2), history.end_of(3)) == (2, 3, None)
    assert history.begin_of(2) == parse_lsn("0/3000158") and not history.passed(4)


def test_a_damaged_history_is_named() -> None:
    with pytest.raises(IntegrityError, match="the history of timeline 2 has a line that is none"):
        parse_history(2, b"1 nowhere\n")


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)).map(lambda pair: Piece(pair[0], sum(pair)))))
def test_a_chain_of_pieces_covers_what_they_cover_together(pieces: list[Piece]) -> None:
    row = chain(pieces)
    reached = 0
    for piece in row:
        assert piece.begin <= reached < piece.end
        reached = piece.end
    held = {byte for piece in pieces for byte in range(piece.begin, piece.end)}
    assert reached == covered(pieces) == next(byte for byte in range(100) if byte not in held)


def index(*segments: Segment, pieces: dict[Segment, list[Piece]] | None = None) -> Index:
    found = Index(SIZE, dict.fromkeys(segments, 1))
    found.pieces = {segment: dict.fromkeys(parts, 1) for segment, parts in (pieces or {}).items()}
    found.written = dict.fromkeys([*found.segments, *found.pieces], datetime(2026, 11, 24, tzinfo=UTC))
    return found


@given(st.sets(st.integers(0, 30)), st.integers(0, 30))
def test_reach_ends_at_the_first_hole(numbers: set[int], first: int) -> None:
    reach = index(*(Segment(1, number) for number in numbers)).reach(History(1), first * SIZE)
    assert reach == next(number for number in range(first, 40) if number not in numbers) * SIZE


def test_reach_follows_a_history_over_its_switch_and_into_the_open_segment() -> None:
    two = History(2, (Ancestor(1, 2 * SIZE + 100),))
    found = index(
        *(Segment(1, number) for number in range(4)),
        Segment(2, 2),
        pieces={Segment(2, 3): [Piece(0, 500), Piece(500, 700)]},
    )
    assert found.reach(two, 0) == 3 * SIZE + 700
    assert found.reach(History(1), 0) == 4 * SIZE


def test_every_gap_is_named_and_so_is_a_segment_that_was_left_open() -> None:
    found = index(Segment(1, 1), Segment(1, 4), pieces={Segment(1, 3): [Piece(0, 10)]})
    assert [finding.what for finding in gaps(found)] == [
        "gap: 1 segments are missing, 000000010000000000000002 to 000000010000000000000002",
        "gap: 000000010000000000000003 was never completed, its first 10 bytes are stored",
    ]
    found = index(Segment(2, 1))
    assert "00000002.history is missing" in gaps(found)[0].what


@pytest.fixture
def archive() -> Archive:
    return Archive(MemoryStore(), "app038", "7", SMALL, [IDENTITY.to_public()])


def whole(segment: Segment, *, identifier: int = 7) -> bytes:
    """A segment that begins as PostgreSQL's do, and is noise otherwise."""
    header = struct.pack("=HHIQIIQ", 0xD116, 2, segment.timeline, segment.start(SMALL), 0, 0, identifier)
    return header + bytes(range(256)) * (SMALL // 256 - 1) + bytes(256 - len(header))


@pytest.mark.parametrize("data", [whole(Segment(1, 5), identifier=8), whole(Segment(1, 6))])
def test_a_segment_of_another_cluster_or_place_is_never_given_out(archive: Archive, data: bytes) -> None:
    archive.put_segment(Segment(1, 5), data)
    with pytest.raises(IntegrityError, match=r"this is the WAL of cluster . at 0/.00000 -> it was copied to a place"):
        archive.read_segment(Segment(1, 5), identities=[IDENTITY])
    with pytest.raises(IntegrityError, match="this is the WAL of cluster"):
        archive.check(Segment(1, 5), archive.index(), opens=True, identities=[IDENTITY])


def test_a_segment_is_put_once_and_the_same_bytes_again_are_success(archive: Archive) -> None:
    segment, data = Segment(1, 5), whole(Segment(1, 5))
    archive.put_segment(segment, data)
    archive.put_segment(segment, data)
    assert archive.read_segment(segment, identities=[IDENTITY]) == data
    with pytest.raises(IntegrityError, match=r"the repository holds other WAL under this name -> nothing was overwr"):
        archive.put_segment(segment, bytes(SMALL))
    assert archive.read_segment(segment, identities=[IDENTITY]) == data


def test_pieces_give_the_open_segment_and_what_they_do_not_hold_is_zero(archive: Archive) -> None:
    segment = Segment(1, 5)
    archive.put_piece(segment, Piece(0, 3), b"abc")
    archive.put_piece(segment, Piece(3, 5), b"de")
    found = archive.index()
    assert found.open_bytes(segment) == 5 and found.end_of(1) == 5 * SMALL + 5
    assert archive.read_file(segment.name(SMALL), identities=[IDENTITY]) == b"abcde" + bytes(SMALL - 5)
    archive.prove_piece(segment, Piece(0, 3), b"abc")
    with pytest.raises(IntegrityError, match="other WAL under this name"):
        archive.prove_piece(segment, Piece(3, 5), b"xx")
    archive.delete_pieces(segment, found.pieces[segment])
    assert archive.read_file(segment.name(SMALL), identities=[IDENTITY]) is None


def test_a_history_is_kept_once_and_another_of_the_same_timeline_is_refused(archive: Archive) -> None:
    archive.put_history(3, HISTORY)
    archive.put_history(3, HISTORY)
    assert archive.index().histories[3] == parse_history(3, HISTORY)
    assert archive.read_file("00000003.history", identities=()) == HISTORY
    with pytest.raises(IntegrityError, match="another history of this timeline"):
        archive.put_history(3, b"1\t0/1000000\tx\n")


def test_what_is_no_wal_is_reported(archive: Archive) -> None:
    archive.store.put(archive.folder + "00000001/readme.txt", b"x")
    archive.store.put(archive.folder + "00000002/000000010000000000000001.zst.age", b"x")
    assert [finding.what.partition(": ")[0] for finding in gaps(archive.index())] == ["not WAL of this cluster"] * 2
