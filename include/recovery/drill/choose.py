"""What a drill of a named system restores: the database, the Vault, or the two together."""

from __future__ import annotations

from enum import StrEnum

from recovery.config import Configuration
from recovery.errors import ConfigurationError


class What(StrEnum):
    POSTGRES = "postgres"
    VAULT = "vault"
    SET = "set"


def what(configuration: Configuration, name: str, wanted: What | None = None) -> What:
    """What is wanted, or the most that is configured: a set needs a Vault for the keys, and its shares.

    Raises ConfigurationError for a name that is not configured.
    """
    if wanted is What.VAULT or (wanted is None and name not in configuration.postgres and name in configuration.vault):
        configuration.vault_system(name)
        return What.VAULT
    if name not in configuration.postgres:
        known = ", ".join(sorted({*configuration.postgres, *configuration.vault})) or "none"
        raise ConfigurationError(f"no system is named {name!r}", remedy=f"use one of: {known}")
    if wanted is not None:
        return wanted
    keys = configuration.postgres[name].keys
    return What.SET if keys is not None and configuration.vault[keys.vault].shares is not None else What.POSTGRES
