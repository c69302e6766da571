"""The plan of a restore: pure data, made from the catalog alone and printed before anything is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from recovery.errors import ConfigurationError, FormatError, PreconditionError
from recovery.manifest import Manifest
from recovery.repository.catalog import Backup, Catalog
from recovery.repository.layout import ID_PATTERN

if TYPE_CHECKING:
    from recovery.postgres.moment import Route

# Until this installation has measured its own: a restore of a sealed base backup on two cores and a local store.
ASSUMED_BYTES_PER_SECOND = 100 << 20
# What an incremental that the server compressed measures unpacked is not recorded; table data shrinks to about a third.
_EXPANSION = 4

PHYSICAL = ("full", "incremental")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a restore will fetch and where the result will stand. `blocked_by` lists what prevents it."""

    system: str
    backup: Backup
    chain: tuple[Backup, ...]
    """What is fetched: the backup, and before it what it builds on."""
    target: str
    recovery_point: datetime
    moment: str
    """In words, where WAL leads on from the backup; otherwise empty, and the backup's own end is the moment."""
    wal_segments: int
    wal_bytes: int
    server_version: str
    objects: int
    fetch_bytes: int
    restored_bytes: int
    disk_bytes: int
    """At the peak: members of a chain lie beside the result until they are combined."""
    predicted_seconds: float
    predicted_from: str
    """Where the rate comes from: measured by drills, or assumed."""
    tablespaces: dict[str, str]
    notes: tuple[str, ...]
    blocked_by: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The plan for --json."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "backup": self.backup.id,
            "chain": [member.id for member in self.chain],
            "recovery_point": self.recovery_point.isoformat(),
        }


def choose(catalog: Catalog, to: str, *, kinds: tuple[str, ...] = PHYSICAL) -> Backup:
    """The backup that `to` names: an id, or `latest` of the given kinds.

    Raises ConfigurationError for an unknown id or a form that is not known, PreconditionError when there is none.
    """
    if to == "latest":
        newest = catalog.newest(*kinds)
        newer = _damaged_after(catalog, newest, kinds)
        if newer is not None:
            raise newer
        if newest is None:
            raise PreconditionError(
                f"there is no {kinds[0]} backup yet",
                remedy="take one: recovery backup postgres NAME --type full",
            )
        return newest
    backup = catalog.find(to)
    if backup.manifest.kind not in kinds:
        raise ConfigurationError(
            f"{to} is a {backup.manifest.kind} backup, and this restore needs a {' or '.join(kinds)} one",
            remedy="restore a dump with --into, a full or an incremental backup with --pgdata",
        )
    return backup


def _damaged_after(catalog: Catalog, newest: Backup | None, kinds: tuple[str, ...]) -> FormatError | None:
    """A damaged manifest newer than the newest good backup: taking the older one silently would lose its data."""
    for problem in catalog.problems:
        match = ID_PATTERN.search(problem.where)
        if match and match.group(2) in kinds and (newest is None or match.group() > newest.id):
            remedy = f"mend it, or name the newest good backup: --to {newest.id}" if newest else problem.remedy
            return FormatError(problem.what, where=problem.where, remedy=remedy)
    return None


def make(
    system: str,
    chain: Sequence[Backup],
    *,
    target: str,
    route: Route | None = None,
    bytes_per_second: float | None = None,
    database: str | None = None,
    tablespaces: dict[str, str] | None = None,
    blocked_by: tuple[str, ...] = (),
) -> Plan:
    """Plan the restore of a chain's last backup (Catalog.chain); for a dump, of one database or all of them.

    `bytes_per_second` is what drills have measured; without it a rate is assumed.
    """
    backup, found = chain[-1], chain[-1].manifest
    items = [
        item
        for member in chain
        for item in member.manifest.objects
        if database is None or item.database in (database, None)
    ]
    if database is not None and not any(item.database == database for item in items):
        known = ", ".join(sorted(item.database for item in found.objects if item.database))
        raise ConfigurationError(
            f"the dump holds no database {database!r}", where=backup.id, remedy=f"choose one of: {known}"
        )
    databases = sum(entry.bytes for entry in found.server.databases if database in (None, entry.name))
    restored = databases if found.kind == "dump" else found.restored_bytes
    segments = route.segments() if route is not None else []
    replayed = len(segments) * found.server.wal_segment_bytes
    handled = replayed + sum(member.manifest.source_bytes for member in chain) + (restored if len(chain) > 1 else 0)
    return Plan(
        system=system,
        backup=backup,
        chain=tuple(chain),
        target=target,
        recovery_point=found.recovery_point,
        moment=str(route) if route is not None and segments else "",
        wal_segments=len(segments),
        wal_bytes=route.wal_bytes() if route is not None else 0,
        server_version=found.server.version,
        objects=len(items),
        fetch_bytes=sum(item.stored_bytes for item in items),
        restored_bytes=restored,
        disk_bytes=restored
        if found.kind == "dump"
        else sum(room([member.manifest for member in chain]).values())
        + (route.replay_bytes() if route is not None else 0),
        predicted_seconds=round(max(1.0, handled / (bytes_per_second or ASSUMED_BYTES_PER_SECOND)), 1),
        predicted_from="drills" if bytes_per_second else "an assumed rate",
        tablespaces=tablespaces or {},
        notes=(route.note,) if route is not None and route.note else (),
        blocked_by=blocked_by,
    )


def room(chain: Sequence[Manifest]) -> dict[int | None, int]:
    """The disk that a physical restore takes at its peak, by the tablespace's oid; None is the data directory.

    The members of a chain are unpacked beside the result; a tablespace that was dropped since, in the data directory.
    """
    needed = _whole(chain[-1])
    if len(chain) > 1:
        for member in chain:
            staged = _whole(member) if member.kind == "full" else _changes(member)
            for tablespace, size in staged.items():
                needed[tablespace if tablespace in needed else None] += size
    return needed


def _whole(found: Manifest) -> dict[int | None, int]:
    spaces: dict[int | None, int] = {space.oid: space.bytes for space in found.server.tablespaces}
    return {None: found.restored_bytes - sum(spaces.values())} | spaces


def _changes(found: Manifest) -> dict[int | None, int]:
    sizes: Counter[int | None] = Counter()
    for item in found.objects:
        if item.role == "volume":
            expanded = _EXPANSION if item.compression == "zstd-by-source" else 1
            sizes[item.tablespace] += expanded * item.sealed_bytes
    return sizes
