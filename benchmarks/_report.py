"""Results as files: results/<name>.json, and the tables between the two marks in README.md."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_RESULTS = _HERE / "results"
_README = _HERE / "README.md"
_BEGIN, _END = "<!-- results: written by `make bench` -->\n", "<!-- end of results -->\n"
_ORDER = ("local", "s3", "memory", "restore", "parse", "incremental", "chain", "wal-backlog", "recovery-point", "vault")


def machine() -> str:
    """What it ran on, without a name that would tell whose."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}"


def write(name: str, result: dict[str, Any]) -> None:
    """Keep one benchmark's result and bring README.md up to date."""
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    text = _README.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    known = [each for each in _ORDER if (_RESULTS / f"{each}.json").exists()]
    tables = [table(each, json.loads((_RESULTS / f"{each}.json").read_text())) for each in known]
    _README.write_text(before + _BEGIN + "\n" + "\n\n".join(tables) + "\n\n" + _END + after)


def table(name: str, result: dict[str, Any]) -> str:
    """One benchmark as Markdown."""
    lines = [
        f"### {name}",
        "",
        f"{result['date']}, {result['machine']}: `{result['command']}`",
        "",
        "| | seconds: median | min to max | CPU s | peak MiB | with children | stored MB | others |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for figure in result["figures"]:
        cells = (
            _escaped(figure["name"]),
            f"{figure['seconds_median']:.2f}",
            f"{figure['seconds_min']:.2f} to {figure['seconds_max']:.2f}",
            f"{figure['cpu_seconds_median']:.1f}",
            figure.get("peak_rss_mib", ""),
            figure.get("tree_rss_mib", ""),
            f"{figure['bytes'] / 1e6:.0f}" if "bytes" in figure else "",
            f"{figure['others_share_max']:.0%}",
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    lines += ["", "| ratio or bound | value | min to max | goal | holds |", "|---|--:|--:|--:|---|"]
    for entry in result["ratios"]:
        spread = f"{entry['min']} to {entry['max']}" if "min" in entry else ""
        goal = "" if entry["goal"] is None else f"≤ {entry['goal']}"
        holds = {True: "yes", False: "**no**", None: ""}[entry["holds"]]
        lines.append(f"| {_escaped(entry['name'])} | {entry['value']} | {spread} | {goal} | {holds} |")
    return "\n".join(lines)


def _escaped(name: str) -> str:
    """A pipe in a name would end the table's cell."""
    return name.replace("|", "\\|")
