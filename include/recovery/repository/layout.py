"""Where things lie in a repository (docs/repository-format.md): keys as pure functions, and the ids of backups."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import quote

ID_PATTERN = re.compile(r"(\d{8}T\d{6}Z)-(full|incremental|dump|snapshot|policies)")
_TIME = "%Y%m%dT%H%M%SZ"


def backup_id(moment: datetime, kind: str) -> str:
    """`20261123T020000Z-full`: sorts by time."""
    return f"{moment.astimezone(UTC).strftime(_TIME)}-{kind}"


def moment_of(identifier: str) -> datetime:
    """The moment that a backup id names."""
    return datetime.strptime(identifier.partition("-")[0], _TIME).replace(tzinfo=UTC)


def system_folder(kind: str, name: str) -> str:
    return f"{kind}/{name}/"


def backups_folder(name: str, system_identifier: str) -> str:
    return f"{system_folder('postgres', name)}{system_identifier}/backups/"


def backup_folder(name: str, system_identifier: str, identifier: str) -> str:
    return f"{backups_folder(name, system_identifier)}{identifier}/"


def wal_folder(name: str, system_identifier: str) -> str:
    return f"{system_folder('postgres', name)}{system_identifier}/wal/"


def volume(number: int) -> str:
    return f"volumes/{number:05d}.tar.zst.age"


def dump(database: str) -> str:
    """Names are percent-encoded: a database may be called anything."""
    return f"dumps/{quote(database, safe='')}.pgdump.age"


def snapshots_folder(name: str) -> str:
    """Where a Vault's backups lie."""
    return f"{system_folder('vault', name)}snapshots/"


def snapshot_folder(name: str, identifier: str) -> str:
    return f"{snapshots_folder(name)}{identifier}/"


MANIFEST = "manifest.json"
SNAPSHOT = "snapshot.snap.zst.age"
EXPORT = "policies/export.tar.zst.age"
BACKUP_MANIFEST = "backup_manifest.zst"
GLOBALS = "globals.sql.zst.age"


def lease_folder(kind: str, name: str, job: str) -> str:
    return f"leases/{kind}/{name}/{job}/"


def job_of(kind: str) -> str:
    """The lease under which backups of a kind are made: base backups follow each other, full or incremental."""
    return "dump" if kind == "dump" else "base"


def holds_folder(name: str, *, kind: str = "postgres") -> str:
    """Two systems of one name may have backups of one id: a Vault's holds lie beside PostgreSQL's, not among them."""
    return f"holds/{name}/" if kind == "postgres" else f"{kind}-holds/{name}/"


def hold(name: str, identifier: str, *, kind: str = "postgres") -> str:
    return f"{holds_folder(name, kind=kind)}{identifier}.json"


def full_request(name: str) -> str:
    """Its presence asks the next physical backup to be a full one."""
    return f"requests/{name}/full.json"


def evidence(moment: datetime, drill_id: str) -> str:
    return f"evidence/{moment.astimezone(UTC):%Y-%m-%d}/{drill_id}.json"
