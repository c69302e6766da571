"""pg_restore reading a dump from its standard input: to prove that it is whole, or to load it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Mapping

from recovery.errors import RecoveryError
from recovery.postgres.tools import Tools

READ_ONLY = ("--file=/dev/null",)
"""Read every row and keep nothing. (`--list` passes a dump that was cut in half.)"""


class PgRestore:
    """Write a dump in, then finish(); close() always. `failure` makes the error from pg_restore's first message."""

    def __init__(
        self,
        tools: Tools,
        *arguments: str,
        failure: Callable[[str], RecoveryError],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._failure = failure
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close())
        self._process = subprocess.Popen(
            [tools.path("pg_restore"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
            env=environment,
        )

    def write(self, data: bytes, /) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
        except BrokenPipeError:
            raise self._failed() from None

    def finish(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            raise self._failed() from None
        if self._process.wait() != 0:
            raise self._failed()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._messages.close()

    def _failed(self) -> RecoveryError:
        self._process.wait()
        self._messages.seek(0)
        return self._failure(first_error(self._messages.read(64 * 1024)))


def first_error(messages: bytes) -> str:
    """The first line that tells why a program of PostgreSQL failed."""
    lines = [line.strip() for line in messages.decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line.lower()), lines[-1] if lines else "it gave no message")
