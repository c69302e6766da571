"""The benchmarks: each returns a document of figures and the ratios that the project holds itself to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._database import prepare
from benchmarks._measure import ROOT, Figure, command, in_turn, worker
from benchmarks._site import site
from lab.objectstore import REGION, SeaweedFS
from lab.postgres import SUPERUSER, PostgresServer

BARMAN = ("barman==3.20.1", "boto3", "psycopg2-binary", "zstandard")
MEMORY_LIMIT_MIB = 256


@dataclass(frozen=True)
class Bench:
    """Where the servers' data lie between runs, how large the database is, and how often each contender runs."""

    folder: Path
    size_mb: int
    rounds: int
    barman_python: str

    @contextmanager
    def server(self) -> Iterator[PostgresServer]:
        server = prepare(self.folder / f"db-{self.size_mb}", size_mb=self.size_mb)
        try:
            yield server
        finally:
            server.stop()

    @contextmanager
    def objects(self) -> Iterator[SeaweedFS]:
        folder = self.folder / "objects"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with SeaweedFS(folder / "data") as objects:
            objects.create_bucket("bench")
            yield objects
        shutil.rmtree(folder, ignore_errors=True)

    def fresh(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        return folder


def local(bench: Bench) -> dict[str, Any]:
    """A base backup into a local directory against draining the same stream with the same compression."""
    figures: list[Figure] = []
    ratios = {}
    with bench.server() as server:
        for where in ("client", "server"):
            folder = bench.fresh("site")
            environment = site(folder, server, where=where)

            def drain(where: str = where, environment: dict[str, str] = environment) -> dict[str, Any]:
                return worker("drain", where, environment=environment)

            def base(folder: Path = folder, environment: dict[str, str] = environment) -> dict[str, Any]:
                result = worker("base", environment=environment)
                shutil.rmtree(folder / "repository")
                return result

            drained, taken = f"drain, {where} zstd", f"base backup, {where} zstd"
            found = in_turn({drained: drain, taken: base}, rounds=bench.rounds)
            figures += found.values()
            ratios[f"base backup / drain, {where} zstd (goal 1.5)"] = found[taken].median / found[drained].median
    return _document(bench, figures, ratios)


def s3(bench: Bench) -> dict[str, Any]:
    """A base backup into S3 against barman-cloud-backup with zstd into the same server."""
    barman = _barman(bench)
    with bench.server() as server, bench.objects() as objects:
        environment = site(bench.fresh("site"), server, where="client", objects=objects)
        credentials = {
            "PATH": os.environ["PATH"],
            "AWS_ACCESS_KEY_ID": objects.access_key,
            "AWS_SECRET_ACCESS_KEY": objects.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "PGPASSWORD": server.passwords[SUPERUSER],
        }
        arguments = (
            "--zstd",
            "--immediate-checkpoint",
            "--endpoint-url",
            objects.endpoint,
            "--addressing-style",
            "path",
        )
        where = ("--host", server.host, "--port", str(server.port), "--user", SUPERUSER)
        contenders: dict[str, Callable[[], dict[str, Any]]] = {
            "barman-cloud-backup --zstd": lambda: command(
                barman, *arguments, *where, "s3://bench/barman", "bench", environment=credentials
            ),
            "base backup, client zstd": lambda: worker("base", environment=environment),
        }
        found = in_turn(contenders, rounds=bench.rounds)
    ours, theirs = found["base backup, client zstd"], found["barman-cloud-backup --zstd"]
    return _document(bench, list(found.values()), {"base backup / barman (goal 0.7)": ours.median / theirs.median})


def memory(bench: Bench) -> dict[str, Any]:
    """The peak memory of the backup process, and whether it stages anything on disk."""
    figures: list[Figure] = []
    staged = 0
    with bench.server() as server, bench.objects() as objects, tempfile.TemporaryDirectory(dir=bench.folder) as scratch:
        for where, store, work in (
            ("client", None, "base"),
            ("client", objects, "base"),
            ("server", None, "base"),
            ("server", objects, "base"),
            ("client", objects, "dump"),
        ):
            folder = bench.fresh("site")
            environment = site(folder, server, where=where, objects=store) | {"TMPDIR": scratch}
            name = f"{work}, {where} compresses, into {'a directory' if store is None else 'S3'}"
            run = partial(worker, work, environment=environment)
            figures += in_turn({name: run}, rounds=1).values()
            staged += sum(path.stat().st_size for path in Path(scratch).rglob("*") if path.is_file())
            shutil.rmtree(folder)
    peak = max(figure.peak_rss_bytes for figure in figures) / 2**20
    return _document(bench, figures, {f"peak MiB (goal {MEMORY_LIMIT_MIB})": peak, "bytes staged (goal 0)": staged})


def restore(bench: Bench) -> dict[str, Any]:
    """A restore against the floor: the age, zstd and tar commands on the same volumes, two side by side."""
    with bench.server() as server:
        folder = bench.fresh("site")
        environment = site(folder, server, where="client")
        worker("base", environment=environment)
        identity = folder / "identity"
        identity.write_text(json.loads(environment["AIRFLOW_CONN_BENCH_IDENTITY"])["password"])
        floor = (
            'mkdir -p "$1"; find "$2" -name "*.tar.zst.age" -print0 | '
            'xargs -0 -P 2 -I{} sh -c \'age -d -i "$1" "$2" | zstd -dcq | tar xf - -C "$3"\' sh "$3" {} "$1"'
        )

        def by_hand() -> dict[str, Any]:
            target = bench.fresh("by-hand") / "data"
            paths = (target, folder / "repository", identity)
            return command("sh", "-c", floor, "sh", *paths, environment={"PATH": os.environ["PATH"]})

        def ours() -> dict[str, Any]:
            return worker("restore", str(bench.fresh("restored") / "data"), environment=environment)

        found = in_turn({"age | zstd | tar": by_hand, "recovery restore": ours}, rounds=bench.rounds)
        for name in ("by-hand", "restored", "site"):
            shutil.rmtree(bench.folder / name)
    ratio = found["recovery restore"].median / found["age | zstd | tar"].median
    return _document(bench, list(found.values()), {"restore / commands": ratio})


def parse(bench: Bench) -> dict[str, Any]:
    """Parsing all DAG files against parsing one empty DAG that imports `airflow.sdk`."""
    empty = bench.fresh("empty-dag")
    (empty / "empty.py").write_text(
        "from airflow.sdk import dag, task\n@dag(schedule=None)\ndef empty():\n    task(lambda: None)\nempty()\n"
    )
    home = bench.fresh("airflow-home")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}/include",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
    }
    program = (
        "import sys; from airflow.dag_processing.dagbag import DagBag; bag = DagBag(sys.argv[1]);"
        "sys.exit(str(bag.import_errors) if bag.import_errors or not bag.dags else 0)"
    )

    def bag(folder: Path) -> Callable[[], dict[str, Any]]:
        return lambda: command(sys.executable, "-c", program, str(folder), environment=environment)

    found = in_turn({"one empty DAG": bag(empty), "all DAG files": bag(ROOT / "dags")}, rounds=bench.rounds)
    base, every = found["one empty DAG"].median, found["all DAG files"].median
    return _document(
        bench,
        list(found.values()),
        {"(all - 0.5 s) / empty (goal 1.5)": (every - 0.5) / base, "all / empty": every / base},
    )


def _barman(bench: Bench) -> Path:
    """barman-cloud-backup in a virtual environment of its own, made when it is first needed."""
    folder = bench.folder / "barman"
    program = folder / "bin" / "barman-cloud-backup"
    if not program.exists():
        if bench.barman_python == sys.executable:
            venv.create(folder, with_pip=True)
        else:
            subprocess.run([bench.barman_python, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *BARMAN], check=True)
    return program


def _document(bench: Bench, figures: list[Figure], ratios: dict[str, float]) -> dict[str, Any]:
    return {
        "size_mb": bench.size_mb,
        "rounds": bench.rounds,
        "figures": [figure.document() for figure in figures],
        "ratios": {name: round(value, 2) for name, value in ratios.items()},
    }


BENCHMARKS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "local": local,
    "s3": s3,
    "memory": memory,
    "restore": restore,
    "parse": parse,
}
