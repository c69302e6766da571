"""`recovery wal stream|audit|fetch`."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from recovery import config
from recovery.cli._run import ConfigFile, Identity, Json, Verbose, failed, run, size
from recovery.errors import ConfigurationError, PreconditionError
from recovery.installation import Installation
from recovery.postgres.wal import ahead as aheads
from recovery.postgres.wal import audit as audits
from recovery.postgres.wal import fetch as fetches
from recovery.postgres.wal import stream as streams
from recovery.postgres.wal.positions import format_lsn
from recovery.postgres.wal.receiver import Progress
from recovery.repository.verify import Level

Name = Annotated[str, typer.Argument(help="The system, as recovery.yaml names it.")]
_LINE_SECONDS = 5.0


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Continuous WAL: stream it, check it, give it back.", no_args_is_help=True)
    group.command("stream")(stream)
    group.command("audit")(audit)
    group.command("fetch")(fetch)
    app.add_typer(group, name="wal")


def stream(
    name: Name,
    duration: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="Hand over after this long (30m, 2h); else stream on.")
    ] = None,
    config_file: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Receive a system's WAL and store it as it is written; Ctrl-C stores what has come, and ends."""
    with run(json=json, config_file=config_file, verbose=verbose) as call:
        lines = _Lines(call.console)
        with _Stop(_parse(duration)) as stop:
            outcome = streams.stream(lambda: call.installation().source(name), stop=stop.wanted, tick=lines.show)
        document = {
            "system": name,
            "timeline": outcome.progress.timeline,
            "stored_lsn": format_lsn(outcome.progress.stored),
            "bytes_stored": outcome.progress.bytes_stored,
            "reconnects": outcome.reconnects,
            "gaps": [str(gap) for gap in outcome.gaps],
        }

        def human(console: Console) -> None:
            done = outcome.progress
            console.print(
                f"stored up to {format_lsn(done.stored)} on timeline {done.timeline}: {size(done.bytes_stored)}",
                highlight=False,
                soft_wrap=True,
            )
            for gap in outcome.gaps:
                console.print(f"gap: {gap}", highlight=False, soft_wrap=True)

        call.emit(document, human)
        failed(bool(outcome.gaps))


def audit(
    name: Name,
    level: Annotated[
        Level, typer.Option(help="exists: the listing; checksum: read everything; opens: unseal it, which needs a key.")
    ] = Level.EXISTS,
    config_file: ConfigFile = None,
    identity: Identity = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Walk the stored WAL: gaps, what does not belong, what cannot be read, and the windows that can be restored."""
    with run(json=json, config_file=config_file, identity_file=identity, verbose=verbose) as call:
        installation = call.installation()
        identities = installation.identities() if level is Level.OPENS else ()
        with call.progress() as progress:
            reports = audits.audit(
                installation.store_of(name),
                name,
                level,
                identities=identities,
                tick=lambda done, expected: progress("segments", done, expected),
            )
        call.emit(
            {
                "system": name,
                "findings": [
                    {"verdict": str(item.verdict), "timeline": item.timeline, "what": item.what}
                    for report in reports
                    for item in report.findings
                ],
                "windows": [window.document() for report in reports for window in report.windows],
                "clusters": [report.document() for report in reports],
            },
            lambda console: _print_audit(console, reports),
        )
        failed(any(report.findings for report in reports))


def _print_audit(console: Console, reports: list[audits.Report]) -> None:
    if not reports:
        console.print("no WAL is stored", highlight=False)
    for report in reports:
        console.print(
            f"cluster {report.system_identifier}: {report.segments} segments, {size(report.stored_bytes)}",
            highlight=False,
            soft_wrap=True,
        )
        for window in report.windows:
            console.print(f"  window   {window}", highlight=False, soft_wrap=True)
        for finding in report.findings:
            console.print(f"  {finding.verdict}   {finding.what}", highlight=False, soft_wrap=True)


_NOT_HERE, _STOP_RECOVERY = 1, 126
_PATIENCE_SECONDS = 300.0


def fetch(
    name: Name,
    file: Annotated[str, typer.Argument(metavar="%f", help="The file that the server asks for.")],
    path: Annotated[Path, typer.Argument(metavar="%p", help="Where it wants it.")],
    ahead: Annotated[
        int, typer.Option(min=1, max=128, help="How many segments to fetch in all when one has to be; 1: no others.")
    ] = 8,
    spool: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the spool for those is made; otherwise the directory of temporary files."
        ),
    ] = None,
    config_file: ConfigFile = None,
    identity: Identity = None,
    verbose: Verbose = False,
) -> None:
    """Serve as `restore_command`: exit status 0 fetched, 1 not stored, 126 could not be told, which stops recovery.

    PostgreSQL takes a status above 125 as a reason to stop, and any other one as the end of WAL (manual, 26.3.5).
    """
    # The server ends its commands with SIGTERM, and takes a death by it for no failure.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @cache
    def source() -> fetches.Source:
        installation = Installation(config.load(config_file), identity_file=identity)
        return fetches.Source(installation.store_of(name), name, installation.identities(), Path.cwd())

    try:
        with _spool(name, ahead, spool or Path(os.environ.get("TMPDIR") or "/tmp")) as opened:
            found = aheads.fetch(
                source,
                file,
                path,
                spool=opened,
                ahead=ahead,
                patience_seconds=_PATIENCE_SECONDS,
                warn=_warn,
            )
    except (Exception, KeyboardInterrupt) as problem:
        # Whatever it was, it is not the end of WAL: the server would open for writing, without what follows.
        print(f"error: {str(problem) or type(problem).__name__}", file=sys.stderr)
        if verbose:
            traceback.print_exc()
        raise typer.Exit(_STOP_RECOVERY) from None
    if not found:
        raise typer.Exit(_NOT_HERE)


@contextmanager
def _spool(name: str, ahead: int, parent: Path) -> Iterator[aheads.Spool | None]:
    """None where there is nothing to fetch ahead for, or where it cannot be: that is no reason to stop a recovery."""
    pgdata = Path.cwd()
    identifier = fetches.system_identifier(pgdata) if ahead > 1 else None
    with ExitStack() as stack:
        spool = None
        if identifier is not None:
            try:
                spool = stack.enter_context(aheads.spool_of(parent, name, pgdata, identifier))
            except PreconditionError as problem:
                _warn(problem)
        yield spool


def _warn(problem: PreconditionError) -> None:
    print(f"warning: {problem}", file=sys.stderr)


class _Stop:
    """At the end of the time, or at the first SIGINT or SIGTERM. A second one ends the process at once."""

    def __init__(self, duration: timedelta | None) -> None:
        self._deadline = time.monotonic() + duration.total_seconds() if duration else None
        self._asked = False

    def __enter__(self) -> _Stop:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wanted(self) -> bool:
        return self._asked or (self._deadline is not None and time.monotonic() >= self._deadline)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            os.write(2, b"error: interrupted -> what was not stored yet stays with the server\n")
            os._exit(130)
        self._asked = True


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console, self._next = console, 0.0

    def show(self, progress: Progress) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_SECONDS
            behind = max(0, progress.server - progress.stored)
            self._console.print(
                f"timeline {progress.timeline}: stored up to {format_lsn(progress.stored)}, {size(behind)} to go",
                highlight=False,
            )


def _parse(text: str | None) -> timedelta | None:
    if text is None:
        return None
    try:
        return config.parse_duration(text)
    except ValueError as problem:
        raise ConfigurationError(f"--for {text!r} is {problem}", remedy="as in --for 30m") from None
