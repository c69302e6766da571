"""Keeping the canary of a configured system, and noticing that its key was rotated since the newest snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from recovery.errors import ConfigurationError
from recovery.installation import Installation
from recovery.vault import canary, catalog
from recovery.vault.session import log_in


@dataclass(frozen=True)
class Kept:
    """What a run did: the version that was written, and why a new snapshot is due (empty: it is not)."""

    vault: str
    key: str
    version: int
    retired: int
    due: str


def refresh(installation: Installation, name: str) -> Kept:
    """Write the canary of a PostgreSQL system anew; raises ConfigurationError where it has none."""
    keys = installation.configuration.postgres_system(name).keys
    if keys is None or keys.canary is None:
        raise ConfigurationError(
            "this system has no canary", where=f"postgres.{name}.keys", remedy="configure keys.vault and keys.canary"
        )
    settings = installation.configuration.vault_system(keys.vault)
    with log_in(installation.connection(settings.connection)) as session:
        written = canary.refresh(
            session.client,
            installation.connection(keys.canary.connection),
            keys.canary.key,
            database=keys.canary.database,
        )
    due = _due(installation, keys.vault, written)
    return Kept(keys.vault, written.key, written.version, written.retired, due)


def _due(installation: Installation, vault: str, written: canary.Refreshed) -> str:
    snapshots = catalog.read(installation.vault_store(vault), vault).snapshots
    if not snapshots:
        return "there is none yet"
    newest = snapshots[-1].manifest
    key = newest.server.transit.get(written.key)
    if key is None:
        return f"{newest.id} does not have the key {written.key}"
    if key.latest_version < written.version:
        return f"{written.key} is at version {written.version}, and {newest.id} ends at {key.latest_version}"
    return ""
