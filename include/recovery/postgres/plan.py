"""The plan of a restore: pure data, made from the catalog alone and printed before anything is touched."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from recovery.errors import ConfigurationError, FormatError, PreconditionError
from recovery.repository.catalog import Backup, Catalog
from recovery.repository.layout import ID_PATTERN

# Until this installation has measured its own: a restore of a sealed base backup on two cores and a local store.
ASSUMED_BYTES_PER_SECOND = 100 << 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a restore will fetch and where the result will stand. `blocked_by` lists what prevents it."""

    system: str
    backup: Backup
    target: str
    recovery_point: datetime
    server_version: str
    objects: int
    fetch_bytes: int
    restored_bytes: int
    predicted_seconds: float
    tablespaces: dict[str, str]
    blocked_by: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The plan for --json."""
        fields = {key: value for key, value in asdict(self).items() if key != "backup"}
        return fields | {"backup": self.backup.id, "recovery_point": self.recovery_point.isoformat()}


def choose(catalog: Catalog, to: str, *, kinds: tuple[str, ...] = ("full",)) -> Backup:
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
                f"there is no {' or '.join(kinds)} backup yet",
                remedy="take one: recovery backup postgres NAME --type full",
            )
        return newest
    backup = catalog.find(to)
    if backup.manifest.kind not in kinds:
        raise ConfigurationError(
            f"{to} is a {backup.manifest.kind} backup, and this restore needs a {' or '.join(kinds)} one",
            remedy="restore a dump with --into, a full backup with --pgdata",
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
    backup: Backup,
    *,
    target: str,
    database: str | None = None,
    tablespaces: dict[str, str] | None = None,
    blocked_by: tuple[str, ...] = (),
) -> Plan:
    """Plan the restore of one backup; for a dump, of one database or all of them."""
    found = backup.manifest
    items = [item for item in found.objects if database is None or item.database in (database, None)]
    if database is not None and not any(item.database == database for item in items):
        known = ", ".join(sorted(item.database for item in found.objects if item.database))
        raise ConfigurationError(
            f"the dump holds no database {database!r}", where=backup.id, remedy=f"choose one of: {known}"
        )
    fetch = sum(item.stored_bytes for item in items)
    databases = sum(entry.bytes for entry in found.server.databases if database in (None, entry.name))
    return Plan(
        system=system,
        backup=backup,
        target=target,
        recovery_point=found.recovery_point,
        server_version=found.server.version,
        objects=len(items),
        fetch_bytes=fetch,
        restored_bytes=databases if found.kind == "dump" else found.restored_bytes,
        predicted_seconds=round(max(1.0, found.source_bytes / ASSUMED_BYTES_PER_SECOND), 1),
        tablespaces=tablespaces or {},
        blocked_by=blocked_by,
    )
