"""manifest.json: what a backup is. Written last and conditionally, it is the commit point of a backup.

Its format is specified in docs/repository-format.md. Canonical JSON: sorted keys, no spaces, UTF-8, one newline.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from recovery.errors import FormatError
from recovery.repository.layout import ID_PATTERN
from recovery.repository.sealing import Compression, Sealed

FORMAT_VERSION = 1

Role = Literal["volume", "backup_manifest", "dump", "globals", "snapshot", "export"]


def _safe_key(value: str) -> str:
    if value.startswith("/") or any(part in ("", ".", "..") for part in value.split("/")):
        raise ValueError("an object's key must stay below the backup's folder")
    return value


def _known_id(value: str) -> str:
    if not ID_PATTERN.fullmatch(value):
        raise ValueError("not a backup id")
    return value


class _Part(BaseModel):
    # Keys that a later change adds are ignored; a change that a reader must not ignore raises format_version.
    model_config = ConfigDict(extra="ignore", frozen=True)


class StoredObject(_Part):
    """One object of a backup. `key` is relative to the backup's folder."""

    key: Annotated[str, AfterValidator(_safe_key)]
    role: Role
    compression: Compression
    encrypted: bool
    stored_bytes: int
    stored_sha256: str
    sealed_bytes: int
    sealed_hash: str
    tablespace: int | None = None
    """Volumes: the tablespace's oid; None is the main data directory."""
    database: str | None = None
    """Dumps: the database."""

    @classmethod
    def of(
        cls, sealed: Sealed, *, folder: str, role: Role, tablespace: int | None = None, database: str | None = None
    ) -> StoredObject:
        return cls(
            key=sealed.key.removeprefix(folder),
            role=role,
            compression=sealed.compression,
            encrypted=sealed.encrypted,
            stored_bytes=sealed.stored_bytes,
            stored_sha256=sealed.stored_sha256,
            sealed_bytes=sealed.sealed_bytes,
            sealed_hash=sealed.sealed_hash,
            tablespace=tablespace,
            database=database,
        )

    def sealed(self, folder: str) -> Sealed:
        """As the sealing stream takes it, with its whole key."""
        return Sealed(
            key=folder + self.key,
            compression=self.compression,
            encrypted=self.encrypted,
            stored_bytes=self.stored_bytes,
            stored_sha256=self.stored_sha256,
            sealed_bytes=self.sealed_bytes,
            sealed_hash=self.sealed_hash,
        )


class Tablespace(_Part):
    oid: int
    name: str
    path: str
    bytes: int


class Database(_Part):
    """One database as it was: what a restore elsewhere needs to know of it."""

    name: str
    encoding: str
    collate: str
    ctype: str
    locale_provider: str
    collation_version: str | None
    bytes: int
    extensions: dict[str, str]


class Server(_Part):
    """The PostgreSQL server that was backed up."""

    system_identifier: str
    version: str
    version_number: int
    data_checksums: bool
    wal_log_hints: bool
    block_bytes: int
    wal_segment_bytes: int
    in_recovery: bool
    libc_version: str | None
    icu_version: str | None
    superuser: str
    """The bootstrap superuser: whom a sandbox connects as."""
    preload: list[str]
    tablespaces: list[Tablespace]
    databases: list[Database]

    @property
    def major(self) -> int:
        return self.version_number // 10000


class Wal(_Part):
    """The WAL positions that bound a base backup. `included`: the WAL between them lies in the volumes."""

    start_lsn: str
    start_timeline: int
    end_lsn: str
    end_timeline: int
    included: bool


class Maker(_Part):
    program: str
    version: str
    host: str


class KeyVersions(_Part):
    """The versions of one transit key that the rows of a database carry."""

    oldest: int
    newest: int


class TransitKey(_Part):
    """One transit key as its Vault had it: which versions of ciphertext it still decrypts, and which one is newest."""

    latest_version: int
    min_decryption_version: int
    min_available_version: int = 0


class Seal(_Part):
    """How a Vault is unsealed: with `threshold` of `shares` shares. A key service's seal counts recovery shares."""

    type: str
    shares: int
    threshold: int


class Mount(_Part):
    """A secrets engine or an auth method (`auth/...`): where it is mounted, and the name of its part of the storage."""

    path: str
    type: str
    uuid: str


