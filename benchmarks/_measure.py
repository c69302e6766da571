"""Runs measured processes in turn, so that a noisy machine disturbs every contender alike, and keeps what they say."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks._processes import files_written, foreign_load, status_bytes, tree

ROOT = Path(__file__).resolve().parent.parent
QUIET = 0.10
"""A run counts as undisturbed when others used less of the cores than this."""
_PATIENCE_SECONDS = 20.0
_SAMPLE_SECONDS = 0.02


@dataclass
class Run:
    """One measured run of one process."""

    seconds: float
    cpu_seconds: float
    foreign_share: float
    peak_rss_bytes: int | None = None
    """What the process itself says (VmHWM). wait4() would also count what this process was when it forked."""
    tree_rss_bytes: int = 0
    """Of the process and all below it at one moment; sampled where asked for, as are the files."""
    files: dict[str, int] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)


Contender = Callable[[], Run]
Round = dict[str, Run]


def worker(work: str, *arguments: str, environment: Mapping[str, str], inner: bool = False, watch: bool = False) -> Run:
    """Work of `_worker` in a fresh process. `inner` leaves out its start: `seconds` are those of the work alone."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}/include:{ROOT}"} | dict(environment)
    found = command(
        sys.executable, "-m", "benchmarks._worker", work, *arguments, environment=environment, watch=watch, answers=True
    )
    if inner:
        found.seconds = found.answer["seconds"]
    return found


def command(*arguments: str | Path, environment: Mapping[str, str], watch: bool = False, answers: bool = False) -> Run:
    """Run a program to its end, from its start; with `answers` its standard output is one JSON document."""
    os.sync()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as messages, foreign_load() as foreign:
        begun = time.perf_counter()
        process = subprocess.Popen(arguments, env=dict(environment), cwd=ROOT, stdout=output, stderr=messages)
        with _Watch(process.pid, samples=watch) as seen:
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        messages.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{arguments} failed:\n{messages.read().decode(errors='replace')}")
        answer = json.loads(output.read()) if answers else {}
    return Run(
        seconds,
        usage.ru_utime + usage.ru_stime,
        foreign.share,
        answer.get("peak_rss_bytes"),
        seen.tree_rss_bytes,
        seen.files,
        answer,
    )


def in_turn(contenders: Mapping[str, Contender], *, rounds: int) -> list[Round]:
    """Every contender once per round, in the same order, after one round that only warms the caches.

    Rounds that others on the machine disturbed are repeated, up to four times as many in all; the quietest are kept.
    What decides is the load of others alone, never the result.
    """
    for contender in contenders.values():
        contender()
    done: list[Round] = []
    while len(done) < 4 * rounds and sum(_disturbance(one) < QUIET for one in done) < rounds:
        this: Round = {}
        for name, contender in contenders.items():
            _wait_for_quiet()
            this[name] = run = contender()
            print(
                f"  {name}: {run.seconds:.2f} s, cpu {run.cpu_seconds:.1f} s, others {run.foreign_share:.0%}",
                file=sys.stderr,
            )
        done.append(this)
    return sorted(done, key=_disturbance)[:rounds]


def figures(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """One entry per contender."""
    return [figure(name, [one[name] for one in rounds]) for name in rounds[0]]


def figure(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of one contender over its runs."""
    seconds = [run.seconds for run in runs]
    found = {
        "name": name,
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_min": round(min(seconds), 2),
        "seconds_max": round(max(seconds), 2),
        "cpu_seconds_median": round(statistics.median(run.cpu_seconds for run in runs), 2),
        "others_share_max": round(max(run.foreign_share for run in runs), 2),
    }
    if peaks := [run.peak_rss_bytes for run in runs if run.peak_rss_bytes is not None]:
        found["peak_rss_mib"] = round(max(peaks) / 2**20)
    if tree_rss := max(run.tree_rss_bytes for run in runs):
        found["tree_rss_mib"] = round(tree_rss / 2**20)
    if "bytes" in runs[0].answer:
        found["bytes"] = max(run.answer["bytes"] for run in runs)
    return found


def ratio(rounds: Sequence[Round], ours: str, theirs: str, *, goal: float | None = None) -> dict[str, Any]:
    """Ours over theirs, each within one round; `goal` is the highest median that passes."""
    values = [one[ours].seconds / one[theirs].seconds for one in rounds]
    return verdict(f"{ours} / {theirs}", statistics.median(values), goal=goal) | {
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


def verdict(name: str, value: float, *, goal: float | None) -> dict[str, Any]:
    """A value against the highest that passes."""
    return {"name": name, "value": round(value, 2), "goal": goal, "holds": None if goal is None else value <= goal}


def _disturbance(one: Round) -> float:
    return max(run.foreign_share for run in one.values())


def _wait_for_quiet() -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with foreign_load() as foreign:
            time.sleep(0.5)
        if foreign.share < QUIET:
            return


class _Watch:
    """Samples the memory and the files of a process and all below it while it runs."""

    def __init__(self, pid: int, *, samples: bool) -> None:
        self._pid, self._samples = pid, samples
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.tree_rss_bytes = 0
        self.files: dict[str, int] = {}

    def __enter__(self) -> _Watch:
        if self._samples:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._samples:
            self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            pids = tree(self._pid)
            self.tree_rss_bytes = max(self.tree_rss_bytes, sum(status_bytes(pid, "VmRSS") for pid in pids))
            for pid in pids:
                for path, size in files_written(pid).items():
                    self.files[path] = max(size, self.files.get(path, 0))
