"""The evidence of a drill: what was restored, how long each phase took, what every check found. Written once."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from recovery.drill.compare import TableResult
from recovery.drill.reconcile import Loose
from recovery.repository import layout
from recovery.repository.store import ObjectStore, put_final
from recovery.repository.verify import Verdict

FORMAT_VERSION = 1
_READERS = 8
_NEWEST = 5


@dataclass(frozen=True)
class Phase:
    name: str
    seconds: float


@dataclass(frozen=True)
class Check:
    """One check's verdict. `unknown` never counts as ok."""

    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One drill. Times are UTC; `rto_seconds` runs from the plan until the restored server accepts queries."""

    id: str
    kind: Literal["postgres", "vault", "set"]
    system: str
    backup: str
    recovery_point: datetime
    started_at: datetime
    finished_at: datetime
    verdict: Verdict
    rpo_seconds: float
    rto_seconds: float | None
    rto_objective_seconds: float | None
    fetched_bytes: int
    restored_bytes: int
    phases: tuple[Phase, ...]
    checks: tuple[Check, ...]
    tables: tuple[TableResult, ...]
    recovery_version: str
    host: str
    vault: str | None = None
    """Sets: the Vault whose snapshot was restored beside the database."""
    snapshot: str | None = None
    loose: tuple[Loose, ...] = ()
    """Sets: database roles with no lease, and leases with no role."""
    format_version: int = field(default=FORMAT_VERSION)

    def document(self) -> dict[str, Any]:
        """The evidence as plain JSON values."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self), default=_plain))
        return document

    @property
    def key(self) -> str:
        return layout.evidence(self.started_at, self.id)


def write(store: ObjectStore, evidence: Evidence) -> str:
    """Store the evidence; returns its key. Evidence is never overwritten."""
    text = json.dumps(evidence.document(), sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    put_final(store, evidence.key, text.encode())
    return evidence.key


def read_all(store: ObjectStore) -> Iterator[dict[str, Any]]:
    """Every evidence document, oldest first."""
    for info in store.scan("evidence/"):
        yield json.loads(store.get(info.key))


def proven(store: ObjectStore, system: str) -> frozenset[str]:
    """The ids of a PostgreSQL system's backups that a drill has ended `ok` on, alone or as half of a set."""
    documents = _good(store, _keys(store, system))
    return frozenset(str(each["backup"]) for each in documents if _is_of_postgres(each, system))


def proven_snapshots(store: ObjectStore, vault: str) -> frozenset[str]:
    """The ids of a Vault's snapshots that a drill has ended `ok` on, alone or as half of a set.

    Evidence lies in the repository of what was drilled: a set's in that of its database.
    """
    documents = _good(store, [info.key for info in store.scan("evidence/")])
    alone = {str(each["backup"]) for each in documents if each.get("kind") == "vault" and each.get("system") == vault}
    together = {str(each["snapshot"]) for each in documents if each.get("kind") == "set" and each.get("vault") == vault}
    return frozenset(alone | together)


def measured_rate(store: ObjectStore, system: str) -> float | None:
    """The bytes that a second of a restore brings back, by the newest good drills; None before the first."""
    found = [each for each in _good(store, _keys(store, system)[-_NEWEST:]) if _is_of_postgres(each, system)]
    rates = [document["restored_bytes"] / document["rto_seconds"] for document in found if document.get("rto_seconds")]
    return statistics.median(rates) if rates else None


def _keys(store: ObjectStore, system: str) -> list[str]:
    return [info.key for info in store.scan("evidence/") if f"-{system}-drill-" in info.key]


def _is_of_postgres(document: dict[str, Any], system: str) -> bool:
    return document.get("system") == system and document.get("kind", "postgres") != "vault"


def _good(store: ObjectStore, keys: list[str]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(_READERS) as readers:
        documents = [_decoded(data) for data in readers.map(store.get, keys)]
    return [document for document in documents if document.get("verdict") == Verdict.OK and "backup" in document]


def _decoded(data: bytes) -> dict[str, Any]:
    """Evidence that is damaged proves nothing."""
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value).__name__)
