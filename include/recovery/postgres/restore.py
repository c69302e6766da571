"""Restoring a base backup into a directory: fetch in parallel, verify, unpack, and say to PostgreSQL how to recover.

An incremental comes with the backups that it builds on. Each is unpacked on its own, and checked, before they are
combined; the result is then what a full backup of that moment would have been.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recovery.errors import ConfigurationError, RestoreError
from recovery.manifest import Manifest, StoredObject
from recovery.postgres import combine, plan
from recovery.postgres.owner import Owner, give
from recovery.postgres.target import Target
from recovery.postgres.tools import Tools
from recovery.postgres.unpack import Unpacker, explained
from recovery.repository.catalog import Backup
from recovery.repository.sealing import unseal, unseal_bytes
from recovery.repository.store import ObjectStore

_SIDE_BY_SIDE = 4
_ROOM = 1.05
_STAGING = "recovery.staging"
_RESULT = "result"
_MARK = "\n# Written by recovery.\n"

Tick = Callable[[int, int], None]
"""Called with the bytes fetched and the bytes to fetch; it may raise to end the work."""


@dataclass(frozen=True)
class Restored:
    """A data directory that PostgreSQL can start on."""

    pgdata: Path
    fetched_bytes: int
    tablespaces: dict[int, Path]


@dataclass(frozen=True, kw_only=True)
class RecoverySettings:
    """How far PostgreSQL recovers when it is started, and what it does there.

    By default to the backup's end, opening on a new timeline, so that its WAL can never be taken for the source's.
    `recovery_target = 'immediate'` is the point where the backup is consistent (manual, 26.3.4). The WAL lies in
    pg_wal; `restore_command` must be set, and has nothing to fetch. An empty value recovers to the end of the WAL.
    """

    restore_command: str = "false"
    target: Literal["", "_name", "_time", "_xid", "_lsn"] = ""
    """Which of PostgreSQL's recovery_target settings."""
    value: str = "immediate"
    action: Literal["promote", "pause", "shutdown"] = "promote"
    timeline: str = ""
    """The timeline to recover along; empty leaves PostgreSQL's own choice."""

    @classmethod
    def to_end_of(cls, found: Manifest) -> RecoverySettings:
        """A backup of a quiet standby has no record after its consistent point, at which `immediate` could stop."""
        return cls(value="") if found.server.in_recovery else cls()

    def lines(self) -> str:
        """For postgresql.auto.conf.

        A target that production's settings kept from an earlier recovery would be a second one, which the server
        refuses: they are emptied, before ours is set.
        """
        others = [f"recovery_target{name}" for name in ("", "_name", "_time", "_xid", "_lsn") if name != self.target]
        settings = {"restore_command": self.restore_command} | dict.fromkeys(others, "")
        settings |= {f"recovery_target{self.target}": self.value, "recovery_target_action": self.action}
        if self.timeline:
            settings["recovery_target_timeline"] = self.timeline
        return "".join(f"{name} = '{value.replace(chr(39), 2 * chr(39))}'\n" for name, value in settings.items())


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
    chain: Sequence[Backup],
    pgdata: Path,
    *,
    identities: Sequence[Any],
    tablespaces: Mapping[int, Path],
    tools: Tools,
    owner: Owner | None,
    recovery: RecoverySettings | None = None,
    replay: Callable[[], None] = lambda: None,
    replay_bytes: int = 0,
    tick: Tick = lambda done, expected: None,
) -> Restored:
    """Restore the last backup of `chain` (Catalog.chain); started, the result recovers as `recovery` says.

    `replay` starts it, where that belongs to the restore, and needs `replay_bytes` of disk in the data directory.
    Raises PreconditionError (target not empty, no room), IntegrityError, SealError, RestoreError. After any error the
    target is as empty as it was found.
    """
    if len(chain) > 1:
        tools.path(combine.PROGRAM)
    pgdata = pgdata.absolute()
    room = _room(chain, pgdata, tablespaces)
    room[pgdata] += replay_bytes
    with Target(room, owner=owner) as target:
        try:
            if len(chain) == 1:
                members = [_Member(chain[0], pgdata, tablespaces)]
            else:
                members = [_staged(backup, number, pgdata, tablespaces) for number, backup in enumerate(chain)]
            for member in members:
                member.prepare(owner)
            fetched = _Fetch(store, members, identities, owner, tick).run()
            for member in members:
                member.check(store, owner)
            if len(chain) > 1:
                _combine(members, pgdata, tablespaces, tools=tools, owner=owner, tick=lambda: tick(fetched, fetched))
            _map_tablespaces(pgdata, tablespaces, owner)
            write_recovery_settings(pgdata, recovery or RecoverySettings.to_end_of(chain[-1].manifest), owner)
            replay()
        except OSError as problem:
            raise explained(problem, pgdata, str(problem.filename or "a file")) from None
        target.keep()
    return Restored(pgdata, fetched, dict(tablespaces))


def _room(chain: Sequence[Backup], pgdata: Path, tablespaces: Mapping[int, Path]) -> dict[Path, int]:
    """The bytes that each directory will take at the peak, and a little more."""
    return {
        pgdata if oid is None else tablespaces[oid]: int(size * _ROOM)
        for oid, size in plan.room([backup.manifest for backup in chain]).items()
    }


