"""Is a backup still what was written? Three levels that need no server: exists, checksum, opens.

`exists` and `checksum` need no key. `opens` decrypts, decompresses, reads every tar to its end and every dump to its
last row. `restores` is a drill (recovery.drill).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from recovery.errors import IntegrityError, PreconditionError, RecoveryError, SealError, StoreUnreachable
from recovery.manifest import StoredObject
from recovery.repository.sealing import Sealed, check_stored, unseal
from recovery.repository.store import ObjectStore

_SIDE_BY_SIDE = 4


class Level(StrEnum):
    EXISTS = "exists"
    CHECKSUM = "checksum"
    OPENS = "opens"


class Verdict(StrEnum):
    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One object that is not known to be good."""

    key: str
    verdict: Verdict
    problem: str


@dataclass(frozen=True)
class Report:
    """The outcome for one backup: ok only when every object was looked at and is right."""

    backup: str
    level: Level
    verdict: Verdict
    objects: int
    bytes_read: int
    findings: tuple[Finding, ...]


class Stored(Protocol):
    """A committed backup of any product."""

    @property
    def id(self) -> str: ...
    @property
    def folder(self) -> str: ...
    @property
    def items(self) -> Sequence[StoredObject]: ...


class ContentCheck(Protocol):
    """Takes one object's content and says at its end whether it is whole."""

    def write(self, data: bytes, /) -> object: ...
    def finish(self) -> object:
        """Raise IntegrityError when the content is not whole."""

    def close(self) -> None:
        """Called always, after finish() or instead of it."""


def verify(
    store: ObjectStore,
    backup: Stored,
    level: Level,
    *,
    identities: Sequence[Any] = (),
    content_check: Callable[[StoredObject], ContentCheck],
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Check every object of one backup; never raises for what it finds, so that one report names it all."""

    def check(item: StoredObject) -> Finding | None:
        sealed = item.sealed(backup.folder)
        try:
            if level is Level.EXISTS:
                _check_exists(store, sealed)
            elif level is Level.CHECKSUM:
                check_stored(store, sealed, progress=progress)
            else:
                with contextlib.closing(content_check(item)) as content:
                    unseal(store, sealed, content, identities=identities, progress=progress)
                    content.finish()
        except (StoreUnreachable, SealError, PreconditionError) as problem:
            return Finding(item.key, Verdict.UNKNOWN, str(problem))
        except RecoveryError as problem:
            return Finding(item.key, Verdict.FAILED, str(problem))
        return None

    items = backup.items
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as workers:
        findings = tuple(finding for finding in workers.map(check, items) if finding is not None)
    read = 0 if level is Level.EXISTS else sum(item.stored_bytes for item in items)
    return Report(backup.id, level, worst(finding.verdict for finding in findings), len(items), read, findings)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """failed before unknown before ok."""
    seen = set(verdicts)
    return next((verdict for verdict in (Verdict.FAILED, Verdict.UNKNOWN) if verdict in seen), Verdict.OK)


def _check_exists(store: ObjectStore, item: Sealed) -> None:
    found = store.head(item.key)
    if found.size != item.stored_bytes:
        raise IntegrityError(
            f"the object has {found.size} bytes, and {item.stored_bytes} were written",
            where=f"{store.description}/{item.key}",
            remedy="use another backup, or another copy of this one",
        )
