"""What every server of the lab has in common: it starts until it is ready, stops, can be killed, and is a context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.ports import LOOPBACK, free_port
from lab.process import Process


class Server(ABC):
    """One server on loopback, run by one guarded process or a few of them."""

    host = LOOPBACK

    def __init__(self, data_dir: Path, *, name: str, port: int | None, log: Path | None, lab_id: str | None) -> None:
        self.data_dir = data_dir.absolute()
        self.name = name
        self.port = port or free_port()
        self.log = (log or data_dir.with_name(f"{data_dir.name}.log")).absolute()
        self.lab_id = lab_id
        self.processes: list[Process] = []

    @property
    def pid(self) -> int | None:
        """The process id of the server (of the first process where it has several), while it runs."""
        return self.processes[0].pid if self.processes else None

    @property
    def running(self) -> bool:
        """Whether every process of the server lives."""
        return bool(self.processes) and all(process.running for process in self.processes)

    @abstractmethod
    def start(self) -> None:
        """Start, and return when the server is ready for its clients."""

    def stop(self) -> None:
        """Stop in the server's own orderly way; does nothing where it does not run."""
        self._each(Process.stop)

    def kill(self) -> None:
        """Crash: SIGKILL to the server and all that it started."""
        self._each(Process.kill)

    def restart(self) -> None:
        """Stop and start, on the same ports and data."""
        self.stop()
        self.start()

    def describe(self) -> dict[str, Any]:
        """What `state.json` says about the server."""
        return {
            "host": self.host,
            "port": self.port,
            "pid": self.pid,
            "data_dir": str(self.data_dir),
            "log": str(self.log),
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _each(self, end: Callable[[Process], None]) -> None:
        processes, self.processes = self.processes, []
        if len(processes) == 1:
            end(processes[0])
        elif processes:
            with ThreadPoolExecutor(max_workers=len(processes)) as pool:
                list(pool.map(end, processes))
