"""The guard of one server: a small process that runs it, and ends it when the launcher goes, even by kill -9.

Run as a plain script (`python -I -S guard.py`), so it starts in milliseconds. It holds the read end of a pipe from the
launcher as standard input: a closed pipe means stop, the line `KILL` means kill. It is the subreaper of all that the
server starts, so that nothing escapes into a session of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
LAUNCHER_CHECK_SECONDS = 1.0
# A terminal or `kill` may send these to everything at once: the guard decides in which order things end.
SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)


def descendants(root: int) -> list[int]:
    """Every living process below `root`, whatever its session."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The command may hold blanks and brackets: the fields after its last bracket are state and parent.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _send(pids: list[int], signal_number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal_number)
        except (ProcessLookupError, PermissionError):
            continue


def _all_collected() -> bool:
    """Collect what has ended; whether no child is left, and so nothing at all: the guard adopts every orphan."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _wait(server: subprocess.Popen[bytes], *, seconds: float) -> bool:
    """Whether the server, and then everything that it left behind, ended in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # The server's own status belongs to its Popen object: it is collected first.
        if server.poll() is not None and _all_collected():
            return True
        time.sleep(0.02)
    return False


def _end(server: subprocess.Popen[bytes], *, stop_signal: int, stop_seconds: float) -> None:
    """Ask the server to stop, then what is left of it, then kill."""
    if server.poll() is None:
        server.send_signal(stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(stop_seconds)
    if server.poll() is not None:
        _send(descendants(os.getpid()), signal.SIGTERM)
        if _wait(server, seconds=min(stop_seconds, 2.0)):
            return
    while not _wait(server, seconds=0.5):
        _send(descendants(os.getpid()), signal.SIGKILL)


def main() -> int:
    """Run the server that the first line of standard input describes, until it ends or the launcher does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    launcher = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    order = _read_order()
    if order is None:
        return 0
    try:
        server = _start(order)
    except OSError as error:
        print(f"cannot run {order['argv'][0]}: {error}", flush=True)
        return 127
    print(server.pid, flush=True)
    try:
        return _guard(server, order, launcher=launcher)
    finally:
        for path in order["leftovers"]:
            Path(path).unlink(missing_ok=True)


def _read_order() -> dict[str, Any] | None:
    """The launcher's order; None where the launcher died before it gave one."""
    line = b""
    while not line.endswith(b"\n"):
        # Unbuffered: a buffered reader would swallow a command that select() then never reports.
        byte = os.read(0, 1)
        if not byte:
            return None
        line += byte
    order: dict[str, Any] = json.loads(line)
    return order


def _start(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    identity = {} if order["uid"] is None else {"user": order["uid"], "group": order["gid"], "extra_groups": []}
    with Path(order["log"]).open("ab") as log:
        return subprocess.Popen(
            order["argv"],
            env=order["env"],
            cwd=order["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_default_signals,
            **identity,
        )


def _guard(server: subprocess.Popen[bytes], order: dict[str, Any], *, launcher: int) -> int:
    """Wait for the server's end, or end it; the status that the guard ends with."""
    exited = os.pidfd_open(server.pid)
    while True:
        ready, _, _ = select.select([0, exited], [], [], LAUNCHER_CHECK_SECONDS)
        if exited in ready:
            code = server.wait()
            _end(server, stop_signal=signal.SIGTERM, stop_seconds=2.0)
            return code if code >= 0 else 128 - code
        if 0 in ready and os.read(0, 64).startswith(b"KILL"):
            _send([server.pid, *descendants(os.getpid())], signal.SIGKILL)
            server.wait()
            _end(server, stop_signal=signal.SIGKILL, stop_seconds=0.1)
            return 137
        # A process that the launcher forked may hold the pipe open after the launcher has died.
        if 0 in ready or os.getppid() != launcher:
            _end(server, stop_signal=order["stop_signal"], stop_seconds=order["stop_seconds"])
            return 0
        _reap_adopted(server)


def _default_signals() -> None:
    """What the guard ignores the server must not: ignored signals survive an exec."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _reap_adopted(server: subprocess.Popen[bytes]) -> None:
    """Collect adopted zombies while the server runs, without stealing the server's own exit status."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid == server.pid:
            return
        os.waitpid(ended.si_pid, 0)


if __name__ == "__main__":
    sys.exit(main())
