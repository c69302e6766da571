"""The planner over generated histories: no way uses what is not there, and what can be reached exactly is not refused."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from recovery.errors import PreconditionError
from recovery.manifest import Wal
from recovery.postgres import moment
from recovery.postgres.wal.positions import Segment, format_lsn, parse_lsn
from recovery.repository import catalog, layout
from recovery.repository.catalog import Backup
from tests.history import CLUSTER, NAME, backup
from tests.memory import MemoryStore

SIZE = 16 << 20
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
LAST = 20


def when(number: int) -> datetime:
    """One segment an hour."""
    return BEGIN + timedelta(hours=number)


@dataclass
class World:
    store: MemoryStore
    stored: set[Segment]
    backups: list[Backup]
    switch: int | None
    """The number of the segment in which timeline 2 begins."""

    def present(self) -> list[Backup]:
        return list(catalog.read(self.store, NAME).backups)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    store = MemoryStore()
    switch = draw(st.none() | st.integers(3, LAST - 2))
    stored: set[Segment] = set()
    for number in range(1, LAST):
        if draw(st.integers(0, 9)) > 0:
            timeline = 2 if switch is not None and number >= switch else 1
            stored.add(Segment(timeline, number))
    for segment in sorted(stored, key=lambda segment: segment.number):
        store.clock = when(segment.number + 1)
        folder = f"{layout.wal_folder(NAME, CLUSTER)}{segment.timeline:08X}/"
        store.put(f"{folder}{segment.name(SIZE)}.zst.age", b"x", metadata={"sealed-bytes": str(SIZE)})
    if switch is not None:
        text = f"1\t{format_lsn(switch * SIZE + 500)}\tno recovery target specified\n"
        store.put(f"{layout.wal_folder(NAME, CLUSTER)}00000002.history", text.encode())
    backups: list[Backup] = []
    for number in sorted(draw(st.sets(st.integers(1, LAST - 1), min_size=1, max_size=5))):
        timeline = 2 if switch is not None and number > switch else 1
        places = {"start_lsn": format_lsn(number * SIZE + 40), "end_lsn": format_lsn(number * SIZE + 300)}
        wal = Wal(start_timeline=timeline, end_timeline=timeline, included=True, **places)
        parent = backups[-1] if backups and draw(st.booleans()) else None
        backups.append(backup("incremental" if parent else "full", when(number), parent=parent, wal=wal))
        catalog.commit(store, backups[-1])
    for each in backups[:-1]:
        if draw(st.integers(0, 5)) == 0:
            store.delete(each.folder + layout.MANIFEST)
    store.clock = when(LAST + 1)
    return World(store, stored, backups, switch)


TARGETS = st.one_of(
    st.just("latest"),
    st.integers(0, (LAST + 1) * SIZE).map(format_lsn),
    st.integers(0, (LAST + 1) * 60).map(lambda minutes: (BEGIN + timedelta(minutes=minutes)).isoformat()),
)


@settings(max_examples=300, deadline=None)
@given(worlds(), TARGETS)
def test_no_way_uses_what_is_not_there(world: World, target: str) -> None:
    wanted = moment.parse(target)
    try:
        route = moment.find(world.store, catalog.read(world.store, NAME), NAME, wanted)
    except PreconditionError:
        assert not reachable(world, wanted)
        return
    present = {each.id for each in world.present()}
    assert {each.id for each in route.chain} <= present
    wal = route.backup.manifest.wal
    assert wal is not None
    end = parse_lsn(wal.end_lsn)
    # What lies before its end the backup carries.
    assert {segment for segment in route.segments() if segment.number > (end - 1) // SIZE} <= world.stored
    if wanted.lsn is not None:
        assert end <= wanted.lsn <= route.end_lsn
    if wanted.time is not None:
        assert route.end is not None and route.backup.manifest.finished_at <= wanted.time <= route.end


def reachable(world: World, wanted: moment.Moment) -> bool:
    """Whether an LSN can be reached from the newest backup before it; told without this project's planner."""
    if wanted.lsn is None:
        return False
    before = [each for each in world.present() if _end(each) <= wanted.lsn]
    if not before:
        return False
    newest = before[-1]
    known = {each.id for each in world.present()}
    if not set(newest.manifest.chain) <= known:
        return False
    numbers = {segment.number for segment in world.stored}
    return all(number in numbers for number in range(_end(newest) // SIZE, (wanted.lsn - 1) // SIZE + 1))


def _end(each: Backup) -> int:
    assert each.manifest.wal is not None
    return parse_lsn(each.manifest.wal.end_lsn)
