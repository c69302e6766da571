"""A server process under a guard (`lab.guard`): started, watched, ended with everything that it started.

Also finds and ends the processes of a lab whose launcher and guards are gone, by the marker in their environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lab.errors import LabError
from lab.users import ServiceUser

MARKER = "RECOVERY_LAB_ID"
_GUARD = Path(__file__).with_name("guard.py")
_POLL_SECONDS = 0.05
_KILL_ALLOWANCE_SECONDS = 15.0


def new_lab_id() -> str:
    """An identity that marks every process of one lab, or of one server used alone."""
    return uuid.uuid4().hex


def marked_processes(lab_id: str) -> list[int]:
    """Living processes that carry the marker of this lab. Other users' processes are seen only by root."""
    marker = f"{MARKER}={lab_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def sweep(lab_id: str, *, patience_seconds: float = 0.0) -> None:
    """End what a crashed launcher left: first give its guards `patience_seconds` to do so, then kill."""
    deadline = time.monotonic() + patience_seconds
    while marked_processes(lab_id) and time.monotonic() < deadline:
        time.sleep(0.1)
    deadline = time.monotonic() + _KILL_ALLOWANCE_SECONDS
    while left := marked_processes(lab_id):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise LabError(f"processes of lab {lab_id} survive SIGKILL: {left}")
        time.sleep(0.1)


def log_tail(log: Path, *, lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    try:
        text = log.read_text(errors="replace")
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"


class Process:
    """One server process under its guard."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        user: ServiceUser | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_seconds: float = 10.0,
        leftovers: Sequence[Path] = (),
        lab_id: str | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self.pid: int | None = None
        self.lab_id = lab_id or new_lab_id()
        self._stop_seconds = stop_seconds
        self._guard: subprocess.Popen[bytes] | None = None
        # HOME is the server's own directory: what a server drops there is the lab's, never the caller's.
        base = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(cwd)}
        self._order = {
            "argv": [str(part) for part in argv],
            "env": base | dict(env or {}) | {MARKER: self.lab_id},
            "cwd": str(cwd),
            "log": str(log),
            "uid": user.uid if user else None,
            "gid": user.gid if user else None,
            "stop_signal": int(stop_signal),
            "stop_seconds": stop_seconds,
            # Files that the server leaves behind outside the lab's directory; its guard removes them.
            "leftovers": [str(path) for path in leftovers],
        }

    @property
    def running(self) -> bool:
        """Whether the server runs (or is being ended)."""
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        """Start the server; it may not be ready yet (`wait_until`)."""
        if self.running:
            raise LabError(f"{self.name} runs already (pid {self.pid})")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD)],
            env={MARKER: self.lab_id},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._guard = guard
        assert guard.stdin and guard.stdout
        guard.stdin.write(json.dumps(self._order).encode() + b"\n")
        guard.stdin.flush()
        answer = guard.stdout.readline().decode().strip()
        if not answer.isdigit():
            self.stop()
            raise LabError(f"{self.name}: {answer or 'its guard died at once'}")
        self.pid = int(answer)

    def wait_until(
        self, probe: Callable[[], object], *, timeout_seconds: float, not_ready: tuple[type[Exception], ...]
    ) -> None:
        """Call `probe` until it no longer raises one of `not_ready`; fail early if the server dies."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                probe()
            except not_ready as error:
                last = error
            else:
                return
            self.require_running()
            if time.monotonic() > deadline:
                tail = self._tail()
                self.stop()
                raise LabError(f"{self.name} was not ready in {timeout_seconds:.0f} s ({last}); {tail}")
            time.sleep(_POLL_SECONDS)

    def require_running(self) -> None:
        """Raise, with the end of the log, if the process has ended."""
        if not self.running:
            error = LabError(f"{self.name} has ended{self._status()}; {self._tail()}")
            self.stop()
            raise error

    def wait_for_exit(self, *, timeout_seconds: float) -> None:
        """Wait for a process that ends by itself; anything but status 0 raises."""
        if self._guard is None:
            raise LabError(f"{self.name} was not started")
        try:
            code = self._guard.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            tail = self._tail()
            self.stop()
            raise LabError(f"{self.name} did not end in {timeout_seconds:.0f} s; {tail}") from None
        stopped = self._guard is None
        self.stop()
        if stopped:
            raise LabError(f"{self.name} was stopped")
        if code:
            raise LabError(f"{self.name} failed (status {code}); {self._tail()}")

    def stop(self) -> None:
        """Stop the server in its own orderly way, and end whatever it leaves. Does nothing if it does not run."""
        self._finish(allowance_seconds=self._stop_seconds)

    def kill(self) -> None:
        """SIGKILL the server and all below it, as a crash would."""
        if self.running and self._guard and self._guard.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(b"KILL\n")
                self._guard.stdin.flush()
        self._finish(allowance_seconds=0)

    def _finish(self, *, allowance_seconds: float) -> None:
        guard, self._guard, self.pid = self._guard, None, None
        if guard is None or guard.stdin is None or guard.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.close()
        guard.stdout.close()
        try:
            guard.wait(allowance_seconds + _KILL_ALLOWANCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name}: its guard (pid {guard.pid}) could not end it; {self._tail()}") from None

    def _status(self) -> str:
        code = self._guard.poll() if self._guard else None
        return "" if code is None else f" (status {code})"

    def _tail(self) -> str:
        return f"last lines of {self.log}:\n{log_tail(self.log)}"