@dataclass(frozen=True)
class _Member:
    """One backup of a chain, and the directories that it is unpacked into."""

    backup: Backup
    folder: Path
    tablespaces: Mapping[int, Path]

    def prepare(self, owner: Owner | None) -> None:
        for folder in (self.folder, *self.tablespaces.values()):
            _make(folder, owner)
        _link_tablespaces(self.folder, self.tablespaces, owner)

    def check(self, store: ObjectStore, owner: Owner | None) -> None:
        """The hashes are right by now; that no file is left out is seen from the server's own manifest."""
        _keep_server_manifest(store, self.backup, self.folder, owner)
        combine.check_files(self.folder)


def _staged(backup: Backup, number: int, pgdata: Path, tablespaces: Mapping[int, Path]) -> _Member:
    """Below the targets: on the file systems that have the room, and cleared with them after a kill.

    A tablespace that was dropped later has no target; it is not needed, and goes with the data directory.
    """
    folder = pgdata / _STAGING / str(number)
    places = {
        space.oid: tablespaces[space.oid] / _STAGING / str(number)
        if space.oid in tablespaces
        else pgdata / _STAGING / f"{number}-{space.oid}"
        for space in backup.manifest.server.tablespaces
    }
    return _Member(backup, folder, places)


def _combine(
    members: Sequence[_Member],
    pgdata: Path,
    tablespaces: Mapping[int, Path],
    *,
    tools: Tools,
    owner: Owner | None,
    tick: Callable[[], None],
) -> None:
    """Make the members one, and move it to where it belongs; pg_combinebackup writes into new directories only."""
    combine.combine(
        [member.folder for member in members],
        pgdata / _STAGING / _RESULT,
        tablespaces={place: tablespaces[oid] / _STAGING / _RESULT for oid, place in members[-1].tablespaces.items()},
        tools=tools,
        owner=owner,
        tick=tick,
    )
    for target in (pgdata, *tablespaces.values()):
        for entry in (target / _STAGING).iterdir():
            if entry.name != _RESULT and entry.is_dir():
                shutil.rmtree(entry)
        for entry in (target / _STAGING / _RESULT).iterdir():
            entry.rename(target / entry.name)
        shutil.rmtree(target / _STAGING)
    for oid in tablespaces:
        (pgdata / "pg_tblspc" / str(oid)).unlink()
    _link_tablespaces(pgdata, tablespaces, owner)


def _make(folder: Path, owner: Owner | None) -> None:
    if not folder.is_dir():
        _make(folder.parent, owner)
        folder.mkdir(mode=0o700)
        give(folder, owner)


def _link_tablespaces(pgdata: Path, tablespaces: Mapping[int, Path], owner: Owner | None) -> None:
    for oid, place in tablespaces.items():
        link = pgdata / "pg_tblspc" / str(oid)
        _make(link.parent, owner)
        link.symlink_to(place)
        give(link, owner)


class _Fetch:
    """Volumes side by side; the first failure ends the others at their next megabyte."""

    def __init__(
        self,
        store: ObjectStore,
        members: Sequence[_Member],
        identities: Sequence[Any],
        owner: Owner | None,
        tick: Tick,
    ) -> None:
        self._store, self._members = store, members
        self._identities, self._owner, self._tick = identities, owner, tick
        self._lock = threading.Lock()
        self._done = 0
        self._stopped = False

    def run(self) -> int:
        volumes = [
            (member, item)
            for member in self._members
            for item in member.backup.manifest.objects
            if item.role == "volume"
        ]
        self._expected = sum(item.stored_bytes for _, item in volumes)
        with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="restore") as workers:
            futures = [workers.submit(self._fetch, member, item) for member, item in volumes]
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

    def _fetch(self, member: _Member, item: StoredObject) -> None:
        target = member.folder if item.tablespace is None else member.tablespaces[item.tablespace]
        with closing(Unpacker(target, owner=self._owner)) as unpacker:
            unseal(
                self._store,
                item.sealed(member.backup.folder),
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


def _keep_server_manifest(store: ObjectStore, backup: Backup, folder: Path, owner: Owner | None) -> None:
    for sealed in backup.objects("backup_manifest"):
        path = folder / combine.MANIFEST
        path.write_bytes(unseal_bytes(store, sealed, identities=()))
        path.chmod(0o600)
        give(path, owner)


def _map_tablespaces(pgdata: Path, tablespaces: Mapping[int, Path], owner: Owner | None) -> None:
    """Recovery makes the links again by this file, which the backup brought with the source's paths."""
    if tablespaces:
        text = "".join(f"{oid} {path}\n" for oid, path in sorted(tablespaces.items()))
        _write(pgdata / "tablespace_map", text, owner)


def write_recovery_settings(pgdata: Path, recovery: RecoverySettings, owner: Owner | None) -> None:
    """Append them to postgresql.auto.conf, in place of those of an earlier call.

    A standby's backup brings a standby.signal, which would go before ours and make a standby of it again.
    """
    clear_recovery_settings(pgdata, owner)
    (pgdata / "standby.signal").unlink(missing_ok=True)
    path = pgdata / "postgresql.auto.conf"
    before = path.read_text() if path.exists() else ""
    _write(path, f"{before}{_MARK}{recovery.lines()}", owner)
    _write(pgdata / "recovery.signal", "", owner)


def clear_recovery_settings(pgdata: Path, owner: Owner | None) -> None:
    """Take them out of postgresql.auto.conf: recovery has ended."""
    path = pgdata / "postgresql.auto.conf"
    if path.exists():
        _write(path, path.read_text().partition(_MARK)[0], owner)


def _write(path: Path, text: str, owner: Owner | None) -> None:
    path.write_text(text)
    path.chmod(0o600)
    give(path, owner)
