"""Airflow as a small installation runs it: SQLite, LocalExecutor, four processes, every port on loopback.

Tasks run as the caller. What tests and the demo want of it (trigger a DAG, wait, read a log) goes through its REST API.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from lab.errors import LabError
from lab.process import Process
from lab.server import Server
from lab.web import call

_COMPONENTS = {
    "api-server": ["api-server"],
    # Logs are read from the shared disk: the log servers would listen on every address.
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}
_MIGRATE_SECONDS = 120.0
_START_SECONDS = 120.0
_PARSE_SECONDS = 60.0
# A scheduler told to stop waits for its running tasks, and the one that archives WAL never ends by itself.
_STOP_SECONDS = 5.0
_FINAL_STATES = ("success", "failed")
_POLL_SECONDS = 0.5
# Fields of a log entry that say where it comes from, which who asked for this task's log knows.
_ORIGIN = frozenset(
    ("task_id", "dag_id", "run_id", "ti_id", "map_index", "try_number", "logger", "filename", "lineno", "ti")
)


class Airflow(Server):
    """One Airflow. `env` is what its processes get: with it, `airflow` commands in a shell reach this installation."""

    def __init__(
        self,
        home: Path,
        *,
        dags_dir: Path,
        plugins_dir: Path,
        python_path: Path,
        env: Mapping[str, str] | None = None,
        name: str = "airflow",
        log: Path | None = None,
        lab_id: str | None = None,
    ) -> None:
        super().__init__(home, name=name, port=None, log=log, lab_id=lab_id)
        self.dags_dir = dags_dir.absolute()
        self.plugins_dir = plugins_dir.absolute()
        self.passwords = {user: secrets.token_urlsafe(12) for user in ("admin", "op", "viewer")}
        self.env = self._own_environment() | {"PYTHONPATH": str(python_path.absolute())} | dict(env or {})
        self._token = ""

    @property
    def address(self) -> str:
        """Where the UI and the API are."""
        return f"http://{self.host}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether all four processes live."""
        return len(self.processes) == len(_COMPONENTS) and super().running

    def start(self) -> None:
        """Migrate the database, start, and return when every component is healthy and the DAG files are parsed."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        for directory in (self.dags_dir, self.plugins_dir):
            if not directory.is_dir():
                raise LabError(f"Airflow ({self.name}): there is no directory {directory}")
        passwords = self.data_dir / "passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps(self.passwords))
        self._migrate()
        self.processes = [self._component(name, words) for name, words in _COMPONENTS.items()]
        for process in self.processes:
            process.start()
        api_server = self.processes[0]
        api_server.wait_until(
            self._probe, timeout_seconds=_START_SECONDS, not_ready=(httpx.HTTPError, _StillStartingError)
        )
        self._wait_for_dags()

    def request(self, method: str, path: str, *, body: object = None, user: str = "admin") -> httpx.Response:
        """One call of the API (`path` below /api/v2/); an error status raises LabError with the server's own words."""
        token = self.token(user) if user != "admin" or not self._token else self._token
        if user == "admin":
            self._token = token
        try:
            return call(
                method,
                f"{self.address}/api/v2/{path}",
                headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
                body=body,
            )
        except httpx.HTTPStatusError as error:
            raise LabError(
                f"Airflow ({self.name}) answers {error.response.status_code} to {method} {path}: {error.response.text}"
            ) from error

    def token(self, user: str = "admin") -> str:
        """A bearer token for one of the users in `passwords`: admin, op or viewer; it lasts a day."""
        login = {"username": user, "password": self.passwords[user]}
        return str(call("POST", f"{self.address}/auth/token", body=login).json()["access_token"])

    def trigger(self, dag_id: str, conf: Mapping[str, object] | None = None) -> str:
        """Start a run of a DAG; its run id."""
        run = {"logical_date": None, "conf": dict(conf or {})}
        return str(self.request("POST", f"dags/{dag_id}/dagRuns", body=run).json()["dag_run_id"])

    def wait(self, dag_id: str, run_id: str, *, timeout_seconds: float = 300.0) -> str:
        """The state that the run ends in, success or failed."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            state = str(self.request("GET", f"dags/{dag_id}/dagRuns/{run_id}").json()["state"])
            if state in _FINAL_STATES:
                return state
            if time.monotonic() > deadline:
                tasks = {task["task_id"]: task["state"] for task in self.task_instances(dag_id, run_id)}
                raise LabError(f"run {run_id} of {dag_id} is {state} after {timeout_seconds:.0f} s; tasks: {tasks}")
            time.sleep(_POLL_SECONDS)

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances as the API gives them (task_id, map_index, state, try_number, …)."""
        answer = self.request("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=1000").json()
        return list(answer["task_instances"])

    def task_log(
        self, dag_id: str, run_id: str, task_id: str, *, try_number: int = 1, map_index: int | None = None
    ) -> str:
        """A task's log as plain text, one message a line, with the fields that go with each."""
        place = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}?full_content=true"
        if map_index is not None:
            place += f"&map_index={map_index}"
        content = self.request("GET", place).json()["content"]
        return "\n".join(_log_lines(content))

    def import_errors(self) -> dict[str, str]:
        """DAG files that could not be imported, each with its stack trace."""
        errors = self.request("GET", "importErrors?limit=1000").json()["import_errors"]
        return {error["filename"]: error["stack_trace"] for error in errors}

    def describe(self) -> dict[str, Any]:
        """What `state.json` says about the server."""
        return super().describe() | {"address": self.address, "users": self.passwords}

    def _migrate(self) -> None:
        process = self._component("migrate", ["db", "migrate"])
        self.processes = [process]
        process.start()
        process.wait_for_exit(timeout_seconds=_MIGRATE_SECONDS)

    def _component(self, component: str, words: list[str]) -> Process:
        return Process(
            f"Airflow {component} ({self.name})",
            [sys.executable, "-m", "airflow", *words],
            log=self.log.with_name(f"{self.log.stem}-{component}.log"),
            cwd=self.data_dir,
            env=self.env,
            stop_seconds=_STOP_SECONDS,
            lab_id=self.lab_id,
        )

    def _probe(self) -> None:
        for process in self.processes:
            process.require_running()
        health = call("GET", f"{self.address}/api/v2/monitor/health", timeout_seconds=10).json()
        waiting = [part for part, answer in health.items() if answer and answer["status"] != "healthy"]
        if waiting:
            raise _StillStartingError(f"not healthy yet: {', '.join(waiting)}")

    def _wait_for_dags(self) -> None:
        """Return when each DAG file has given a DAG or an import error; a file that gives neither costs the limit."""
        expected = {str(path.relative_to(self.dags_dir)) for path in _dag_files(self.dags_dir)}
        deadline = time.monotonic() + _PARSE_SECONDS
        while time.monotonic() < deadline:
            dags = self.request("GET", "dags?limit=1000&exclude_stale=false").json()["dags"]
            if expected <= {str(dag["relative_fileloc"]) for dag in dags} | set(self.import_errors()):
                return
            time.sleep(_POLL_SECONDS)

    def _own_environment(self) -> dict[str, str]:
        scripts = str(Path(sys.executable).parent)
        settings = {
            "AIRFLOW__API__BASE_URL": self.address,
            "AIRFLOW__API__HOST": self.host,
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(48),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
            "AIRFLOW__CORE__AUTH_MANAGER": (
                "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
            ),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "false",
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags_dir),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.plugins_dir),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.data_dir / "passwords.json"),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,op:op,viewer:viewer",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "15",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.data_dir / 'airflow.db'}",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.data_dir / "logs"),
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "false",
        }
        return settings | {
            "AIRFLOW_HOME": str(self.data_dir),
            "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            # setproctitle otherwise overwrites the environment in /proc, and with it the lab's marker.
            "SPT_NOENV": "1",
        }


class _StillStartingError(Exception):
    """A component that is not healthy yet."""


def _dag_files(directory: Path) -> Iterator[Path]:
    """The files that Airflow's own heuristic takes for DAG files (core: dag_discovery_safe_mode)."""
    for path in directory.rglob("*.py"):
        text = path.read_bytes().lower()
        if b"dag" in text and b"airflow" in text:
            yield path


def _log_lines(content: list[Any]) -> Iterator[str]:
    for entry in content:
        if isinstance(entry, str):
            yield entry
            continue
        fields = {key: value for key, value in entry.items() if key not in _ORIGIN | {"timestamp", "event", "level"}}
        words = [entry.get("timestamp"), entry.get("level"), entry.get("event"), json.dumps(fields) if fields else None]
        yield " ".join(str(word) for word in words if word)
