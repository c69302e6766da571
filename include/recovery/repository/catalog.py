"""The catalog: which backups a repository holds. It is read from the manifests alone; nothing else remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from recovery import manifest
from recovery.errors import ConfigurationError, FormatError, ObjectMissing, PreconditionError, RecoveryError
from recovery.manifest import AnyManifest, Manifest, StoredObject
from recovery.repository import layout
from recovery.repository.sealing import Sealed
from recovery.repository.store import ObjectStore, put_final

_READERS = 8


@dataclass(frozen=True)
class Backup:
    """A committed backup and the folder it lies in."""

    manifest: Manifest
    folder: str

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def items(self) -> list[StoredObject]:
        return self.manifest.objects

    def objects(self, *roles: str) -> list[Sealed]:
        """The backup's objects with their whole keys; all of them, or those of the given roles."""
        return [item.sealed(self.folder) for item in self.manifest.objects if not roles or item.role in roles]

    def summary(self) -> dict[str, Any]:
        """The backup in a few plain values: what `recovery list --json` shows and what an asset event carries."""
        found = self.manifest
        return {
            "id": found.id,
            "system": found.system,
            "kind": found.kind,
            "parent": found.parent,
            "recovery_point": found.recovery_point.isoformat(),
            "source_bytes": found.source_bytes,
            "stored_bytes": found.stored_bytes,
            "objects": len(found.objects),
            "seconds": round((found.finished_at - found.started_at).total_seconds(), 3),
            "server_version": found.server.version,
            "notes": found.notes,
        }


@dataclass(frozen=True)
class Catalog:
    """The backups of one system, oldest first, and what could not be read."""

    backups: tuple[Backup, ...]
    problems: tuple[RecoveryError, ...]

    def newest(self, *kinds: str) -> Backup | None:
        return next((backup for backup in reversed(self.backups) if backup.manifest.kind in kinds), None)

    def chain(self, backup: Backup) -> tuple[Backup, ...]:
        """What a restore of this backup needs, the full first; raises PreconditionError when a member is gone."""
        known = {each.id: each for each in self.backups if each.folder.startswith(_system(backup))}
        missing = [identifier for identifier in backup.manifest.chain if identifier not in known]
        if missing:
            raise PreconditionError(
                f"it needs {missing[0]}, which is not in the repository",
                where=backup.id,
                remedy="restore another backup; the next incremental run takes a full one",
            )
        return (*(known[identifier] for identifier in backup.manifest.chain), backup)

    def find(self, identifier: str) -> Backup:
        """The backup with this id; raises ConfigurationError that names the nearest thing to do."""
        for backup in self.backups:
            if backup.id == identifier:
                return backup
        for problem in self.problems:
            if f"/{identifier}/" in problem.where:
                raise problem
        ids = ", ".join(backup.id for backup in self.backups[-3:]) or "there is none"
        raise ConfigurationError(
            "no backup has this id", where=identifier, remedy=f"choose one of `recovery list`; the newest: {ids}"
        )


def _system(backup: Backup) -> str:
    return backup.folder.partition("/backups/")[0] + "/"


def read(store: ObjectStore, name: str) -> Catalog:
    """Read every manifest of a PostgreSQL system. A damaged one is a problem of the catalog, never left out."""
    root = layout.system_folder("postgres", name)
    folders = [
        layout.backup_folder(name, identifier, backup)
        for identifier in store.folders(root)
        for backup in store.folders(layout.backups_folder(name, identifier))
    ]
    found, problems = read_manifests(store, folders, manifest.decode)
    backups = [Backup(each, folder) for folder, each in found.items()]
    return Catalog(tuple(sorted(backups, key=lambda backup: (backup.id, backup.folder))), problems)


def read_manifests(
    store: ObjectStore, folders: Iterable[str], decode: Callable[..., AnyManifest]
) -> tuple[dict[str, AnyManifest], tuple[RecoveryError, ...]]:
    """The manifest of each folder that has one, and what could not be read."""

    def read_one(folder: str) -> AnyManifest | RecoveryError | None:
        key = folder + layout.MANIFEST
        try:
            found = decode(store.get(key), where=f"{store.description}/{key}")
        except ObjectMissing:
            return None  # Not committed: an upload under way, or the remains of one.
        except FormatError as problem:
            return problem
        if not folder.endswith(f"/{found.id}/"):
            return FormatError(
                f"the manifest in this folder names another backup, {found.id}",
                where=f"{store.description}/{key}",
                remedy="use another backup",
            )
        return found

    folders = list(folders)
    with ThreadPoolExecutor(_READERS) as readers:
        results = dict(zip(folders, readers.map(read_one, folders), strict=True))
    problems = tuple(result for result in results.values() if isinstance(result, RecoveryError))
    return {
        folder: result
        for folder, result in results.items()
        if result is not None and not isinstance(result, RecoveryError)
    }, problems


def commit(store: ObjectStore, backup: Backup) -> None:
    """Write the manifest, last and only if there is none: from here on the backup exists."""
    put_final(store, backup.folder + layout.MANIFEST, backup.manifest.encode())
