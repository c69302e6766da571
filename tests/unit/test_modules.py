"""What every module keeps to: a docstring that says what lives in it, and nothing of Airflow or of the lab behind it."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import recovery
from tests.support import REPOSITORY

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(recovery.__path__, "recovery.")
    if not module.ispkg and module.name != "recovery.__main__"
)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports_alone_and_says_what_lives_in_it(module: str) -> None:
    assert import_module(module).__doc__


@pytest.mark.parametrize("path", sorted((REPOSITORY / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_every_test_module_says_what_it_claims(path) -> None:  # type: ignore[no-untyped-def]
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_command_runs_without_airflow_the_lab_and_the_bridge() -> None:
    program = (
        "import sys, pkgutil, importlib, recovery\n"
        "for module in pkgutil.walk_packages(recovery.__path__, 'recovery.'):\n"
        "    if module.name != 'recovery.__main__':\n"
        "        importlib.import_module(module.name)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'airflow', 'lab', 'orchestration', 'tests'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(REPOSITORY / "include")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_the_command_starts_without_what_only_some_commands_need() -> None:
    program = "import sys, recovery.cli; print(sorted({'boto3', 'jinja2', 'airflow', 'hvac'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(REPOSITORY / "include")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
