"""The peak memory of a backup, alone and with its child processes, and what it puts on disk beside the repository."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._bench import Bench, document, empty_bucket
from benchmarks._measure import Run, figure, verdict, worker
from benchmarks._site import site

GOAL_MIB = 256
_CASES = (
    ("base", "client", "directory"),
    ("base", "server", "directory"),
    ("base", "client", "S3"),
    ("base", "server", "S3"),
    ("dump", "client", "S3"),
)


def memory(bench: Bench) -> dict[str, Any]:
    """One run per case: memory does not depend on who else is at work. A small file of messages is no staging."""
    found = []
    runs: dict[str, Run] = {}
    staged: dict[str, int] = {}
    with bench.server() as server, bench.objects() as objects, tempfile.TemporaryDirectory(dir=bench.folder) as scratch:
        for work, where, store in _CASES:
            folder = bench.fresh("site")
            environment = site(folder, server, where=where, objects=objects if store == "S3" else None)
            name = f"{work}, {where} zstd, into {'a directory' if store == 'directory' else store}"
            runs[name] = run = worker(work, environment=environment | {"TMPDIR": scratch}, watch=True)
            beside = {path: size for path, size in run.files.items() if not _below(path, folder / "repository")}
            staged[name] = sum(beside.values())
            found.append(
                figure(name, [run]) | {"staged_bytes": staged[name], "written_bytes": run.answer["written_bytes"]}
            )
            empty_bucket(objects)
            shutil.rmtree(folder)
    process = max(run.peak_rss_bytes or 0 for run in runs.values()) / 2**20
    tree = max(run.tree_rss_bytes for run in runs.values()) / 2**20
    return document(
        bench,
        figures=found,
        ratios=[
            verdict("peak of the process, MiB", process, goal=GOAL_MIB),
            verdict("peak of the process and its children, MiB", tree, goal=GOAL_MIB),
            verdict("staged on disk, MiB", max(staged.values()) / 2**20, goal=0.1),
        ],
    )


def _below(path: str, folder: Path) -> bool:
    return Path(path.removesuffix(" (deleted)")).is_relative_to(folder)
