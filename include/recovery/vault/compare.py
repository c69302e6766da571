"""Is a restored Vault the one that was backed up? What its manifest says, against what the node says now."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from recovery.manifest import TransitKey, VaultManifest, VaultServer
from recovery.vault import inspect
from recovery.vault.snapshot import SnapshotVerifier
from recovery.vault.stream import snapshot_of

if TYPE_CHECKING:
    import hvac

Found = dict[str, list[str]]
"""Problems by the name of the check; an empty list is a check that passed."""


def compare(client: hvac.Client, expected: VaultManifest) -> tuple[VaultServer, Found]:
    """The restored server, and what differs. The client must be allowed what a backup is allowed.

    Key counts are read from a snapshot of the restored node: no mount may hold fewer keys than were backed up.
    """
    server = inspect.describe(client)
    before = expected.server
    found: Found = {
        "cluster": _cluster(server, before),
        "mounts": _missing(
            {f"{mount.path} ({mount.type})" for mount in before.mounts},
            {f"{mount.path} ({mount.type})" for mount in server.mounts},
            "the mount",
        ),
        "policies": _missing(set(before.policies), set(server.policies), "the policy"),
        "transit keys": _transit(server.transit, before.transit),
    }
    if expected.snapshot is not None:
        found["key counts"] = _counts(client, expected)
    return server, found


def _cluster(server: VaultServer, before: VaultServer) -> list[str]:
    if server.cluster_id == before.cluster_id:
        return []
    return [f"the cluster id is {server.cluster_id}, and {before.cluster_id} was backed up"]


def _missing(expected: set[str], present: set[str], what: str) -> list[str]:
    return [f"{what} {name} is missing in the restored Vault" for name in sorted(expected - present)]


def _transit(present: dict[str, TransitKey], expected: dict[str, TransitKey]) -> list[str]:
    problems = _missing(set(expected), set(present), "the transit key")
    for name in sorted(expected.keys() & present.keys()):
        wanted, found = expected[name].latest_version, present[name].latest_version
        if found < wanted:
            problems.append(f"the transit key {name} ends at version {found}, and had {wanted}")
    return problems


def _counts(client: hvac.Client, expected: VaultManifest) -> list[str]:
    assert expected.snapshot is not None
    with contextlib.closing(SnapshotVerifier()) as verifier:
        for piece in snapshot_of(client):
            verifier.write(piece)
        counted = verifier.finish().mount_keys
    paths = {mount.uuid: mount.path for mount in expected.server.mounts}
    return [
        f"{paths.get(uuid, uuid)} holds {counted.get(uuid, 0)} keys, and {number} were backed up"
        for uuid, number in sorted(expected.snapshot.mount_key_counts.items())
        if counted.get(uuid, 0) < number
    ]
