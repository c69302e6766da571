"""What the kernel says of processes: the tree below one, and how much of the machine others were using meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass
class Foreign:
    """The share of all cores that went to processes other than this one and its descendants; known after the block."""

    share: float = 0.0


@contextmanager
def foreign_load() -> Iterator[Foreign]:
    """Measure what others use while the block runs (the servers are descendants of this process)."""
    found = Foreign()
    begun, busy, own = time.monotonic(), _busy_seconds(), _own_seconds()
    yield found
    elapsed = time.monotonic() - begun
    used = (_busy_seconds() - busy) - (_own_seconds() - own)
    found.share = max(0.0, used / elapsed / (os.cpu_count() or 1))


def tree(root: int) -> list[int]:
    """The living processes from `root` down."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        try:
            for task in (_PROC / str(pid) / "task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def status_bytes(pid: int | str, field: str) -> int:
    """A size in /proc/PID/status, as VmHWM or VmRSS; 0 for a process that is gone."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def files_written(pid: int) -> dict[str, int]:
    """The regular files that a process holds open for writing, and their sizes; files without a name too."""
    found = {}
    try:
        descriptors = list((_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return {}
    for descriptor in descriptors:
        try:
            path = str(descriptor.readlink())
            flags = (_PROC / str(pid) / "fdinfo" / descriptor.name).read_text().split("flags:")[1].split()[0]
            if path.startswith("/") and not path.startswith(("/dev/", "/proc/")) and int(flags, 8) & os.O_ACCMODE:
                found[path] = descriptor.stat().st_size
        except (OSError, IndexError):
            continue
    return found


def _busy_seconds() -> float:
    """All cores, without idling and waiting for a disk (proc_stat(5))."""
    values = [int(value) for value in (_PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(values) - values[3] - values[4]) / _TICKS


def _own_seconds() -> float:
    """This process's and its living descendants' time, with that of the children they have waited for."""
    total = 0
    for pid in tree(os.getpid()):
        try:
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(value) for value in fields[11:15])
    return total / _TICKS
