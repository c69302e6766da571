"""The whole lab: App038's servers, the repository's, and Airflow, started side by side in one directory."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from lab import app038
from lab.airflow import Airflow
from lab.bao import OpenBao
from lab.clients import BUCKET, SHARES_FILE, configuration, environment, key_pair
from lab.directory import REPOSITORY, LabDirectory
from lab.errors import LabError
from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from lab.process import log_tail, new_lab_id, sweep
from lab.prometheus import Prometheus
from lab.server import Server


def _quiet(line: str) -> None:
    """Report no progress."""


class Lab:
    """A running lab, as a context manager. A part that was not asked for is None; `env` is what clients need."""

    def __init__(
        self,
        root: Path,
        *,
        size_mb: int = 300,
        airflow: bool = True,
        vault: bool = True,
        prometheus: bool = True,
        staging: bool = True,
        progress: Callable[[str], None] = _quiet,
    ) -> None:
        self.directory = LabDirectory(root)
        self.root = self.directory.root
        self.id = new_lab_id()
        self.size_mb = size_mb
        self.ready_seconds: float | None = None
        self._progress = progress
        self.app038 = self._postgres(
            "app038", settings=app038.SETTINGS, roles=("app038", "reporting", "backup", "canary")
        )
        self.staging = self._postgres("staging") if staging else None
        self.objects = SeaweedFS(self.root / "objects", log=self._log("objects"), lab_id=self.id)
        self.vault = self._bao() if vault else None
        self.prometheus = (
            Prometheus(self.root / "prometheus", log=self._log("prometheus"), lab_id=self.id) if prometheus else None
        )
        self.load = app038.Load(self.app038.dsn(app038.DATABASE, user="app038"))
        self.identity, self.recipient = key_pair()
        self.env = environment(self)
        self.airflow: Airflow | None = None
        if airflow:
            self.airflow = Airflow(
                self.root / "airflow",
                dags_dir=REPOSITORY / "dags",
                plugins_dir=REPOSITORY / "plugins",
                python_path=REPOSITORY / "include",
                env=self.env,
                log=self._log("airflow"),
                lab_id=self.id,
            )
            self.env = self.airflow.env

    @property
    def servers(self) -> list[Server]:
        """Every server of this lab."""
        parts: list[Server | None] = [
            self.app038,
            self.staging,
            self.objects,
            self.vault,
            self.prometheus,
            self.airflow,
        ]
        return [part for part in parts if part]

    @property
    def vault_token(self) -> str:
        """A new token of the identity that makes the Vault's backups."""
        if self.vault is None:
            raise LabError("this lab has no Vault")
        return self.vault.log_in(app038.BACKUP_APPROLE)

    def start(self) -> None:
        """Start everything at once; return when all of it is ready. AlreadyRunningError where the lab is up."""
        begun = time.monotonic()
        self.directory.acquire()
        try:
            (self.root / "logs").mkdir()
            self._write_files()
            self._start_parts()
            self.load.start()
            self.ready_seconds = time.monotonic() - begun
            self._write_state()
        except BaseException:
            self.stop()
            raise
        self._progress(f"ready in {self.ready_seconds:.1f} s")

    def stop(self) -> None:
        """Stop everything, and make sure that nothing is left."""
        self.load.stop()
        self._stop_parts()
        sweep(self.id)
        (self.root / SHARES_FILE).unlink(missing_ok=True)
        self.directory.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_parts(self) -> None:
        starters: dict[str, Callable[[], None]] = {
            # Airflow first: it takes longest.
            **({"airflow": self._start_airflow} if self.airflow else {}),
            "app038": self._start_app038,
            "objects": self._start_objects,
            **({"vault": self._start_vault} if self.vault else {}),
            **({"staging": self.staging.start} if self.staging else {}),
            **({"prometheus": self.prometheus.start} if self.prometheus else {}),
        }
        pool = ThreadPoolExecutor(max_workers=len(starters) + 1, thread_name_prefix="lab-start")
        futures = {name: pool.submit(self._timed, name, starter) for name, starter in starters.items()}
        if self.vault:
            futures["secrets"] = pool.submit(self._fill_vault, self.vault, after=[futures["app038"], futures["vault"]])
        try:
            # The first failure ends the start, whichever part it is of.
            for future in wait(futures.values(), return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            self._abandon(list(futures.values()))
            raise
        finally:
            pool.shutdown()

    def _abandon(self, futures: list[Future[None]]) -> None:
        """End every server again and again, as a start under way may just be starting another process."""
        for future in futures:
            future.cancel()
        while wait(futures, timeout=0.2).not_done:
            self._stop_parts()

    def _stop_parts(self) -> None:
        # Airflow's tasks are clients of all the others.
        if self.airflow:
            self.airflow.stop()
        with ThreadPoolExecutor(max_workers=len(self.servers)) as pool:
            for stopped in [pool.submit(server.stop) for server in self.servers]:
                stopped.result()

    def _timed(self, name: str, starter: Callable[[], None], *, done: str = "ready") -> None:
        begun = time.monotonic()
        server = next(server for server in self.servers if server.name == name)
        try:
            starter()
        except (psycopg.Error, httpx.HTTPError, BotoCoreError, ClientError, OSError) as error:
            raise LabError(f"{name}: {error}; last lines of {server.log}:\n{log_tail(server.log)}") from error
        self._progress(f"{name} {done} in {time.monotonic() - begun:.1f} s: {server.host}:{server.port}")

    def _start_airflow(self) -> None:
        if self.airflow:
            self.airflow.start()
            for file, trace in self.airflow.import_errors().items():
                self._progress(f"airflow cannot import {file}: {trace.strip().splitlines()[-1]}")

    def _start_app038(self) -> None:
        self.app038.start()
        app038.create(self.app038)
        if self.size_mb:
            app038.fill(self.app038.dsn(app038.DATABASE), self.size_mb)

    def _start_objects(self) -> None:
        self.objects.start()
        self.objects.create_bucket(BUCKET, object_lock=True)

    def _start_vault(self) -> None:
        if self.vault:
            self.vault.start()
            self.directory.write_private(SHARES_FILE, "".join(f"{share}\n" for share in self.vault.shares))

    def _fill_vault(self, vault: OpenBao, *, after: list[Future[None]]) -> None:
        for started in after:
            started.result()
        self._timed("vault", lambda: app038.fill_vault(vault, self.app038), done="filled")

    def _bao(self) -> OpenBao:
        # Known before it runs, as PostgreSQL's are.
        passwords = {app038.BACKUP_APPROLE: secrets.token_urlsafe(18)}
        return OpenBao(self.root / "vault", passwords=passwords, log=self._log("vault"), lab_id=self.id)

    def _postgres(
        self, name: str, *, settings: dict[str, str] | None = None, roles: tuple[str, ...] = ()
    ) -> PostgresServer:
        return PostgresServer(
            self.root / "postgres" / name,
            name=name,
            settings=settings,
            # Known before the server runs: other parts start with them at the same time.
            passwords={role: secrets.token_urlsafe(18) for role in roles},
            log=self._log(name),
            lab_id=self.id,
        )

    def _log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def _write_files(self) -> None:
        self._write_state()
        self.directory.write_private("recovery.yaml", yaml.safe_dump(configuration(self), sort_keys=False))
        self.directory.write_private("env.json", json.dumps(self.env, indent=2) + "\n")
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in self.env.items()]
        self.directory.write_private("env", "".join(lines))

    def _write_state(self) -> None:
        state: dict[str, Any] = {
            "version": 1,
            "id": self.id,
            "pid": os.getpid(),
            "ready_seconds": self.ready_seconds,
            "bucket": BUCKET,
            "servers": {server.name: server.describe() for server in self.servers},
        }
        self.directory.write_private("state.json", json.dumps(state, indent=2) + "\n")
