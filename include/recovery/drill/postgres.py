"""A PostgreSQL drill: restore a backup in isolation, check the result, measure, keep the evidence, clean up."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psycopg

import recovery
from recovery.connections import Connection
from recovery.drill import compare, evidence, vault
from recovery.drill.compare import Horizon, TableResult
from recovery.drill.evidence import Check, Evidence
from recovery.drill.record import Progress, Record
from recovery.drill.workplace import SOCKET, workplace
from recovery.errors import (
    ConfigurationError,
    PreconditionError,
    RecoveryError,
    RestoreError,
    SealError,
    StoreUnreachable,
)
from recovery.installation import Installation
from recovery.postgres import connect, owner, restore, tools
from recovery.postgres.server import SandboxServer
from recovery.repository import catalog
from recovery.repository.catalog import Backup
from recovery.repository.store import ObjectStore
from recovery.repository.verify import Verdict, worst


def drill(
    installation: Installation,
    name: str,
    backup: Backup,
    *,
    together: bool = False,
    snapshot: str | None = None,
    progress: Progress = lambda what, done, expected: None,
) -> Evidence:
    """Prove one full or incremental backup and store the evidence, whatever the outcome.

    `together`: as a recovery set, with the fitting snapshot of the Vault that holds the keys of its rows, or with the
    one whose id is `snapshot`. A backup that cannot
    be restored gives evidence with verdict `failed`; a store, a key, a program or disk space that is not at hand gives
    `unknown`. Raises only what keeps evidence from being written, and ConfigurationError.
    """
    record = Record(progress)
    half = vault.half_of(installation, name, backup, snapshot=snapshot) if together else None
    run = _Run(installation, name, backup, record, half)
    with workplace(installation, f"{name}-{run.id}") as folder:
        try:
            run.restore_and_check(folder)
        except ConfigurationError:
            raise
        except (StoreUnreachable, SealError, PreconditionError) as problem:
            record.checks.append(Check("restore", Verdict.UNKNOWN, str(problem)))
        except (RecoveryError, psycopg.Error) as problem:
            record.checks.append(Check("restore", Verdict.FAILED, " ".join(str(problem).split())))
    found = run.evidence()
    evidence.write(installation.store_of(name), found)
    return found


@dataclass
class _Run:
    installation: Installation
    name: str
    backup: Backup
    record: Record
    half: vault.Half | None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex[:6])
    tables: list[TableResult] = field(default_factory=list)
    fetched_bytes: int = 0
    rto_seconds: float | None = None

    @property
    def id(self) -> str:
        return f"{self.started:%Y%m%dT%H%M%SZ}-{self.name}-drill-{self.nonce}"

    @property
    def progress(self) -> Progress:
        return self.record.progress

    def restore_and_check(self, folder: Path) -> None:
        begun = time.monotonic()
        settings = self.installation.configuration.postgres_system(self.name)
        found = self.backup.manifest
        store = self.installation.store_of(self.name)
        with self.record.phase("plan"):
            chain = self._chain(store)
            programs = tools.find(found.server.major, configured=settings.tools)
            user = owner.choose(self.installation.configuration.sandbox.user)
            places = restore.place_tablespaces(found, {}, below=folder / "tablespaces")
            identities = self.installation.identities()
        with self.record.phase("fetch"):
            restored = restore.restore_base(
                store,
                chain,
                folder / "data",
                identities=identities,
                tablespaces=places,
                tools=programs,
                owner=user,
                tick=lambda done, expected: self.progress("fetch", done, expected),
            )
            self.fetched_bytes = restored.fetched_bytes
        verified = time.monotonic()
        self._check_files(restored.pgdata, programs)
        checking = time.monotonic() - verified
        with (
            self.record.phase("start"),
            contextlib.ExitStack() as stack,
        ):
            server = stack.enter_context(
                SandboxServer(
                    restored.pgdata,
                    tools=programs,
                    superuser=found.server.superuser,
                    owner=user,
                    preload=settings.preload,
                )
            )
            # Where the next drill finds it, if this one is killed.
            (folder / SOCKET).symlink_to(server.socket_folder)
            keep = stack.pop_all()
        with keep:
            if self.half is not None:
                keep.enter_context(self.half.restored(folder / "vault", self.record))
            # What a recovery under pressure would wait for: everything but the extra reading of every file.
            self.rto_seconds = round(time.monotonic() - begun - checking, 3)
            with server.connect("template1") as session:
                horizon = Horizon.read(session)
            self._compare(server, horizon)
            self._amcheck(server, programs)
            if self.half is not None:
                self.half.check(server, self.record)

    def _chain(self, store: ObjectStore) -> tuple[Backup, ...]:
        """A gap in it is no circumstance but a verdict: this backup cannot be restored."""
        try:
            return catalog.read(store, self.name).chain(self.backup)
        except PreconditionError as problem:
            raise RestoreError(problem.what, where=problem.where, remedy=problem.remedy) from None

    def evidence(self) -> Evidence:
        objective = self.installation.configuration.postgres_system(self.name).objectives.rto
        checks = list(self.record.checks)
        if objective is not None and self.rto_seconds is not None:
            met = self.rto_seconds <= objective.total_seconds()
            detail = f"{self.rto_seconds:.1f} s, objective {objective.total_seconds():.0f} s"
            checks.append(Check("rto objective", Verdict.OK if met else Verdict.FAILED, detail))
        manifest = self.backup.manifest
        return Evidence(
            id=self.id,
            kind="set" if self.half else "postgres",
            system=self.name,
            backup=self.backup.id,
            recovery_point=manifest.recovery_point,
            started_at=self.started,
            finished_at=datetime.now(UTC),
            verdict=worst(check.verdict for check in checks),
            rpo_seconds=round((self.started - manifest.recovery_point).total_seconds(), 3),
            rto_seconds=self.rto_seconds,
            rto_objective_seconds=objective.total_seconds() if objective else None,
            fetched_bytes=self.fetched_bytes,
            restored_bytes=manifest.restored_bytes,
            phases=tuple(self.record.phases),
            checks=tuple(checks),
            tables=tuple(self.tables),
            vault=self.half.name if self.half else None,
            snapshot=self.half.snapshot.id if self.half and self.half.snapshot else None,
            loose=tuple(self.half.loose) if self.half else (),
            recovery_version=recovery.__version__,
            host=socket.gethostname(),
        )

    def _check_files(self, pgdata: Path, programs: tools.Tools) -> None:
        """Every file against the server's own manifest (pg_verifybackup; its WAL is replayed anyhow)."""
        with self.record.phase("files"):
            command = [
                programs.path("pg_verifybackup"),
                "--no-parse-wal",
                "--quiet",
                "--ignore=tablespace_map",
                "--ignore=standby.signal",
                str(pgdata),
            ]
            self.record.checks.append(_program_check("pg_verifybackup", command, {"PATH": os.environ.get("PATH", "")}))

    def _amcheck(self, server: SandboxServer, programs: tools.Tools) -> None:
        with self.record.phase("amcheck"):
            command = [programs.path("pg_amcheck"), "--all", "--install-missing", "--heapallindexed", "--jobs=2"]
            self.record.checks.append(_program_check("pg_amcheck", command, server.environment()))

    def _compare(self, server: SandboxServer, horizon: Horizon) -> None:
        with self.record.phase("compare"):
            try:
                with self._reader() as source:
                    for database in self.backup.manifest.server.databases:
                        self.progress(f"compare {database.name}", 0, None)
                        with (
                            connect.connect(source, database=database.name) as theirs,
                            server.connect(database.name) as ours,
                        ):
                            self.tables += compare.compare_database(database.name, theirs, ours, horizon)
            except (RecoveryError, psycopg.Error) as problem:
                text = " ".join(str(problem).split())
                self.record.checks.append(Check("rows", Verdict.UNKNOWN, f"the rows could not be compared: {text}"))
                return
            self.record.checks.append(_rows_check(self.tables))

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Connection]:
        """Who reads the source's rows."""
        reader = self.installation.configuration.postgres_system(self.name).drill.source
        if reader is not None:
            yield self.installation.connection(reader)
        else:
            with self.installation.source(self.name).logged_in() as source:
                yield source.connection


def _rows_check(tables: list[TableResult]) -> Check:
    rows, moved = sum(table.rows for table in tables), sum(table.moved for table in tables)
    wrong = [f"{table.database} {table.table}: {table.detail}" for table in tables if table.verdict is not Verdict.OK]
    detail = "; ".join(wrong) or f"{rows} rows in {len(tables)} tables equal; {moved} rows moved on the source since"
    return Check("rows", worst(table.verdict for table in tables), detail)


def _program_check(name: str, command: list[str], environment: dict[str, str]) -> Check:
    """Exit status 0 is ok; 1 with findings or 2 is failed (pg_amcheck: 2, pg_verifybackup: 1)."""
    answer = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
    )
    if answer.returncode == 0:
        return Check(name, Verdict.OK, "no finding")
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.strip()]
    return Check(name, Verdict.FAILED, " / ".join(lines[:3]) or f"exit status {answer.returncode}")
