"""A TCP proxy that breaks connections on purpose: cuts them, slows them down, changes bytes, or passes nothing on."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from lab.ports import LOOPBACK, free_port

_PIECE = 64 * 1024

Change = Callable[[bytes], bytes]


class Proxy:
    """Listens on `port` and passes everything on to `target`. The faults are set while it runs; `cuts` counts cuts."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.cut_answers_after: int | None = None
        """Answers of more bytes than this lose their connection there."""
        self.cuts_left = 0
        self.cuts = 0
        self.bytes_per_second: float | None = None
        """The pace of each direction of each connection."""
        self.hold = False
        """While set, no byte is passed on and nothing is closed: a network that swallows everything."""
        self.refuse = False
        """While set, a new connection is closed at once."""
        self.change_request: Change = lambda data: data
        self._target = target
        self._closing = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        self._listener = socket.create_server((LOOPBACK, self.port))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """From here on nobody answers."""
        with self._lock:
            self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_connections()

    def break_connections(self) -> None:
        """As if a cable were pulled: every connection of the moment is reset."""
        with self._lock:
            current = list(self._sockets)
        for each in current:
            self._close(each)

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection((LOOPBACK, self._target))
            except OSError:
                continue
            with self._lock:
                # One that is accepted while the proxy closes must not live on.
                late = self._closing
                if not late and not self.refuse:
                    self._sockets |= {client, server}
            if late or self.refuse:
                client.close()
                server.close()
                if late:
                    return
                continue
            for forward, one, other in ((self._requests, client, server), (self._answers, server, client)):
                threading.Thread(target=self._forward, args=(forward, one, other), daemon=True).start()

    def _forward(
        self, forward: Callable[[socket.socket, socket.socket], None], one: socket.socket, other: socket.socket
    ) -> None:
        with contextlib.suppress(OSError):
            forward(one, other)
        self._close(one)
        self._close(other)

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        while data := client.recv(_PIECE):
            self._pace(data)
            server.sendall(self.change_request(data))

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        passed = 0
        while data := server.recv(_PIECE):
            limit = self.cut_answers_after
            if limit is not None and self.cuts_left and passed + len(data) > limit:
                client.sendall(data[: limit - passed])
                self.cuts_left -= 1
                self.cuts += 1
                return
            self._pace(data)
            client.sendall(data)
            passed += len(data)

    def _pace(self, data: bytes) -> None:
        if self.bytes_per_second is not None:
            time.sleep(len(data) / self.bytes_per_second)
        while self.hold:
            time.sleep(0.02)

    def _close(self, each: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(each)
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
