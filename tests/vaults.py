"""Manifests of Vault backups, made up for tests of what only reads them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from recovery.manifest import FORMAT_VERSION, Maker, RaftSnapshot, Seal, TransitKey, VaultManifest, VaultServer
from recovery.repository import layout
from recovery.repository.store import ObjectStore
from recovery.vault.catalog import Snapshot

BEGAN = datetime(2026, 11, 23, 3, tzinfo=UTC)


def snapshot(moment: datetime, *, kind: str = "full", keys: dict[str, tuple[int, int]] | None = None) -> Snapshot:
    """A backup of this moment whose transit keys have (minimum decryption version, latest version)."""
    identifier = layout.backup_id(moment, kind)
    transit = {
        name: TransitKey(latest_version=latest, min_decryption_version=least)
        for name, (least, latest) in (keys or {}).items()
    }
    return Snapshot(
        manifest(id=identifier, kind=kind, moment=moment, transit=transit), layout.snapshot_folder("app038", identifier)
    )


def manifest(
    *, moment: datetime = BEGAN, transit: dict[str, TransitKey] | None = None, **changes: Any
) -> VaultManifest:
    server = VaultServer(
        version="2.7.2",
        cluster_id="d64b6f02",
        cluster_name="vault-cluster",
        address="http://127.0.0.1:8200",
        seal=Seal(type="shamir", shares=3, threshold=2),
        mounts=[],
        policies=["default"],
        transit=transit or {},
    )
    fields: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "id": layout.backup_id(moment, changes.get("kind", "full")),
        "kind": "full",
        "product": "openbao",
        "system": "app038",
        "started_at": moment,
        "finished_at": moment,
        "server": server,
        "recipients": ["age1example"],
        "maker": Maker(program="recovery", version="0.1.0", host="worker"),
        "timings_seconds": {},
        "objects": [],
    }
    if changes.get("kind", "full") != "policies":
        fields["snapshot"] = RaftSnapshot(
            taken_at=moment, index=42, term=3, state_bytes=1, state_sha256="00" * 32, key_counts={}, mount_key_counts={}
        )
    return VaultManifest(**(fields | changes))


def put(store: ObjectStore, made: Snapshot) -> Snapshot:
    """Into a store, with one object for each that its kind has."""
    for role, key in {"snapshot": layout.SNAPSHOT, "export": layout.EXPORT}.items():
        if made.manifest.kind in ("full", {"snapshot": "snapshot", "export": "policies"}[role]):
            store.put(made.folder + key, b"sealed")
    store.put(made.folder + layout.MANIFEST, made.manifest.encode())
    return made
