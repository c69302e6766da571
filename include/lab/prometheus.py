"""A Prometheus server on loopback that scrapes itself and whatever target files are put into its directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from lab.binaries import program
from lab.errors import LabError
from lab.process import Process
from lab.server import Server
from lab.web import call

_START_SECONDS = 30.0
_STOP_SECONDS = 5.0


class Prometheus(Server):
    """One Prometheus. `targets_dir` takes file_sd JSON files, found within seconds; `rules_dir` rules, by `reload`."""

    def __init__(
        self, data_dir: Path, *, name: str = "prometheus", log: Path | None = None, lab_id: str | None = None
    ) -> None:
        super().__init__(data_dir, name=name, port=None, log=log, lab_id=lab_id)
        self.targets_dir = self.data_dir / "targets"
        self.rules_dir = self.data_dir / "rules"

    @property
    def address(self) -> str:
        """The server's address."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start, and return when it answers queries."""
        binary = program("prometheus", remedy="apt-get install --no-install-recommends prometheus")
        self.targets_dir.mkdir(parents=True, exist_ok=True)
        self.rules_dir.mkdir(exist_ok=True)
        config = self.data_dir / "prometheus.json"
        # JSON is YAML.
        config.write_text(json.dumps(self._config(), indent=2))
        process = Process(
            f"Prometheus ({self.name})",
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={self.data_dir / 'data'}",
                f"--web.listen-address={self.host}:{self.port}",
                "--web.enable-lifecycle",
            ],
            log=self.log,
            cwd=self.data_dir,
            stop_seconds=_STOP_SECONDS,
            lab_id=self.lab_id,
        )
        self.processes = [process]
        process.start()
        process.wait_until(
            lambda: call("GET", f"{self.address}/-/ready"), timeout_seconds=_START_SECONDS, not_ready=(httpx.HTTPError,)
        )

    def add_target(self, job: str, address: str, **labels: str) -> None:
        """Scrape `address` (host:port) from now on; the same job again replaces its target."""
        target = {"targets": [address], "labels": {"job": job, **labels}}
        (self.targets_dir / f"{job}.json").write_text(json.dumps([target]))

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that a PromQL expression gives now, as the API describes them (metric, value)."""
        answer = call("GET", f"{self.address}/api/v1/query?{urlencode({'query': expression})}").json()
        return list(answer["data"]["result"])

    def reload(self) -> None:
        """Read the rules again; what is wrong in them is in the log and in the error."""
        try:
            call("POST", f"{self.address}/-/reload")
        except httpx.HTTPStatusError as error:
            raise LabError(
                f"Prometheus ({self.name}) refuses its configuration: {error.response.text.strip()}"
            ) from error

    def describe(self) -> dict[str, Any]:
        """What `state.json` says about the server."""
        own = {"address": self.address, "targets_dir": str(self.targets_dir), "rules_dir": str(self.rules_dir)}
        return super().describe() | own

    def _config(self) -> dict[str, object]:
        own = f"{self.host}:{self.port}"
        return {
            "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
            "rule_files": [str(self.rules_dir / "*.yaml")],
            "scrape_configs": [
                {"job_name": "prometheus", "static_configs": [{"targets": [own]}]},
                {
                    "job_name": "files",
                    "file_sd_configs": [{"files": [str(self.targets_dir / "*.json")], "refresh_interval": "5s"}],
                },
            ],
        }
