"""Restoring a base backup into a directory: fetch in parallel, verify, unpack, and say to PostgreSQL how to recover."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recovery.errors import ConfigurationError, RestoreError
from recovery.manifest import Manifest, StoredObject
from recovery.postgres.owner import Owner, give
from recovery.postgres.target import Target
from recovery.postgres.unpack import Unpacker, explained
from recovery.repository.catalog import Backup
from recovery.repository.sealing import unseal, unseal_bytes
from recovery.repository.store import ObjectStore

_SIDE_BY_SIDE = 4
_ROOM = 1.05

Tick = Callable[[int, int], None]
"""Called with the bytes fetched and the bytes to fetch; it may raise to end the work."""


@dataclass(frozen=True)
class Restored:
    """A data directory that PostgreSQL can start on."""

    pgdata: Path
    fetched_bytes: int
    tablespaces: dict[int, Path]


def place_tablespaces(found: Manifest, mapping: Mapping[str, str], *, below: Path | None = None) -> dict[int, Path]:
    """Where each tablespace goes: `mapping` is old path or name → new path; `below` takes all that are not mapped.

    Without either, a tablespace goes back to its own path. Raises ConfigurationError for an entry that fits none.
    """
    spaces = found.server.tablespaces
    unknown = set(mapping) - {space.path for space in spaces} - {space.name for space in spaces}
    if unknown:
        known = ", ".join(f"{space.name} ({space.path})" for space in spaces) or "none"
        raise ConfigurationError(
            f"the backup has no tablespace {sorted(unknown)[0]!r}", where=found.id, remedy=f"it has: {known}"
        )
    places = {}
    for space in spaces:
        default = str(below / str(space.oid)) if below is not None else space.path
        places[space.oid] = Path(mapping.get(space.name) or mapping.get(space.path) or default).absolute()
    return places


def restore_base(
    store: ObjectStore,
    backup: Backup,
    pgdata: Path,
    *,
    identities: Sequence[Any],
    tablespaces: Mapping[int, Path],
    owner: Owner | None,
    tick: Tick = lambda done, expected: None,
) -> Restored:
    """Restore one full backup that carries its own WAL; the result recovers to the backup's end when it is started.

    Raises PreconditionError (target not empty, no room), IntegrityError, SealError, RestoreError. After any error the
    target is as empty as it was found.
    """
    found = backup.manifest
    pgdata = pgdata.absolute()
    with Target(_room(found, pgdata, tablespaces), owner=owner) as target:
        try:
            _link_tablespaces(pgdata, tablespaces, owner)
            fetched = _Fetch(store, backup, pgdata, identities, tablespaces, owner, tick).run()
            _keep_server_manifest(store, backup, pgdata, owner)
            _map_tablespaces(pgdata, tablespaces, owner)
            _write_recovery_settings(pgdata, owner)
        except OSError as problem:
            raise explained(problem, pgdata, str(problem.filename or "a file")) from None
        target.keep()
    return Restored(pgdata, fetched, dict(tablespaces))


def _link_tablespaces(pgdata: Path, tablespaces: Mapping[int, Path], owner: Owner | None) -> None:
    for oid, place in tablespaces.items():
        link = pgdata / "pg_tblspc" / str(oid)
        link.parent.mkdir(mode=0o700, exist_ok=True)
        give(link.parent, owner)
        link.symlink_to(place)
        give(link, owner)


def _room(found: Manifest, pgdata: Path, tablespaces: Mapping[int, Path]) -> dict[Path, int]:
    """The bytes that each directory will take, and a little more."""
    outside = {space.oid: space.bytes for space in found.server.tablespaces if space.oid in tablespaces}
    room = {pgdata: int((found.restored_bytes - sum(outside.values())) * _ROOM)}
    return room | {tablespaces[oid]: int(size * _ROOM) for oid, size in outside.items()}


class _Fetch:
    """Volumes side by side; the first failure ends the others at their next megabyte."""

    def __init__(
        self,
        store: ObjectStore,
        backup: Backup,
        pgdata: Path,
        identities: Sequence[Any],
        tablespaces: Mapping[int, Path],
        owner: Owner | None,
        tick: Tick,
    ) -> None:
        self._store, self._backup, self._pgdata = store, backup, pgdata
        self._identities, self._tablespaces, self._owner, self._tick = identities, tablespaces, owner, tick
        self._lock = threading.Lock()
        self._done = 0
        self._stopped = False

    def run(self) -> int:
        volumes = [item for item in self._backup.manifest.objects if item.role == "volume"]
        self._expected = sum(item.stored_bytes for item in volumes)
        with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="restore") as workers:
            futures = [workers.submit(self._fetch, item) for item in volumes]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self._stopped = not all(future.done() and not future.exception() for future in futures)
                workers.shutdown(wait=True, cancel_futures=True)
        failures = [future.exception() for future in futures if not future.cancelled() and future.exception()]
        for failure in sorted(failures, key=lambda failure: isinstance(failure, _Stopped)):
            if failure is not None:
                raise failure
        return self._done

    def _fetch(self, item: StoredObject) -> None:
        target = self._pgdata if item.tablespace is None else self._tablespaces[item.tablespace]
        with closing(Unpacker(target, owner=self._owner)) as unpacker:
            unseal(
                self._store,
                item.sealed(self._backup.folder),
                unpacker,
                identities=self._identities,
                progress=self._progress,
            )
            unpacker.finish()

    def _progress(self, size: int) -> None:
        if self._stopped:
            raise _Stopped("the restore was stopped")
        with self._lock:
            self._done += size
            self._tick(self._done, self._expected)


class _Stopped(RestoreError):
    """Another volume failed first; that failure is the one to report."""


def _keep_server_manifest(store: ObjectStore, backup: Backup, pgdata: Path, owner: Owner | None) -> None:
    for sealed in backup.objects("backup_manifest"):
        path = pgdata / "backup_manifest"
        path.write_bytes(unseal_bytes(store, sealed, identities=()))
        path.chmod(0o600)
        give(path, owner)


def _map_tablespaces(pgdata: Path, tablespaces: Mapping[int, Path], owner: Owner | None) -> None:
    """Recovery makes the links again by this file, which the backup brought with the source's paths."""
    if tablespaces:
        text = "".join(f"{oid} {path}\n" for oid, path in sorted(tablespaces.items()))
        _write(pgdata / "tablespace_map", text, owner)


def _write_recovery_settings(pgdata: Path, owner: Owner | None) -> None:
    """Recover to the backup's end and open on a new timeline, so that its WAL can never be taken for the source's.

    `recovery_target = 'immediate'` is the point where the backup is consistent (manual, 26.3.4). The WAL lies in
    pg_wal; `restore_command` must be set, and has nothing to fetch. A target that production's settings kept from an
    earlier recovery would be a second one, which the server refuses: they are emptied, before ours is set.
    """
    settings = """
# Written by recovery.
restore_command = 'false'
recovery_target_name = ''
recovery_target_time = ''
recovery_target_xid = ''
recovery_target_lsn = ''
recovery_target = 'immediate'
recovery_target_action = 'promote'
"""
    path = pgdata / "postgresql.auto.conf"
    before = path.read_text() if path.exists() else ""
    _write(path, before + settings, owner)
    _write(pgdata / "recovery.signal", "", owner)


def _write(path: Path, text: str, owner: Owner | None) -> None:
    path.write_text(text)
    path.chmod(0o600)
    give(path, owner)
