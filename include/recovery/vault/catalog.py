"""The backups of a Vault that a repository holds, read from their manifests alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recovery import manifest
from recovery.errors import ConfigurationError, FormatError, RecoveryError
from recovery.manifest import Role, StoredObject, VaultManifest
from recovery.repository import layout
from recovery.repository.catalog import read_manifests
from recovery.repository.layout import ID_PATTERN
from recovery.repository.sealing import Sealed
from recovery.repository.store import ObjectStore, put_final


@dataclass(frozen=True)
class Snapshot:
    """A committed backup of a Vault and the folder it lies in: a Raft snapshot, an export of policies, or both."""

    manifest: VaultManifest
    folder: str

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def items(self) -> list[StoredObject]:
        return self.manifest.objects

    def object(self, role: Role) -> Sealed:
        """The object of this role; raises ConfigurationError when the backup has none."""
        for item in self.manifest.objects:
            if item.role == role:
                return item.sealed(self.folder)
        what = "snapshot" if role == "snapshot" else "export of policies"
        raise ConfigurationError(f"it holds no {what}", where=self.id, remedy="choose another one of `recovery list`")

    def summary(self) -> dict[str, Any]:
        """The backup in a few plain values: what `recovery list --json` shows and what an asset event carries."""
        found = self.manifest
        return {
            "id": found.id,
            "system": found.system,
            "kind": found.kind,
            "product": found.product,
            "recovery_point": found.recovery_point.isoformat(),
            "source_bytes": found.source_bytes,
            "stored_bytes": found.stored_bytes,
            "objects": len(found.objects),
            "seconds": round((found.finished_at - found.started_at).total_seconds(), 3),
            "server_version": found.server.version,
            "raft_index": found.snapshot.index if found.snapshot else None,
            "notes": found.notes,
        }


@dataclass(frozen=True)
class VaultCatalog:
    """The backups of one Vault, oldest first, and what could not be read."""

    backups: tuple[Snapshot, ...]
    problems: tuple[RecoveryError, ...]

    @property
    def snapshots(self) -> list[Snapshot]:
        """Those that hold a Raft snapshot."""
        return [backup for backup in self.backups if backup.manifest.snapshot is not None]

    def newest_export(self) -> Snapshot:
        """The newest export of policies; raises ConfigurationError where there is none, as choose() does."""
        exports = [backup for backup in self.backups if backup.manifest.kind != "snapshot"]
        self._require_read(exports, "snapshot")
        if not exports:
            raise ConfigurationError(
                "there is no export of this Vault yet", remedy="take one: recovery backup vault NAME --type policies"
            )
        return exports[-1]

    def find(self, identifier: str) -> Snapshot:
        """The backup with this id; raises ConfigurationError that names the nearest thing to do."""
        for backup in self.backups:
            if backup.id == identifier:
                return backup
        for problem in self.problems:
            if f"/{identifier}/" in problem.where:
                raise problem
        ids = ", ".join(backup.id for backup in self.backups[-3:]) or "there is none"
        raise ConfigurationError(
            "no backup of this Vault has this id",
            where=identifier,
            remedy=f"choose one of `recovery list`; the newest: {ids}",
        )

    def choose(self, identifier: str | None) -> Snapshot:
        """The backup with this id, or the newest snapshot; raises ConfigurationError, and FormatError where a newer one
        cannot be read.
        """
        if identifier not in (None, "latest"):
            return self.find(str(identifier))
        self._require_read(self.snapshots, "policies")
        if not self.snapshots:
            raise ConfigurationError(
                "there is no snapshot of this Vault yet", remedy="take one: recovery backup vault NAME"
            )
        return self.snapshots[-1]

    def _require_read(self, found: list[Snapshot], other: str) -> None:
        """A damaged manifest that is newer than all of these: to take an older one silently would lose what it holds.

        One of the kind `other` does not matter.
        """
        for problem in self.problems:
            match = ID_PATTERN.search(problem.where)
            if match and match.group(2) != other and (not found or match.group() > found[-1].id):
                remedy = f"mend it, or name the newest good one: {found[-1].id}" if found else problem.remedy
                raise FormatError(problem.what, where=problem.where, remedy=remedy)


def read(store: ObjectStore, name: str) -> VaultCatalog:
    """Read every manifest of a Vault. A damaged one is a problem of the catalog, never left out."""
    folders = [layout.snapshot_folder(name, backup) for backup in store.folders(layout.snapshots_folder(name))]
    found, problems = read_manifests(store, folders, manifest.decode_vault)
    backups = [Snapshot(each, folder) for folder, each in found.items()]
    return VaultCatalog(tuple(sorted(backups, key=lambda backup: backup.id)), problems)


def commit(store: ObjectStore, backup: Snapshot) -> None:
    """Write the manifest, last and only if there is none: from here on the backup exists."""
    put_final(store, backup.folder + layout.MANIFEST, backup.manifest.encode())
