"""What a drill of a named system restores: the database, the Vault, or the two together."""

from __future__ import annotations

from enum import StrEnum

from recovery.config import Configuration


class What(StrEnum):
    POSTGRES = "postgres"
    VAULT = "vault"
    SET = "set"


def what(configuration: Configuration, name: str, wanted: What | None = None) -> What:
    """What is wanted, or the most that is configured: a set needs a Vault for the keys, and its shares.

    Raises ConfigurationError for a name that is not configured.
    """
    is_database = name in configuration.named("postgres", name)
    if wanted is What.VAULT or (wanted is None and not is_database):
        configuration.vault_system(name)
        return What.VAULT
    configuration.postgres_system(name)
    if wanted is not None:
        return wanted
    keys = configuration.postgres[name].keys
    return What.SET if keys is not None and configuration.vault[keys.vault].shares is not None else What.POSTGRES
