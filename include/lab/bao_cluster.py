"""Three OpenBao nodes with Raft storage on loopback: one cluster, whose leader can be killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx

from lab.bao import OpenBao
from lab.errors import LabError

_NODES = 3
_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.05
_NO_ANSWER = (httpx.HTTPError, LabError)

_T = TypeVar("_T")


class _Node(OpenBao):
    """One of the nodes. Without a `first` it makes the cluster, otherwise it joins; `start` unseals it again."""

    def __init__(self, data_dir: Path, *, name: str, first: OpenBao | None) -> None:
        super().__init__(data_dir, name=name)
        self._first = first
        self.peers: list[OpenBao] = []

    def _make_ready(self) -> None:
        """Raises while it is sealed, or knows no leader. A standby answers 429 to sys/health."""
        if not self.request("GET", "sys/seal-status", token="")["initialized"]:
            if self._first:
                raise LabError("it has not joined yet")
            self._initialise()
        if self.request("GET", "sys/seal-status", token="")["sealed"]:
            if self._first:
                self.root_token, self.shares = self._first.root_token, self._first.shares
            self.unseal()
        self.request("GET", "sys/health?standbyok=true", token="")
        if not self.request("GET", "sys/leader", token="").get("leader_address"):
            raise LabError("it knows no leader")

    def _raft(self) -> dict[str, object]:
        return super()._raft() | {
            "retry_join": [{"leader_api_addr": peer.address} for peer in self.peers],
            # Every 10 s by default: so long would a node that joined have no vote.
            "autopilot_reconcile_interval": "200ms",
            "autopilot_update_interval": "200ms",
        }


class OpenBaoCluster:
    """A running cluster, as a context manager. `start` of a node that was killed starts and unseals it."""

    def __init__(self, folder: Path) -> None:
        first = _Node(folder / "node1", name="node1", first=None)
        names = [f"node{number}" for number in range(2, _NODES + 1)]
        nodes = [first, *(_Node(folder / name, name=name, first=first) for name in names)]
        for node in nodes:
            node.peers = [peer for peer in nodes if peer is not node]
        self.nodes: list[OpenBao] = list(nodes)

    @property
    def root_token(self) -> str:
        return self.nodes[0].root_token

    @property
    def shares(self) -> list[str]:
        """The unseal shares, the same for every node."""
        return self.nodes[0].shares

    @property
    def addresses(self) -> list[str]:
        """Every node's API address, whether it runs or not."""
        return [node.address for node in self.nodes]

    def leader(self) -> OpenBao:
        """The active node; raises LabError where there is none."""
        for node in self._answering():
            try:
                node.request("GET", "sys/health", token="")
            except _NO_ANSWER:
                continue
            return node
        raise LabError("the cluster has no leader")

    def standbys(self) -> list[OpenBao]:
        """The unsealed nodes that follow the leader."""
        leader = self.leader()
        return [node for node in self._answering() if node is not leader]

    def wait_for_leader(self) -> OpenBao:
        """The active node, when there is one: an election takes 3 to 7 s."""
        return _wait(self.leader)

    def start(self) -> None:
        """Start, initialise and unseal; return when every node has a vote."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        with ThreadPoolExecutor(max_workers=_NODES) as pool:
            list(pool.map(OpenBao.stop, self.nodes))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        first, *others = self.nodes
        first.start()
        # A node that joins waits 10 s for its vote by default.
        settings = {"server_stabilization_time": "0s", "min_quorum": _NODES}
        first.request("POST", "sys/storage/raft/autopilot/configuration", body=settings)
        with ThreadPoolExecutor(max_workers=len(others)) as pool:
            list(pool.map(OpenBao.start, others))
        _wait(self._require_votes)

    def _require_votes(self) -> None:
        answer = self.nodes[0].request("GET", "sys/storage/raft/configuration")
        servers = answer["data"]["config"]["servers"]
        if sum(server["voter"] for server in servers) < _NODES:
            raise LabError(f"not every node of the cluster has a vote: {servers}")

    def _answering(self) -> list[OpenBao]:
        found = []
        for node in self.nodes:
            if node.running:
                try:
                    node.request("GET", "sys/health?standbyok=true", token="")
                except _NO_ANSWER:
                    continue
                found.append(node)
        return found


def _wait(probe: Callable[[], _T]) -> _T:
    """What `probe` returns, once it raises no more."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return probe()
        except _NO_ANSWER as error:
            if time.monotonic() > deadline:
                raise LabError(f"{error} (for {_WAIT_SECONDS:.0f} s)") from error
        time.sleep(_POLL_SECONDS)
