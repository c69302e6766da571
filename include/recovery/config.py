"""recovery.yaml: its schema and how it is read. Every problem is named in one pass, with its path in the file.

The file names systems, repositories, recipients and objectives. It never holds a secret: connections are named by id.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from recovery.errors import ConfigurationError, ConfigurationProblems

CONFIG_VARIABLE = "RECOVERY_CONFIG"
DEFAULT_PATH = Path(__file__).resolve().parent.parent / "config" / "recovery.yaml"
SUPPORTED_MAJORS = (15, 16, 17, 18)

_SECRET_PREFIX = "AGE-SECRET-KEY-"
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> timedelta:
    """'500ms', '15m', '6h', '1h30m', '2d'; raises ValueError."""
    parts = re.findall(r"(\d+)(ms|[smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("not a duration: write a number and ms, s, m, h or d, as in 15m or 1h30m")
    return timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in parts))


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _connection_id(value: str) -> str:
    if value.upper().startswith(_SECRET_PREFIX):
        raise ValueError(
            "this is a secret identity, not a connection id: "
            "put it into an Airflow connection, and the connection's id here"
        )
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", value):
        raise ValueError("not a connection id (a secret, or a URI?): name an Airflow connection here")
    return value


def _system_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", value):
        raise ValueError("names are lower-case letters, digits, - and _, at most 63 of them")
    return value


def _recipient(value: str) -> str:
    from recovery.repository.sealing import parse_recipient

    if value.upper().startswith(_SECRET_PREFIX):
        raise ValueError("this is a secret identity, not a recipient: put its public key (age-keygen -y) here")
    try:
        parse_recipient(value)
    except Exception:
        raise ValueError(
            "not an age recipient: age1... (age-keygen -y KEYFILE) or an ssh-ed25519 / ssh-rsa key"
        ) from None
    return value


def _age_of_remains(value: timedelta) -> timedelta:
    if value < timedelta(hours=1):
        raise ValueError("less than an hour may be the age of a backup that is being made: write 1h or more")
    return value


def _slot_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]{1,63}", value):
        raise ValueError("a slot's name is 1 to 63 lower-case letters, digits and _")
    return value


def _prefix(value: str) -> str:
    if value.startswith("/") or value.endswith("/") or any(part in ("", ".", "..") for part in value.split("/")):
        raise ValueError("a prefix has no leading, trailing or double slash, and no '.' or '..'")
    return value


def _vault_path(value: str) -> str:
    if not re.fullmatch(r"[^/\s]+(/[^/\s]+)+", value):
        raise ValueError("a path in Vault is its mount and more, with single slashes: write database/creds/backup")
    return value


def _transit_key(value: str) -> str:
    if not re.fullmatch(r"[^/\s]+(/[^/\s]+)+", value):
        raise ValueError("a transit key is named with its mount: write transit/app038")
    return value


def _column(value: str) -> str:
    if not re.fullmatch(r"[^.]+\.[^.]+\.[^.]+", value):
        raise ValueError("a column is named in full: write public.users.phone")
    return value


Duration = Annotated[timedelta, BeforeValidator(_duration)]
TransitKey = Annotated[str, AfterValidator(_transit_key)]
ConnectionId = Annotated[str, AfterValidator(_connection_id)]
SystemName = Annotated[str, AfterValidator(_system_name)]
Recipient = Annotated[str, AfterValidator(_recipient)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Encryption(_Strict):
    recipients: Annotated[list[Recipient], Field(min_length=1)]
    identity: ConnectionId | None = None


class ObjectLock(_Strict):
    mode: Literal["COMPLIANCE", "GOVERNANCE"]
    days: Annotated[int, Field(ge=1, le=3650)]


class S3Repository(_Strict):
    connection: ConnectionId
    bucket: Annotated[str, Field(min_length=3, max_length=63)]
    prefix: Annotated[str, AfterValidator(_prefix)] = "recovery"
    object_lock: ObjectLock | None = None


class DirectoryRepository(_Strict):
    path: Path


class Repository(_Strict):
    s3: S3Repository | None = None
    directory: DirectoryRepository | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Repository:
        if (self.s3 is None) == (self.directory is None):
            raise ValueError("name exactly one kind of store: s3 or directory")
        return self


class Compression(_Strict):
    where: Literal["client", "server"] = "client"
    level: Annotated[int, Field(ge=1, le=19)] = 1
    workers: Annotated[int, Field(ge=1, le=64)] = 2


class BaseBackupOptions(_Strict):
    connection: ConnectionId | None = None
    """Where base backups and incrementals are read, a standby for instance; otherwise the system's connection."""
    compression: Compression = Compression()
    max_rate_mib_per_second: Annotated[int, Field(ge=1)] | None = None
    checkpoint: Literal["fast", "spread"] = "fast"


