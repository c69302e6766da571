"""Free loopback ports, chosen where the kernel does not choose ports for outgoing connections."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from threading import Lock

from lab.errors import LabError

LOOPBACK = "127.0.0.1"
_LOWEST = 15000
_handed_out: set[int] = set()
_lock = Lock()


def _highest() -> int:
    """Stay below the ephemeral range: a port in it may be taken by an outgoing connection before a server binds it."""
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        low = 32768
    return low if low > _LOWEST + 1000 else 65000


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that is free now, and that this process hands out only once."""
    with _lock:
        for _ in range(1000):
            port = random.SystemRandom().randrange(_LOWEST, _highest())
            if port not in _handed_out and is_free(port):
                _handed_out.add(port)
                return port
    raise LabError(f"no free port on {LOOPBACK} between {_LOWEST} and {_highest()}")
