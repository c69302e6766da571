"""The lab's command line: up, demo, down, status, env. Progress goes to standard error."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab.directory import LabDirectory, default_root
from lab.errors import AlreadyRunningError, LabError
from lab.process import log_tail

if TYPE_CHECKING:
    from lab.system import Lab

app = typer.Typer(
    help="A real system on one machine: PostgreSQL, S3, OpenBao, Prometheus and Airflow on loopback, in .lab/.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Root = Annotated[Path | None, typer.Option("--root", help="The lab's directory.", show_default=".lab")]
_DOWN_SECONDS = 60.0


def _say(line: str) -> None:
    print(f"lab: {line}", file=sys.stderr, flush=True)


def _end_on_signals() -> None:
    """End in order for each of them; a shell starts a background job with SIGINT ignored, and Python leaves it so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def _directory(root: Path | None) -> LabDirectory:
    return LabDirectory(root or default_root())


@app.command()
def up(
    *,
    root: Root = None,
    size_mb: Annotated[int, typer.Option(help="Size of App038's database.", min=0)] = 300,
    airflow: Annotated[bool, typer.Option(help="Start Airflow.")] = True,
    vault: Annotated[bool, typer.Option(help="Start OpenBao.")] = True,
    prometheus: Annotated[bool, typer.Option(help="Start Prometheus.")] = True,
    staging: Annotated[bool, typer.Option(help="Start the staging PostgreSQL.")] = True,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the lab is ready; `down` ends it.")] = False,
) -> None:
    """Start the lab with fresh data. Without --detach it ends with Ctrl-C."""
    from lab.system import Lab

    try:
        directory = _directory(root)
        if detach:
            parts = {"airflow": airflow, "vault": vault, "prometheus": prometheus, "staging": staging}
            _detach(directory, [f"--size-mb={size_mb}", *(f"--no-{part}" for part, on in parts.items() if not on)])
            return
        _end_on_signals()
        with Lab(
            directory.root,
            size_mb=size_mb,
            airflow=airflow,
            vault=vault,
            prometheus=prometheus,
            staging=staging,
            progress=_say,
        ) as lab:
            _say(f'up at {lab.root}; `eval "$(python -m lab env)"` sets a shell up for it')
            _watch(lab)
    except AlreadyRunningError as running:
        _say(str(running))
    except LabError as error:
        _say(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _say("ended")


@app.command()
def demo(
    *,
    root: Root = None,
    size_mb: Annotated[int, typer.Option(help="Size of App038's database.", min=1)] = 300,
) -> None:
    """Back up App038 through Airflow, prove a restore equal, then drop a table and bring it back."""
    from lab.demo import run

    try:
        directory = _directory(root)
        _end_on_signals()
        status = run(directory.root, size_mb=size_mb, say=_say)
    except (AlreadyRunningError, LabError) as error:
        _say(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _say("ended")
        raise typer.Exit(130) from None
    raise typer.Exit(status)


@app.command()
def down(*, root: Root = None) -> None:
    """End the lab, or what a killed launcher left of it."""
    directory = _directory(root)
    pid = directory.state().get("pid")
    try:
        if directory.running and pid:
            os.kill(pid, signal.SIGTERM)
            if not _gone(pid, seconds=_DOWN_SECONDS):
                os.kill(pid, signal.SIGKILL)
                _gone(pid, seconds=_DOWN_SECONDS)
        elif not pid:
            _say(f"no lab is running at {directory.root}")
            return
        directory.tidy()
    except LabError as error:
        _say(str(error))
        raise typer.Exit(1) from None
    _say(f"{directory.root} is down")


@app.command()
def status(*, root: Root = None) -> None:
    """Show each server and whether its port answers; exit status 1 unless all do."""
    directory = _directory(root)
    state = directory.state()
    if not directory.running or not state:
        _say(f"no lab is running at {directory.root}")
        raise typer.Exit(1)
    answers = {name: _answers(server["host"], server["port"]) for name, server in state["servers"].items()}
    for name, server in state["servers"].items():
        print(f"{name:12} {server['host']}:{server['port']:<6} {'up' if answers[name] else 'down'}")
    if not all(answers.values()):
        raise typer.Exit(1)


@app.command()
def env(*, root: Root = None) -> None:
    """Print the shell commands that set the environment for `recovery` and `airflow`. They hold secrets."""
    directory = _directory(root)
    try:
        print((directory.root / "env").read_text(), end="")
    except FileNotFoundError:
        _say(f"no lab is running at {directory.root}")
        raise typer.Exit(1) from None


def _watch(lab: Lab) -> None:
    """Wait for a signal; say once of each server that it has died."""
    dead: set[str] = set()
    while True:
        time.sleep(1)
        for server in lab.servers:
            if not server.running and server.name not in dead:
                dead.add(server.name)
                _say(f"{server.name} has died; last lines of {server.log}:\n{log_tail(server.log)}")


def _detach(directory: LabDirectory, arguments: list[str]) -> None:
    """Run `up` in a process of its own, show what it says, and return when it is ready."""
    if directory.running:
        raise AlreadyRunningError(directory.where())
    directory.root.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = directory.root / "lab.log"
    with path.open("wb") as log, path.open() as lines:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "lab", "up", f"--root={directory.root}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while launcher.poll() is None:
                sys.stderr.write(lines.read())
                state = directory.state()
                if state.get("pid") == launcher.pid and state.get("ready_seconds") is not None:
                    # The launcher stays behind: it holds the pipes whose end stops the servers.
                    launcher.returncode = 0
                    return
                time.sleep(0.2)
        except KeyboardInterrupt:
            launcher.terminate()
            launcher.wait()
            raise
        finally:
            sys.stderr.write(lines.read())
    if launcher.returncode:
        raise LabError(f"the lab did not start (status {launcher.returncode}); see {path}")


def _gone(pid: int, *, seconds: float) -> bool:
    """Whether the process ended in time; one that nobody has collected yet has ended."""
    deadline = time.monotonic() + seconds
    stat = Path(f"/proc/{pid}/stat")
    while time.monotonic() < deadline:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True
