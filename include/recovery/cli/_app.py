"""The command's tree and its entry point."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

import recovery
from recovery.cli import _backup, _catalog, _config, _drill, _restore, _retention, _vault, _verify, _wal

app = typer.Typer(
    name="recovery",
    help="Backups of PostgreSQL and Vault that have already been restored.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for _command in (_config, _backup, _catalog, _verify, _restore, _drill, _retention, _wal, _vault):
    _command.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(recovery.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Exit status: 0 done, 1 the work failed or a check did not pass, 2 the call or the configuration is wrong."""
    # An orderly end cleans up: uploads are aborted, servers stopped, directories removed.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except SystemExit as ended:
        # As a restore_command, a wrong call must stop the recovery: PostgreSQL takes 2 for the end of WAL.
        if sys.argv[1:3] == ["wal", "fetch"] and ended.code == 2:
            sys.exit(126)
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
