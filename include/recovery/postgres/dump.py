"""Logical dumps: `pg_dump -Fc` of each database and the globals, each proven readable while it is sealed."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import IO, Any

from recovery.config import DumpOptions
from recovery.connections import Connection
from recovery.errors import BackupError
from recovery.manifest import Database, Server, StoredObject
from recovery.postgres import connect, inspect
from recovery.postgres.pg_restore import READ_ONLY, PgRestore, first_error
from recovery.postgres.tools import Tools
from recovery.repository import layout
from recovery.repository.sealing import ByteSink, Sealed, SealingWriter
from recovery.repository.store import ObjectStore

MIB = 1 << 20
GIB = 1 << 30

Tick = Callable[[str, int], None]
"""Called with a database's name and the bytes just sealed; it may raise to end the work."""


def take(
    connection: Connection,
    store: ObjectStore,
    *,
    folder: str,
    server: Server,
    options: DumpOptions,
    tools: Tools,
    recipients: Sequence[Any],
    tick: Tick = lambda database, sealed: None,
) -> tuple[list[StoredObject], list[str]]:
    """Dump every database and the globals below `folder`. Returns the objects, and notes for the manifest.

    Raises BackupError when a program fails or a dump cannot be read back. Dumps under way are ended with it.
    """
    databases = inspect.dumpable(server, exclude=options.exclude_databases)
    if not databases:
        raise BackupError("every database is excluded from the dump", remedy="correct dump.exclude_databases")
    dumper = _Dumper(connection, store, folder=folder, tools=tools, recipients=recipients, tick=tick)
    try:
        with ThreadPoolExecutor(options.jobs, thread_name_prefix="dump") as workers:
            futures = [workers.submit(dumper.dump, database) for database in databases]
            try:
                objects = [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                dumper.stop()
                raise
        with_passwords = _may_read_passwords(connection)
        objects.append(dumper.globals(with_passwords=with_passwords))
    finally:
        dumper.stop()
    notes = [] if with_passwords else ["globals carry no role passwords: the backup role may not read pg_authid"]
    return objects, notes


class _Dumper:
    def __init__(
        self,
        connection: Connection,
        store: ObjectStore,
        *,
        folder: str,
        tools: Tools,
        recipients: Sequence[Any],
        tick: Tick,
    ) -> None:
        self._connection, self._store, self._folder = connection, store, folder
        self._tools, self._recipients, self._tick = tools, recipients, tick
        self._zstd = tools.dumps_with_zstd()
        self._running: set[subprocess.Popen[bytes]] = set()

    def dump(self, database: Database) -> StoredObject:
        # Without zstd, gzip at its fastest is what the custom format offers.
        compress = "zstd:1" if self._zstd else "1"
        command = [
            self._tools.path("pg_dump"),
            "--format=custom",
            f"--compress={compress}",
            "--no-password",
            "--lock-wait-timeout=5min",
        ]
        writer = SealingWriter(
            self._store,
            self._folder + layout.dump(database.name),
            recipients=self._recipients,
            compression="none",
            size_limit=2 * database.bytes + GIB,
        )
        sealed = self._stream(command, writer, database=database.name)
        return StoredObject.of(sealed, folder=self._folder, role="dump", database=database.name)

    def globals(self, *, with_passwords: bool) -> StoredObject:
        command = [self._tools.path("pg_dumpall"), "--globals-only", "--no-password"]
        if not with_passwords:
            command.append("--no-role-passwords")
        writer = SealingWriter(
            self._store, self._folder + layout.GLOBALS, recipients=self._recipients, level=3, size_limit=GIB
        )
        sealed = self._stream(command, writer, database=None)
        return StoredObject.of(sealed, folder=self._folder, role="globals")

    def stop(self) -> None:
        """End the programs that still run; their threads then fail and clean up."""
        for process in list(self._running):
            process.kill()

    def _stream(self, command: list[str], writer: SealingWriter, *, database: str | None) -> Sealed:
        """Program → (pg_restore, which proves a dump) → sealed object; committed only when both programs succeeded."""
        what = f"the dump of {database}" if database else "the dump of the globals"
        try:
            with ExitStack() as stack:
                messages = stack.enter_context(tempfile.TemporaryFile())
                sinks: list[ByteSink] = [writer]
                if database is not None:
                    proof = stack.enter_context(
                        closing(PgRestore(self._tools, *READ_ONLY, failure=self._unreadable(what)))
                    )
                    sinks.insert(0, proof)
                source = self._start(stack, command, messages, database)
                assert source.stdout is not None
                while piece := source.stdout.read(MIB):
                    for sink in sinks:
                        sink.write(piece)
                    self._tick(database or "globals", len(piece))
                if source.wait() != 0:
                    messages.seek(0)
                    raise self._failed(f"{what} failed: {first_error(messages.read(MIB))}")
                if database is not None:
                    proof.finish()
        except BaseException:
            writer.abort()
            raise
        return writer.commit()

    def _start(
        self, stack: ExitStack, command: list[str], messages: IO[bytes], database: str | None
    ) -> subprocess.Popen[bytes]:
        environment = connect.environment(self._connection, database=database)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, env=environment)
        self._running.add(process)

        def end() -> None:
            process.kill()
            if process.stdout is not None:
                process.stdout.close()
            process.wait()
            self._running.discard(process)

        stack.callback(end)
        return process

    def _unreadable(self, what: str) -> Callable[[str], BackupError]:
        return lambda message: self._failed(f"{what} cannot be read back by pg_restore: {message}")

    def _failed(self, what: str) -> BackupError:
        return BackupError(
            what,
            where=f"PostgreSQL {self._connection.host}:{self._connection.port or 5432}",
            remedy="nothing was committed; give the backup role the right that is missing, then run it again",
        )


def _may_read_passwords(connection: Connection) -> bool:
    with connect.session(connection) as session:
        row = session.execute("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')").fetchone()
    return bool(row and row[0])
