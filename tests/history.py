"""A repository that has lived for a while: backups, WAL and remains of any age, put into a store by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from recovery.manifest import Wal
from recovery.postgres.wal.positions import Segment, format_lsn
from recovery.repository import catalog, layout
from recovery.repository.catalog import Backup
from recovery.repository.store import ObjectStore
from tests.memory import MemoryStore
from tests.unit.test_manifest import example, item

NAME, CLUSTER = "app038", "7301"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SEGMENT = 16 << 20


def days_ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def backup(
    kind: str, moment: datetime, *, parent: Backup | None = None, cluster: str = CLUSTER, wal: Wal | None = None
) -> Backup:
    """A backup of one volume that began at a moment, in no store yet."""
    identifier = layout.backup_id(moment, kind)
    made = example(
        id=identifier,
        kind=kind,
        parent=parent.id if parent else None,
        chain=[*parent.manifest.chain, parent.id] if parent else [],
        started_at=moment,
        finished_at=moment + timedelta(minutes=1),
        server=example().server.model_copy(update={"system_identifier": cluster}),
        wal=wal,
        objects=[item(stored_bytes=6)],
    )
    return Backup(made, layout.backup_folder(NAME, cluster, identifier))


class History:
    """Objects are put at the moment that a test names, on the store's own clock."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.store.clock = NOW

    def backup(
        self,
        kind: str,
        days: float,
        *,
        parent: Backup | None = None,
        cluster: str = CLUSTER,
        timeline: int = 1,
        segment: int = 1,
        included: bool = True,
        skew: timedelta = timedelta(0),
    ) -> Backup:
        """A backup that began so many days ago and took a minute; `skew`: how much its maker's clock was wrong."""
        began = days_ago(days)
        start, end = format_lsn(segment * SEGMENT + 40), format_lsn(segment * SEGMENT + 400)
        wal = Wal(start_lsn=start, start_timeline=timeline, end_lsn=end, end_timeline=timeline, included=included)
        made = backup(kind, began + skew, parent=parent, cluster=cluster, wal=None if kind == "dump" else wal)
        self.put(made.folder + layout.volume(0), began)
        self.put(made.folder + layout.MANIFEST, began + timedelta(minutes=1), made.manifest.encode())
        return made

    def wal(self, numbers: range, days: float, *, cluster: str = CLUSTER, timeline: int = 1) -> list[str]:
        keys = [self.wal_key(number, cluster=cluster, timeline=timeline) for number in numbers]
        for key in keys:
            self.put(key, days_ago(days))
        return keys

    def history(
        self, timeline: int, days: float, *, cluster: str = CLUSTER, left: Mapping[int, int] | None = None
    ) -> str:
        """`left`: the segment in which each earlier timeline was left."""
        key = f"{layout.wal_folder(NAME, cluster)}{timeline:08X}.history"
        lines = [f"{number}\t{format_lsn(segment * SEGMENT)}\tno reason\n" for number, segment in (left or {}).items()]
        self.put(key, days_ago(days), "".join(lines).encode())
        return key

    def wal_key(self, number: int, *, cluster: str = CLUSTER, timeline: int = 1, rest: str = ".zst.age") -> str:
        name = Segment(timeline, number).name(SEGMENT)
        return f"{layout.wal_folder(NAME, cluster)}{timeline:08X}/{name}{rest}"

    def prove(self, backup: Backup, verdict: str = "ok") -> None:
        document = {"system": NAME, "backup": backup.id, "verdict": verdict}
        key = layout.evidence(NOW, f"20261123T050000Z-{NAME}-drill-{len(self.store.objects):06x}")
        self.put(key, NOW, json.dumps(document).encode())

    def put(self, key: str, moment: datetime, data: bytes = b"sealed") -> None:
        self.store.clock = moment
        self.store.put(key, data)
        self.store.clock = NOW

    def catalog(self) -> catalog.Catalog:
        return catalog.read(self.store, NAME)

    @property
    def keys(self) -> set[str]:
        """Every object of the system."""
        return {info.key for info in self.store.scan(layout.system_folder("postgres", NAME))}


def restorable(store: ObjectStore) -> set[str]:
    """The folders of the backups that have every object of their own and of their chain."""
    found = catalog.read(store, NAME)
    present = {info.key for info in store.scan("")}
    return {
        backup.folder
        for backup in found.backups
        if all(sealed.key in present for member in found.chain(backup) for sealed in member.objects())
    }
