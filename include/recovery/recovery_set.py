"""Which snapshot of a Vault belongs to a recovery point of a database. The rule is about keys, not about clocks.

A snapshot fits when, for every transit key that rows carry, it decrypts every version that they carry. Best is the
first fitting one taken at or after the point: it has every key version that the rows can carry. An older one may lack
a version that was made in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from recovery.manifest import KeyVersions, TransitKey
from recovery.vault.catalog import Snapshot


@dataclass(frozen=True)
class Pairing:
    """The snapshot for a recovery point; None where none fits, and then `risk` says why."""

    snapshot: Snapshot | None
    apart_seconds: float
    """From the point to the snapshot; negative where the snapshot is the older one."""
    risk: str = ""

    def document(self) -> dict[str, Any]:
        return {
            "snapshot": self.snapshot.id if self.snapshot else None,
            "apart_seconds": round(self.apart_seconds, 3) if self.snapshot else None,
            "risk": self.risk,
        }


def choose(point: datetime, carried: Mapping[str, KeyVersions], snapshots: Sequence[Snapshot]) -> Pairing:
    """The snapshot (of `snapshots`, oldest first) for a recovery point whose rows carry these versions."""
    fitting = [snapshot for snapshot in snapshots if misfit(snapshot.manifest.server.transit, carried) is None]
    after = next((snapshot for snapshot in fitting if snapshot.manifest.recovery_point >= point), None)
    found = after or (fitting[-1] if fitting else None)
    if found is None:
        return Pairing(None, 0, _why_none(point, carried, snapshots))
    apart = (found.manifest.recovery_point - point).total_seconds()
    if after is not None:
        return Pairing(found, apart)
    return Pairing(
        found, apart, "it is older than the point: rows that carry a key version made since could not be decrypted"
    )


def misfit(keys: Mapping[str, TransitKey], carried: Mapping[str, KeyVersions]) -> str | None:
    """Why a Vault with these keys does not decrypt rows that carry these versions; None where it does."""
    for name, versions in carried.items():
        key = keys.get(name)
        if key is None:
            return f"the Vault's half is wrong: it has no key {name}, and rows are encrypted with it"
        if versions.newest > key.latest_version:
            return (
                f"the Vault's half is too old: rows carry version {versions.newest} of {name}, and it ends at "
                f"{key.latest_version}; take a snapshot now, or restore one from after the rotation"
            )
        least = max(key.min_decryption_version, key.min_available_version)
        if versions.oldest < least:
            return (
                f"the database's half is too old: rows carry version {versions.oldest} of {name}, and it decrypts from "
                f"{least} on; restore a later recovery point, or an older snapshot"
            )
    return None


def _why_none(point: datetime, carried: Mapping[str, KeyVersions], snapshots: Sequence[Snapshot]) -> str:
    if not snapshots:
        return "there is no snapshot of the Vault that holds its keys"
    nearest = min(snapshots, key=lambda each: abs(each.manifest.recovery_point - point))
    return f"no snapshot fits; {nearest.id}: {misfit(nearest.manifest.server.transit, carried)}"
