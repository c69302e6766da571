"""One installation: the configuration with its secrets and stores. Airflow and the command line both start here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recovery.config import Configuration, S3Repository
from recovery.connections import Connection, Resolver, from_environment
from recovery.errors import ConfigurationError
from recovery.postgres.backup import Source
from recovery.repository.directory import DirectoryStore
from recovery.repository.s3 import S3Store, make_client
from recovery.repository.sealing import identities_of, parse_identities
from recovery.repository.store import ObjectStore
from recovery.vault.backup import Source as VaultSource

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

S3ClientFactory = Callable[[str], "S3Client"]
"""Makes a client from a connection id: boto3's here, Airflow's S3Hook in tasks."""


@dataclass(frozen=True)
class Installation:
    """Everything that work on a named system needs. `identity_file` overrides the configured identity connection."""

    configuration: Configuration
    resolve: Resolver = from_environment
    s3_client: S3ClientFactory | None = None
    identity_file: Path | None = None
    _stores: dict[str, ObjectStore] = field(default_factory=dict)

    def connection(self, connection_id: str) -> Connection:
        return self.resolve(connection_id)

    def store(self, repository: str) -> ObjectStore:
        """The store of a repository named in the configuration."""
        if repository not in self._stores:
            settings = self.configuration.repositories[repository]
            if settings.directory is not None:
                self._stores[repository] = DirectoryStore(settings.directory.path)
            elif settings.s3 is not None:
                self._stores[repository] = S3Store(self._client(settings.s3), settings.s3)
        return self._stores[repository]

    def store_of(self, name: str) -> ObjectStore:
        """The store that a PostgreSQL system is backed up into."""
        return self.store(self.configuration.postgres_system(name).repository)

    def source(self, name: str) -> Source:
        """A PostgreSQL system, ready to be backed up."""
        settings = self.configuration.postgres_system(name)
        base, credentials = settings.base.connection, settings.credentials
        vault = self.configuration.vault_system(credentials.vault).connection if credentials else None
        return Source.of(
            self.configuration,
            name,
            connection=self.connection(settings.connection),
            store=self.store(settings.repository),
            base_connection=self.connection(base) if base else None,
            vault=self.connection(vault) if vault else None,
        )

    def vault_store(self, name: str) -> ObjectStore:
        """The store that a Vault is backed up into."""
        return self.store(self.configuration.vault_system(name).repository)

    def vault_source(self, name: str) -> VaultSource:
        """A Vault, ready to be backed up."""
        settings = self.configuration.vault_system(name)
        return VaultSource.of(
            self.configuration,
            name,
            connection=self.connection(settings.connection),
            store=self.store(settings.repository),
        )

    def identities(self) -> list[Any]:
        """The age identities that open backups; raises ConfigurationError where this process is given none."""
        if self.identity_file is not None:
            try:
                text = self.identity_file.read_text()
            except OSError as problem:
                raise ConfigurationError(
                    f"the identity cannot be read ({problem.strerror})",
                    where=str(self.identity_file),
                    remedy="name an age key file",
                ) from None
            return parse_identities(text, where=str(self.identity_file))
        if self.configuration.encryption.identity is None:
            raise ConfigurationError(
                "no identity is configured here, and opening a backup needs one",
                where="encryption.identity",
                remedy="name a connection that holds the age identity, or give --identity FILE",
            )
        return identities_of(self.connection(self.configuration.encryption.identity))

    def _client(self, settings: S3Repository) -> S3Client:
        if self.s3_client is not None:
            return self.s3_client(settings.connection)
        return make_client(self.connection(settings.connection))
