"""What every command shares: its common options, its output, its progress, and how an error becomes an exit status."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from recovery import config
from recovery.errors import RecoveryError
from recovery.installation import Installation

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="recovery.yaml; otherwise $RECOVERY_CONFIG, else the one shipped."),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the trace of an error.")]
Identity = Annotated[
    Path | None,
    typer.Option(
        "--identity", metavar="FILE", help="The age identity that opens backups; otherwise the configured connection."
    ),
]

_LINE_SECONDS = 5.0
_PIPE_WIDTH = 10_000

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Run:
    """One call of the command."""

    json: bool
    config_file: Path | None
    identity_file: Path | None
    console: Console

    def installation(self) -> Installation:
        return Installation(config.load(self.config_file), identity_file=self.identity_file)

    def emit(self, document: Any, human: Callable[[Console], None]) -> None:
        """The result: JSON for programs, or what `human` prints."""
        if self.json:
            json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
            sys.stdout.write("\n")
        else:
            # In a pipe nothing is cut or wrapped: the next program, or a log, wants whole lines.
            human(Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH))

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """A bar on a terminal; elsewhere a line on standard error every few seconds."""
        if self.console.is_terminal and not self.json:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            with Bar(*columns, console=self.console, transient=True) as bar:
                task = bar.add_task("", total=None)
                yield lambda what, done, expected: bar.update(task, description=what, completed=done, total=expected)
        else:
            yield _Lines(self.console)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = time.monotonic() + _LINE_SECONDS

    def __call__(self, what: str, done: int, expected: int | None) -> None:
        if time.monotonic() >= self._next:
            of = f" of {size(expected)}" if expected else ""
            self._console.print(f"{what}: {size(done)}{of}", highlight=False)
            self._next = time.monotonic() + _LINE_SECONDS


@contextlib.contextmanager
def run(*, json: bool, config_file: Path | None, verbose: bool, identity_file: Path | None = None) -> Iterator[Run]:
    """Turn every RecoveryError into one line on standard error and its exit status."""
    console = Console(stderr=True)
    try:
        yield Run(json, config_file, identity_file, console)
    except RecoveryError as problem:
        for line in str(problem).splitlines():
            print(f"error: {line}", file=sys.stderr)
        if verbose:
            traceback.print_exc()
        raise typer.Exit(problem.exit_status) from None
    except KeyboardInterrupt as interruption:
        print(f"error: interrupted -> {str(interruption) or 'nothing was committed; run it again'}", file=sys.stderr)
        raise typer.Exit(130) from None


def failed(condition: bool) -> None:
    """Exit status 1 when a check did not pass."""
    if condition:
        raise typer.Exit(1)


def table(*headings: str) -> Table:
    found = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        # Only the last column wraps: an id that is cut in two cannot be copied.
        found.add_column(heading, no_wrap=place < len(headings) - 1)
    return found


def size(value: int) -> str:
    """Bytes for people, in powers of ten."""
    number = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} TB"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
