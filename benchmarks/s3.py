"""A base backup into S3 against barman-cloud-backup with zstd into the same server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._bench import BUCKET, Bench, document, empty_bucket
from benchmarks._measure import Run, command, figures, in_turn, ratio, worker
from benchmarks._site import site
from lab.objectstore import REGION, SeaweedFS
from lab.postgres import SUPERUSER, PostgresServer

GOAL = 0.7
_BARMAN = ("barman==3.20.1", "boto3", "zstandard")
_BARMAN_PYTHON = (3, 12)
_THEIRS = "barman-cloud-backup --zstd"


def s3(bench: Bench) -> dict[str, Any]:
    """Whole commands, from the start of Python. Barman does not encrypt, and reads the data directory itself."""
    barman = _barman(bench)
    with bench.server() as server, bench.objects() as objects:
        environments = {
            where: site(bench.fresh(f"site-{where}"), server, where=where, objects=objects)
            for where in ("client", "server")
        }

        def base(where: str) -> Run:
            run = worker("base", environment=environments[where])
            empty_bucket(objects)
            return run

        def theirs() -> Run:
            run = _run_barman(barman, server, objects)
            empty_bucket(objects)
            return run

        contenders = {
            _THEIRS: theirs,
            "base backup, client zstd": lambda: base("client"),
            "base backup, server zstd": lambda: base("server"),
        }
        rounds = in_turn(contenders, rounds=bench.rounds)
    for where in environments:
        shutil.rmtree(bench.folder / f"site-{where}")
    ratios = [ratio(rounds, name, _THEIRS, goal=GOAL) for name in contenders if name != _THEIRS]
    return document(bench, figures=figures(rounds), ratios=ratios)


def find_barman_python() -> str | None:
    """A Python that Barman 3.20 runs on: this one, one on the search path, or one of pyenv's."""
    if sys.version_info[:2] >= _BARMAN_PYTHON:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for minor in range(_BARMAN_PYTHON[1], 20):
        for python in (shutil.which(f"python3.{minor}"), *pyenv.glob(f"versions/3.{minor}.*/bin/python3")):
            if python and _makes_venvs(str(python)):
                return str(python)
    return None


def _makes_venvs(python: str) -> bool:
    """pyenv's shims are on the path also for versions that are not active: they must answer."""
    answer = subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, check=False)
    return answer.returncode == 0


def _barman(bench: Bench) -> Path:
    """barman-cloud-backup in a virtual environment of its own, made when it is first needed."""
    folder = bench.folder / "barman"
    program = folder / "bin" / "barman-cloud-backup"
    if not program.exists():
        if bench.barman_python is None:
            raise RuntimeError("Barman 3.20 needs Python 3.12 or later: name one with --barman-python")
        subprocess.run([bench.barman_python, "-m", "venv", "--clear", folder], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # It imports psycopg2, and names the distribution that is built from source: the binary one is the same module.
        subprocess.run([*pip, "psycopg2-binary", "python-dateutil", *_BARMAN[1:]], check=True)
        subprocess.run([*pip, "--no-deps", _BARMAN[0]], check=True)
    return program


def _run_barman(program: Path, server: PostgresServer, objects: SeaweedFS) -> Run:
    environment = {
        "PATH": os.environ["PATH"],
        "AWS_ACCESS_KEY_ID": objects.access_key,
        "AWS_SECRET_ACCESS_KEY": objects.secret_key,
        "AWS_DEFAULT_REGION": REGION,
        "PGPASSWORD": server.passwords[SUPERUSER],
    }
    run = command(
        *(program, "--zstd", "--immediate-checkpoint"),
        *("--endpoint-url", objects.endpoint, "--addressing-style", "path"),
        *("--host", server.host, "--port", str(server.port), "--user", SUPERUSER),
        *(f"s3://{BUCKET}/barman", "bench"),
        environment=environment,
    )
    pages = objects.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    run.answer["bytes"] = sum(entry["Size"] for page in pages for entry in page.get("Contents", []))
    return run
