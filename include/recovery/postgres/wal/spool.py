"""Gives a recovering server its WAL: fetched ahead, several files at once, handed over when it asks.

The server's restore_command is a small shell script. It asks by making NAME.want in the spool and waits for NAME, for
NAME.absent, or for `failed`. No secret and no program of ours runs as the server's user. A file appears under its name
only when it is whole: a prefetch can never race the recovery.
"""

from __future__ import annotations

import shlex
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from recovery.postgres.owner import Owner, give
from recovery.postgres.wal.archive import Archive

_AHEAD = 8
_SIDE_BY_SIDE = 4
_LOOK_SECONDS = 0.01
_SCRIPT = """#!/bin/sh
# Written by recovery; the process that started this server puts the files here.
cd {folder} || exit 126
: > "$1.want" || exit 126
while :; do
  if [ -e "$1" ]; then mv "$1" "$2" && rm -f "$1.want" && exit 0; exit 126; fi
  if [ -e "$1.absent" ]; then rm -f "$1.want" "$1.absent"; exit 1; fi
  if [ -e failed ]; then exit 126; fi
  sleep 0.01
done
"""


class Spool:
    """Open while the server recovers. `expected` are the segments' names in the order in which it will ask for them."""

    def __init__(
        self,
        folder: Path,
        archive: Archive,
        expected: Sequence[str],
        *,
        identities: Sequence[Any],
        owner: Owner | None,
    ) -> None:
        self.folder = folder
        self.failure: BaseException | None = None
        self._archive, self._identities, self._owner = archive, identities, owner
        self._places = {name: place for place, name in enumerate(expected)}
        self._expected = list(expected)
        self._begun: dict[str, Future[None]] = {}
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="wal spool", daemon=True)

    @property
    def restore_command(self) -> str:
        # The server runs it in its data directory, and %p is relative to that.
        return f'sh {shlex.quote(str(self._script))} "%f" "$PWD/%p"'

    def __enter__(self) -> Spool:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700)
        self._script.write_text(_SCRIPT.format(folder=shlex.quote(str(self.folder))))
        self._script.chmod(0o500)
        give(self._script, self._owner)
        give(self.folder, self._owner)
        self._workers = ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="wal fetch")
        self._fetch_from(0)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watcher.join()
        self._workers.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _script(self) -> Path:
        return self.folder / "fetch"

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            for request in self.folder.glob("*.want"):
                name = request.name.removesuffix(".want")
                if not self._under_way(name):
                    self._submit(name)
                if name in self._places:
                    self._fetch_from(self._places[name])

    def _fetch_from(self, place: int) -> None:
        for name in self._expected[place : place + _AHEAD]:
            if name not in self._begun:
                self._submit(name)

    def _under_way(self, name: str) -> bool:
        """Being fetched, or answered and not taken yet. What was taken may be asked for again."""
        begun = self._begun.get(name)
        answers = (self.folder / name, self.folder / f"{name}.absent")
        return begun is not None and (not begun.done() or any(path.exists() for path in answers))

    def _submit(self, name: str) -> None:
        self._begun[name] = self._workers.submit(self._fetch, name)

    def _fetch(self, name: str) -> None:
        try:
            data = self._archive.read_file(name, identities=self._identities)
        except BaseException as problem:
            # Whatever it was, the server must not wait for ever.
            self.failure = self.failure or problem
            self._publish("failed", b"")
            return
        self._publish(name if data is not None else f"{name}.absent", data or b"")

    def _publish(self, name: str, data: bytes) -> None:
        temporary = self.folder / f".{name}"
        temporary.write_bytes(data)
        temporary.chmod(0o600)
        give(temporary, self._owner)
        temporary.rename(self.folder / name)
