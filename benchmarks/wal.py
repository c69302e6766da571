"""Continuous WAL: a backlog against pg_receivewal, and how old the newest restorable commit is while a system works."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import yaml

from benchmarks._bench import Bench, document
from benchmarks._measure import ROOT, Run, command, figures, in_turn, ratio, verdict, worker
from benchmarks._site import site
from lab.postgres import SUPERUSER, PostgresServer
from recovery.postgres import owner, tools
from recovery.postgres.server import SandboxServer
from recovery.postgres.wal.positions import format_lsn, parse_lsn

GOAL_BACKLOG = 1.0
GOAL_MEDIAN_SECONDS, GOAL_P99_SECONDS = 1.0, 3.0
_SNAPSHOTS = 40
_SETTINGS = {"max_wal_size": "4GB", "fsync": "off", "synchronous_commit": "off", "shared_buffers": "512MB"}


def backlog(bench: Bench) -> dict[str, Any]:
    """Archive a backlog of `size_mb` into a directory: sealed, and by pg_receivewal, which cannot write zstd."""
    with _server(bench, "backlog", _SETTINGS) as server:
        end = _write_backlog(server, bench.size_mb << 20)
        folder = bench.fresh("site")
        environment = site(folder, server, where="client", wal=True)

        def ours() -> Run:
            shutil.rmtree(folder / "repository", ignore_errors=True)
            (folder / "repository").mkdir()
            server.execute("SELECT pg_copy_physical_replication_slot('holder', 'recovery')")
            run = worker("wal", format_lsn(end), environment=environment)
            server.execute("SELECT pg_drop_replication_slot('recovery')")
            return run

        def theirs(compress: str) -> Run:
            target = bench.fresh("received")
            server.execute("SELECT pg_copy_physical_replication_slot('holder', 'peer')")
            run = command(
                *(server.bindir / "pg_receivewal", "-D", target, "-S", "peer", "-d", server.dsn(), "--no-loop"),
                *("-E", format_lsn(end), f"--compress={compress}"),
                environment={"PATH": os.environ["PATH"]},
            )
            server.execute("SELECT pg_drop_replication_slot('peer')")
            run.answer["bytes"] = sum(path.stat().st_size for path in target.iterdir())
            return run

        contenders = {
            "recovery wal, sealed (zstd, age)": ours,
            "pg_receivewal --compress=lz4": lambda: theirs("lz4"),
            "pg_receivewal --compress=gzip:1": lambda: theirs("gzip:1"),
            "pg_receivewal, uncompressed": lambda: theirs("none"),
        }
        rounds = in_turn(contenders, rounds=bench.rounds)
    first, *others = contenders
    ratios = [ratio(rounds, first, name, goal=GOAL_BACKLOG if "lz4" in name else None) for name in others]
    return document(bench, figures=figures(rounds), ratios=ratios)


def recovery_point(bench: Bench) -> dict[str, Any]:
    """While pgbench runs, copies of the repository are made at random moments; each is restored afterwards.

    The age of a recovery point is the copy's moment less the newest heartbeat in what was restored from it.
    """
    with _server(bench, "point", {"max_wal_size": "1GB"}) as server:
        folder = bench.fresh("site")
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}/include"}
        environment |= site(folder, server, where="client", wal=True)
        (folder / "repository").mkdir()
        _run(server.bindir / "pgbench", "-i", "-q", "-s", "5", server.dsn())
        server.execute("CREATE TABLE heartbeat (at timestamptz)")
        copies: list[tuple[Path, datetime]] = []
        with _streaming(environment), _heartbeats(server):
            _until_slot_moves(server)
            _recovery("backup", "postgres", "bench", "--type", "full", environment=environment)
            load = subprocess.Popen(
                [server.bindir / "pgbench", "-c", "4", "-T", "3600", "-n", server.dsn()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                for number in range(_SNAPSHOTS):
                    time.sleep(random.uniform(0.3, 1.2))
                    copy = folder / f"copy{number}"
                    moment = server.execute("SELECT clock_timestamp()")[0][0]
                    _run("cp", "-al", folder / "repository", copy)
                    copies.append((copy, moment))
            finally:
                load.terminate()
                load.wait()
        ages = sorted(_age(server, folder, copy, moment, environment) for copy, moment in copies)
    shutil.rmtree(folder)
    median, last = statistics.median(ages), ages[-1]
    return document(
        bench,
        figures=[],
        ratios=[
            verdict("age of the recovery point, median of seconds", median, goal=GOAL_MEDIAN_SECONDS),
            verdict(f"age of the recovery point, greatest of {len(ages)}, seconds", last, goal=GOAL_P99_SECONDS),
        ],
    )


@contextmanager
def _server(bench: Bench, name: str, settings: dict[str, str]) -> Iterator[PostgresServer]:
    server = PostgresServer(bench.fresh(name) / "data", major=17, name=name, settings=settings)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(bench.folder / name, ignore_errors=True)


def _write_backlog(server: PostgresServer, size: int) -> int:
    """A slot that holds `size` bytes of pgbench's WAL; returns where it ends."""
    server.execute("SELECT pg_create_physical_replication_slot('holder', true)")
    _run(server.bindir / "pgbench", "-i", "-q", "-s", "50", server.dsn())
    while _end(server) < size:
        _run(server.bindir / "pgbench", "-c", "4", "-T", "5", "-n", "-N", server.dsn())
        server.execute("CHECKPOINT")
    server.execute("SELECT pg_switch_wal()")
    return _end(server)


def _end(server: PostgresServer) -> int:
    return parse_lsn(server.execute("SELECT pg_current_wal_flush_lsn()")[0][0])


@contextmanager
def _streaming(environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "recovery", "wal", "stream", "bench"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextmanager
def _heartbeats(server: PostgresServer) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        with psycopg.connect(server.dsn(), autocommit=True) as session:
            while not ended.wait(0.02):
                session.execute("INSERT INTO heartbeat VALUES (clock_timestamp())")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _until_slot_moves(server: PostgresServer) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < 60:
        if server.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = 'recovery' AND active"):
            return
        time.sleep(0.1)
    raise RuntimeError("no WAL was streamed")


def _age(
    server: PostgresServer, folder: Path, repository: Path, moment: datetime, environment: dict[str, str]
) -> float:
    settings = yaml.safe_load(Path(environment["RECOVERY_CONFIG"]).read_text())
    settings["repositories"]["primary"]["directory"]["path"] = str(repository)
    config = folder / "copy.yaml"
    config.write_text(yaml.safe_dump(settings))
    target = folder / "restored"
    _recovery(
        *("restore", "postgres", "bench", "--to", "latest", "--pgdata", target),
        environment=environment | {"RECOVERY_CONFIG": str(config)},
    )
    sandbox = SandboxServer(
        target,
        tools=tools.find(server.major, configured={server.major: server.bindir}),
        superuser=SUPERUSER,
        owner=owner.choose(server.user.name if server.user else None),
    )
    with sandbox, sandbox.connect() as session:
        row = session.execute("SELECT max(at) FROM heartbeat").fetchone()
    shutil.rmtree(target)
    shutil.rmtree(repository)
    assert row is not None
    return float((moment - row[0]).total_seconds())


def _recovery(*arguments: object, environment: dict[str, str]) -> Any:
    command_line = [sys.executable, "-m", "recovery", *(str(argument) for argument in arguments), "--json"]
    return json.loads(subprocess.run(command_line, env=environment, check=True, capture_output=True).stdout)


def _run(*arguments: object) -> None:
    subprocess.run([str(argument) for argument in arguments], check=True, capture_output=True)
