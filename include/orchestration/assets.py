"""The assets that DAGs announce: a backup that passed its check, a drill that proved one.

They have names and no URIs: a URI makes Airflow load every provider at each parse to look for its handler.
"""

from __future__ import annotations

from airflow.sdk import Asset

POSTGRES_BACKUP = Asset(name="postgres_backup")
"""Its events carry `system`, `id`, `kind`, `parent`, `recovery_point`, `source_bytes`, `stored_bytes`."""

POSTGRES_DRILL = Asset(name="postgres_drill")
"""Its events carry `system`, `backup`, `snapshot`, `evidence`, `verdict`, `rpo_seconds`, `rto_seconds`."""

VAULT_DRILL = Asset(name="vault_drill")
"""Its events carry what those of `postgres_drill` do; `system` is a Vault's name."""

VAULT_BACKUP = Asset(name="vault_backup")
"""Its events carry `system`, `id`, `kind`, `product`, `recovery_point`, `raft_index`, `stored_bytes`."""
