"""HTTP over a Unix socket, for hvac: a client of a node that listens nowhere else."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import hvac
import requests
import requests.adapters
import urllib3
import urllib3.connection

_ADDRESS = "http+unix://sandbox"
_TIMEOUT_SECONDS = 60


def client(path: Path, token: str = "") -> hvac.Client:
    """A client of the node that listens on the socket `path`; without a token it is not logged in."""
    session = requests.Session()
    # No proxy and no ~/.netrc: neither is meant for this node.
    session.trust_env = False
    session.mount(_ADDRESS, _Adapter(path))
    made = hvac.Client(url=_ADDRESS, token=token, session=session, timeout=_TIMEOUT_SECONDS)
    # hvac takes an empty token for none given, and looks for one in the environment and in ~/.vault-token.
    made.token = token or None
    return made


class _Connection(urllib3.connection.HTTPConnection):
    def __init__(self, path: Path, *, timeout: Any) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def _new_conn(self) -> socket.socket:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            folder = os.open(self._path.parent, os.O_PATH | os.O_CLOEXEC)
            try:
                connected.settimeout(self.timeout)
                # An address holds 107 bytes, and the path may be longer.
                connected.connect(f"/proc/self/fd/{folder}/{self._path.name}")
            finally:
                os.close(folder)
        except OSError as problem:
            connected.close()
            raise urllib3.exceptions.NewConnectionError(self, problem.strerror or str(problem)) from problem
        return connected


class _Pool(urllib3.HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> _Connection:
        return _Connection(self._path, timeout=self.timeout.connect_timeout)


class _Adapter(requests.adapters.HTTPAdapter):
    """Every request goes to one socket, whatever its address says."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = _Pool(path)

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> urllib3.HTTPConnectionPool:
        return self._pool

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        return request.path_url

    def close(self) -> None:
        self._pool.close()
        super().close()
