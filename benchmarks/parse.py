"""Parsing all DAG files against parsing one empty DAG that imports `airflow.sdk`."""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks._bench import Bench, document
from benchmarks._measure import ROOT, Run, command, figures, in_turn, ratio, verdict

GOAL = 1.5
_EMPTY = "from airflow.sdk import dag, task\n@dag(schedule=None)\ndef empty():\n    task(lambda: None)\nempty()\n"
_PROGRAM = (
    "import sys; from airflow.dag_processing.dagbag import DagBag; bag = DagBag(sys.argv[1]);"
    "sys.exit(str(bag.import_errors) if bag.import_errors or not bag.dags else 0)"
)


def parse(bench: Bench) -> dict[str, Any]:
    """Half a second is what the DAG files may add by themselves."""
    empty, home = bench.fresh("empty-dag"), bench.fresh("airflow-home")
    (empty / "empty.py").write_text(_EMPTY)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}/include",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
    }

    def bag(folder: Path) -> Run:
        return command(sys.executable, "-c", _PROGRAM, folder, environment=environment)

    one, every = "one empty DAG", "all DAG files"
    rounds = in_turn({one: lambda: bag(empty), every: lambda: bag(ROOT / "dags")}, rounds=bench.rounds)
    allowed = statistics.median((turn[every].seconds - 0.5) / turn[one].seconds for turn in rounds)
    return document(
        bench,
        figures=figures(rounds),
        ratios=[verdict("(all - 0.5 s) / empty", allowed, goal=GOAL), ratio(rounds, every, one)],
    )