class IncrementalOptions(_Strict):
    max_chain: Annotated[int, Field(ge=1, le=1000)] = 12
    """Incrementals on one full backup; the next one becomes a full."""


class WalOptions(_Strict):
    """Continuous WAL: present means that it is archived."""

    slot: Annotated[str, AfterValidator(_slot_name)] = "recovery"
    interval: Duration = timedelta(seconds=1)
    """The longest that received WAL waits before it is uploaded."""
    give_up_gib: Annotated[int, Field(ge=1)] | None = None
    """Drop the slot when the server keeps more WAL than this for nothing but the slot; None: never."""


class DumpOptions(_Strict):
    jobs: Annotated[int, Field(ge=1, le=32)] = 2
    exclude_databases: list[str] = []


class DrillOptions(_Strict):
    source: ConnectionId | None = None
    """Reads the source's rows to compare them with; without it the system's own connection does."""


class Retention(_Strict):
    """What is kept; a backup that any of these wants stays. Without any, everything does."""

    window: Duration | None = None
    """Every moment of this long back can be restored."""
    fulls: Annotated[int, Field(ge=1)] | None = None
    dumps: Annotated[int, Field(ge=1)] | None = None
    daily: Annotated[int, Field(ge=0)] = 0
    weekly: Annotated[int, Field(ge=0)] = 0
    monthly: Annotated[int, Field(ge=0)] = 0
    yearly: Annotated[int, Field(ge=0)] = 0
    orphans_after: Annotated[Duration, AfterValidator(_age_of_remains)] = timedelta(days=1)
    """Objects that no manifest names are swept when they are older than this."""


class SnapshotRetention(_Strict):
    """What is kept of a Vault's snapshots and exports; a backup that any of these wants stays. Without any, all do."""

    newest: Annotated[int, Field(ge=1)] | None = None
    daily: Annotated[int, Field(ge=0)] = 0
    weekly: Annotated[int, Field(ge=0)] = 0
    monthly: Annotated[int, Field(ge=0)] = 0
    yearly: Annotated[int, Field(ge=0)] = 0
    orphans_after: Annotated[Duration, AfterValidator(_age_of_remains)] = timedelta(days=1)
    """Objects that no manifest names are swept when they are older than this."""


class Objectives(_Strict):
    rto: Duration | None = None


class VaultCredentials(_Strict):
    """Login and password come from Vault: a KV v2 secret (`secret/data/...`) or a lease (`database/creds/...`)."""

    vault: str
    path: Annotated[str, AfterValidator(_vault_path)]


class CanaryOptions(_Strict):
    """Rows that `recovery vault canary` keeps in table recovery.canary, encrypted with every version of a key."""

    key: TransitKey
    database: str
    connection: ConnectionId
    """Writes the rows."""


class EncryptedColumn(_Strict):
    """A column whose rows hold the transit engine's ciphertext (`vault:v3:...`)."""

    key: TransitKey
    database: str
    column: Annotated[str, AfterValidator(_column)]


class KeyOptions(_Strict):
    """The Vault whose keys open this database's rows: the two are recovered together."""

    vault: str
    canary: CanaryOptions | None = None
    columns: list[EncryptedColumn] = []


