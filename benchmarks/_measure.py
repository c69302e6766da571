"""Runs measured processes in turn, so that a noisy machine disturbs every contender alike, and keeps what they say."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Contender = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Figure:
    """The seconds of one contender over its rounds, and the most memory that one of them took."""

    name: str
    seconds: tuple[float, ...]
    bytes: int
    peak_rss_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seconds_median": round(self.median, 2),
            "seconds_min": round(min(self.seconds), 2),
            "seconds_max": round(max(self.seconds), 2),
            "bytes": self.bytes,
            "peak_rss_mib": round(self.peak_rss_bytes / 2**20),
        }


def worker(work: str, *arguments: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """One piece of work in a fresh process."""
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks._worker", work, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}/include:{ROOT}"} | dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise RuntimeError(f"{work} failed:\n{answer.stderr}")
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def command(*arguments: str | Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Another program; the peak memory is that of its largest process."""
    begun = time.monotonic()
    process = subprocess.Popen(arguments, env=dict(environment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    message = process.stderr.read() if process.stderr else b""
    if status != 0:
        raise RuntimeError(f"{arguments[0]} failed:\n{message.decode(errors='replace')}")
    process.returncode = 0
    return {"seconds": time.monotonic() - begun, "bytes": 0, "peak_rss_bytes": usage.ru_maxrss * 1024}


def in_turn(contenders: Mapping[str, Contender], *, rounds: int) -> dict[str, Figure]:
    """Every contender once per round, in the same order; one unmeasured round first warms the caches."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            result = contender()
            if turn:
                results[name].append(result)
                print(
                    f"  {name}: {result['seconds']:.2f} s, {result['peak_rss_bytes'] / 2**20:.0f} MiB", file=sys.stderr
                )
    return {
        name: Figure(
            name,
            tuple(result["seconds"] for result in found),
            max(result["bytes"] for result in found),
            max(result["peak_rss_bytes"] for result in found),
        )
        for name, found in results.items()
    }