class VaultServer(_Part):
    """The Vault or OpenBao that was backed up."""

    version: str
    cluster_id: str
    cluster_name: str
    address: str
    seal: Seal
    mounts: list[Mount]
    policies: list[str]
    transit: dict[str, TransitKey]
    """Every transit key, named with its mount: `transit/app038`."""


class RaftSnapshot(_Part):
    """What the snapshot itself says, read while it streamed. It was asked for at `taken_at`, and is no older."""

    taken_at: AwareDatetime
    index: int
    term: int
    state_bytes: int
    state_sha256: str
    key_counts: dict[str, int]
    """Stored keys per top-level prefix of the storage (`core`, `logical`, `auth`, `sys`)."""
    mount_key_counts: dict[str, int]
    """Stored keys per mount, by the mount's uuid."""


class _Backup(_Part):
    """What every committed backup says of itself, whatever it is a backup of."""

    format_version: int
    id: Annotated[str, AfterValidator(_known_id)]
    system: str
    started_at: AwareDatetime
    finished_at: AwareDatetime
    recipients: list[str]
    maker: Maker
    timings_seconds: dict[str, float]
    notes: list[str] = Field(default_factory=list)
    objects: list[StoredObject]

    @property
    def stored_bytes(self) -> int:
        return sum(item.stored_bytes for item in self.objects)

    @property
    def source_bytes(self) -> int:
        """The bytes that the source gave, before compression (server-compressed streams: after it)."""
        return sum(item.sealed_bytes for item in self.objects if item.role != "backup_manifest")

    def encode(self) -> bytes:
        document = self.model_dump(mode="json")
        return (json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n").encode()


class Manifest(_Backup):
    """One committed backup of PostgreSQL."""

    kind: Literal["full", "incremental", "dump"]
    product: Literal["postgresql"]
    parent: str | None = None
    """Incrementals: the id of the backup that this one builds on."""
    chain: list[str] = Field(default_factory=list)
    """Incrementals: the ids of what a restore needs before this one, from the full to the parent."""
    server: Server
    wal: Wal | None = None
    key_versions: dict[str, KeyVersions] = Field(default_factory=dict)
    """The versions of each transit key that rows carried at the backup's end, as far as columns are configured."""

    @property
    def restored_bytes(self) -> int:
        """The disk that the restored cluster takes, or a little less: what was read, or where that was less (the server
        compressed, or sent changes only) what its databases measured, to which an incremental adds WAL of its own.
        """
        databases = sum(database.bytes for database in self.server.databases)
        if self.kind == "incremental":
            return databases + self.source_bytes
        return max(self.source_bytes, databases)

    @property
    def recovery_point(self) -> datetime:
        """The moment that a restore of this backup alone brings back: a base backup's end, a dump's start."""
        return self.finished_at if self.kind != "dump" else self.started_at


class VaultManifest(_Backup):
    """One committed backup of a Vault: a snapshot with the export of its policies, or one of the two."""

    kind: Literal["full", "snapshot", "policies"]
    product: Literal["vault", "openbao"]
    server: VaultServer
    snapshot: RaftSnapshot | None = None

    @property
    def recovery_point(self) -> datetime:
        """Everything that was written until then is in it."""
        return self.snapshot.taken_at if self.snapshot else self.started_at


AnyManifest = TypeVar("AnyManifest", bound=_Backup)


def decode(data: bytes, *, where: str) -> Manifest:
    """Read the manifest of a PostgreSQL backup; raises FormatError when it is damaged or of a newer format."""
    return _decode(Manifest, data, where=where)


def decode_vault(data: bytes, *, where: str) -> VaultManifest:
    """Read the manifest of a Vault's backup; raises FormatError as decode() does."""
    return _decode(VaultManifest, data, where=where)


def _decode(model: type[AnyManifest], data: bytes, *, where: str) -> AnyManifest:
    try:
        document = json.loads(data)
        version = document["format_version"]
    except (ValueError, KeyError, TypeError):
        raise FormatError(
            "this is not a manifest", where=where, remedy="the object is damaged: use another backup"
        ) from None
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise FormatError(
            f"the manifest has format version {version}, and this program reads up to {FORMAT_VERSION}",
            where=where,
            remedy="use the version of recovery that wrote it, or a newer one",
        )
    try:
        return model.model_validate(document)
    except ValidationError as problem:
        first = problem.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise FormatError(
            f"the manifest is not valid at {path or 'its root'}: {first['msg']}",
            where=where,
            remedy="use another backup",
        ) from None