class PostgresSystem(_Strict):
    connection: ConnectionId
    credentials: VaultCredentials | None = None
    repository: str
    base: BaseBackupOptions = BaseBackupOptions()
    incremental: IncrementalOptions = IncrementalOptions()
    dump: DumpOptions = DumpOptions()
    wal: WalOptions | None = None
    retention: Retention = Retention()
    tools: dict[int, Path] = {}
    preload: list[str] = []
    """Libraries that a sandbox server must preload to open this cluster; any other one stays out of it."""
    drill: DrillOptions = DrillOptions()
    keys: KeyOptions | None = None
    objectives: Objectives = Objectives()


class VaultSystem(_Strict):
    product: Literal["vault", "openbao"]
    connection: ConnectionId
    repository: str
    shares: ConnectionId | None = None
    """Holds the escrowed unseal shares; only drills and restores are given it."""
    binary: Path | None = None
    """The server's program, for throwaway nodes; otherwise `vault` or `bao` on PATH."""
    seal: Path | None = None
    """The seal stanza of a throwaway node, where a key service unseals this Vault."""
    retention: SnapshotRetention = SnapshotRetention()
    objectives: Objectives = Objectives()


class Sandbox(_Strict):
    """Where drills restore. `user` runs the servers where the caller is root."""

    directory: Path = Path("/var/tmp/recovery")
    user: str | None = None
    network: Literal["isolated", "open"] = "isolated"
    """isolated: a restored Vault runs in a network namespace of its own, for it revokes leases in live databases."""


class Configuration(_Strict):
    version: Literal[1]
    encryption: Encryption
    repositories: Annotated[dict[SystemName, Repository], Field(min_length=1)]
    postgres: dict[SystemName, PostgresSystem] = {}
    vault: dict[SystemName, VaultSystem] = {}
    sandbox: Sandbox = Sandbox()

    @model_validator(mode="after")
    def _consistent(self) -> Configuration:
        problems = [problem for name in self.postgres for problem in self._contradictions(name)]
        problems += [problem for name in self.vault for problem in self._unknown_repository("vault", name)]
        if problems:
            raise PydanticCustomError("contradictions", "contradictions", {"problems": problems})
        return self

    def _contradictions(self, name: str) -> Iterator[tuple[str, str, str]]:
        """What does not go together: the path in the file, what is wrong, what to do."""
        system = self.postgres[name]
        path = f"postgres.{name}"
        yield from self._unknown_repository("postgres", name)
        for place, part in {"credentials": system.credentials, "keys": system.keys}.items():
            if part is not None and part.vault not in self.vault:
                known = ", ".join(sorted(self.vault)) or "none"
                yield f"{path}.{place}.vault", f"no Vault is named '{part.vault}'", f"use one of: {known}"
        repository = self.repositories.get(system.repository)
        window = system.retention.window
        if window is None:
            return
        if system.wal is None:
            yield (
                f"{path}.retention.window",
                "without continuous WAL the moments between backups cannot be restored",
                f"configure {path}.wal, or keep whole backups with fulls, daily, weekly, monthly or yearly",
            )
        lock = repository.s3.object_lock if repository and repository.s3 else None
        if lock is not None and window >= timedelta(days=lock.days):
            # The backup that the window begins with is older than the window.
            yield (
                f"{path}.retention.window",
                f"the Object Lock of repository '{system.repository}' ends after {lock.days} days, before the window",
                f"set object_lock.days to {window // timedelta(days=1) + 1} or more, or a shorter window",
            )

    def _unknown_repository(self, kind: Literal["postgres", "vault"], name: str) -> Iterator[tuple[str, str, str]]:
        repository = getattr(self, kind)[name].repository
        if repository not in self.repositories:
            known = ", ".join(sorted(self.repositories))
            yield f"{kind}.{name}.repository", f"no repository is named '{repository}'", f"use one of: {known}"

    def postgres_system(self, name: str) -> PostgresSystem:
        """The system called `name`; raises ConfigurationError that names the known ones."""
        try:
            return self.postgres[name]
        except KeyError:
            known = ", ".join(sorted(self.postgres)) or "none"
            raise ConfigurationError(
                f"no PostgreSQL system is named {name!r}", where="postgres", remedy=f"use one of: {known}"
            ) from None

    def named(self, kind: Literal["postgres", "vault"], *wanted: str | None) -> list[str]:
        """The systems of one kind among those wanted, all of the kind where none is (None counts as none).

        A database and a Vault may have one name. Raises ConfigurationError for a name that no kind has.
        """
        names = [name for name in wanted if name is not None]
        known = sorted({*self.postgres, *self.vault})
        for name in names:
            if name not in known:
                raise ConfigurationError(
                    f"no system is named {name!r}", remedy=f"use one of: {', '.join(known) or 'none'}"
                )
        systems = self.postgres if kind == "postgres" else self.vault
        return [name for name in names or systems if name in systems]

    def vault_system(self, name: str) -> VaultSystem:
        """The Vault called `name`; raises ConfigurationError that names the known ones."""
        try:
            return self.vault[name]
        except KeyError:
            known = ", ".join(sorted(self.vault)) or "none"
            raise ConfigurationError(
                f"no Vault is named {name!r}", where="vault", remedy=f"use one of: {known}"
            ) from None


