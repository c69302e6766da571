"""DAG files parse with no network, no database, and no import of a heavy library; and they say what they must."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DAG_FILES = sorted((ROOT / "dags").glob("*.py"))
# Imports each file as the DAG processor does, after an empty DAG has loaded what `airflow.sdk` itself needs.
PARSE = """
import json, socket, sqlite3, sys, importlib.util
def refuse(*arguments, **options):
    raise AssertionError("a DAG file reached for the network or a database while it was parsed")
socket.socket.connect = socket.create_connection = sqlite3.connect = refuse
from airflow.sdk import dag, task
@dag(schedule=None)
def empty():
    task(lambda: None)
empty()
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("parsed", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from airflow.sdk import DAG
dags = [value for value in vars(module).values() if isinstance(value, DAG)]
print(json.dumps(sorted({name.partition(".")[0] if not name.startswith("recovery.") else name
                         for name in set(sys.modules) - before})))
"""
HEAVY = {"boto3", "botocore", "hvac", "jinja2", "psycopg", "pydantic", "pyrage", "rich", "typer", "xxhash", "zstandard"}


def parse(path: Path, home: Path) -> set[str]:
    """The modules that parsing this file adds; fails the test where the file cannot be parsed in isolation."""
    environment = {
        "PYTHONPATH": str(ROOT / "include"),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "PATH": "/usr/bin:/bin",
    }
    answer = subprocess.run(
        [sys.executable, "-c", PARSE, str(path)], capture_output=True, text=True, env=environment, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return set(json.loads(answer.stdout.splitlines()[-1]))


def test_there_are_dag_files() -> None:
    assert {path.stem for path in DAG_FILES} >= {
        *("postgres_full_backup", "postgres_incremental_backup", "restore_drill", "retention"),
        *("vault_snapshot", "vault_policy_export", "vault_canary"),
    }


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_a_dag_file_parses_without_network_database_or_heavy_libraries(path: Path, tmp_path: Path) -> None:
    added = parse(path, tmp_path)
    assert not added & HEAVY
    assert not {name for name in added if name.startswith("recovery.")}


def test_the_isolation_catches_a_file_that_connects_or_imports(tmp_path: Path) -> None:
    connects = tmp_path / "connects.py"
    connects.write_text("import socket\nsocket.create_connection(('127.0.0.1', 1))\n")
    with pytest.raises(AssertionError, match="reached for the network"):
        parse(connects, tmp_path)
    imports = tmp_path / "imports.py"
    imports.write_text("import recovery.postgres.backup\n")
    assert parse(imports, tmp_path) & HEAVY