def config_path(path: Path | None = None) -> Path:
    """The file that is used: the given one, else $RECOVERY_CONFIG, else the one shipped beside the package."""
    return path or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else DEFAULT_PATH)


def load(path: Path | None = None) -> Configuration:
    """Read and check the configuration file; raises ConfigurationProblems with one entry per problem."""
    path = config_path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise ConfigurationError(
            f"the configuration cannot be read ({problem.strerror})",
            where=str(path),
            remedy=f"name the file with --config or {CONFIG_VARIABLE}",
        ) from None
    return parse(text, where=str(path))


def parse(text: str, *, where: str = "recovery.yaml") -> Configuration:
    """Check a configuration's text; `where` names its source in errors."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise ConfigurationError(
            f"not valid YAML{line} ({getattr(problem, 'problem', 'unreadable')})", where=where, remedy="mend the file"
        ) from None
    if not isinstance(document, dict):
        raise ConfigurationError("the file holds no mapping", where=where, remedy="start it with `version: 1`")
    try:
        return Configuration.model_validate(document)
    except ValidationError as problem:
        raise ConfigurationProblems(
            [line for error in problem.errors() for line in _explain(error, where=where)]
        ) from None


def _explain(error: ErrorDetails, *, where: str) -> Iterator[ConfigurationError]:
    if error["type"] == "contradictions":
        for path, what, remedy in error["ctx"]["problems"]:
            yield ConfigurationError(what, where=f"{where}: {path}", remedy=remedy)
    else:
        yield _explain_one(error, where=where)


def _explain_one(error: ErrorDetails, *, where: str) -> ConfigurationError:
    location = error["loc"]
    path = ".".join(str(part) for part in location)
    at = f"{where}: {path}" if path else where
    if error["type"] == "extra_forbidden":
        return ConfigurationError("unknown key", where=at, remedy=_nearest(location))
    if error["type"] == "missing":
        return ConfigurationError("this key is required", where=at, remedy="add it")
    message = error["msg"].removeprefix("Value error, ")
    what, _, remedy = message.partition(": ")
    if error["type"] == "value_error":
        return ConfigurationError(what, where=at, remedy=remedy or "see README.md, Configuration")
    return ConfigurationError(message[0].lower() + message[1:], where=at, remedy="correct the value")


def _nearest(location: tuple[int | str, ...]) -> str:
    known = _keys_at(Configuration, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"remove it; known here: {', '.join(known)}"


def _keys_at(model: Any, path: tuple[int | str, ...]) -> list[str]:
    """The keys that the schema knows at a path of the file."""
    for step in path:
        fields = getattr(model, "model_fields", {})
        if step in fields:
            model = _inner(fields[step].annotation)
        # Otherwise the step is the name of a system or repository: `model` is what the mapping holds already.
    return sorted(getattr(model, "model_fields", {}))


def _inner(annotation: Any) -> Any:
    """The model inside `X`, `X | None` or `dict[str, X]`."""
    for argument in getattr(annotation, "__args__", ()):
        found = _inner(argument)
        if found is not None:
            return found
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
