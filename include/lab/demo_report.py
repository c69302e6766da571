"""The demo's report for people: a table on the terminal, and the same as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.table import Table


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, detail) lines of the result."""
    lines = []
    for backup in report["backups"]:
        rate = backup["source_bytes"] / max(backup["copy_seconds"], 0.001) / 1e6
        lines.append(
            (
                {"full": "base backup", "incremental": "incremental"}.get(backup["kind"], backup["kind"]),
                backup["id"],
                f"{backup['source_bytes'] / 1e6:.0f} MB read, "
                f"{backup['stored_bytes'] / 1e6:.0f} MB stored, {rate:.0f} MB/s",
            )
        )
    for snapshot in report["snapshots"]:
        lines.append(
            (
                "Vault snapshot",
                snapshot["id"],
                f"{snapshot['source_bytes'] / 1e6:.1f} MB, verified in the stream; Raft index {snapshot['raft_index']}",
            )
        )
    drill = report["drill"]
    if drill:
        tables = drill["tables"]
        lines += [
            ("restored", drill["backup"], f"{drill['restored_bytes'] / 1e6:.0f} MB, in isolation"),
            ("RPO", f"{drill['rpo_seconds']:.1f} s", "age of the recovery point when the drill began"),
            ("RTO", _rto(drill), "from the plan to a server that answers queries"),
            (
                "rows compared",
                f"{sum(entry['rows'] for entry in tables):,}",
                f"{len(tables)} tables; {sum(entry['different'] for entry in tables)} differ, "
                f"{sum(entry['moved'] for entry in tables)} moved on the source since",
            ),
        ]
        lines += [(check["name"], check["verdict"], check["detail"]) for check in drill["checks"]]
        lines += [(loose["what"], loose["name"], loose["remedy"]) for loose in drill["loose"]]
    accident = report["accident"]
    lines.append(
        (
            f"dropped {accident['table']}",
            "equal again" if accident["equal"] else "DIFFERS",
            f"{accident['rows']:,} rows, from {len(accident['chain'])} backups and {accident['wal_segments']} segments "
            f"of WAL, in {accident['seconds']:.1f} s",
        )
    )
    return lines


def table(report: dict[str, Any], path: Path) -> None:
    """Print the result, and where its page lies."""
    console = Console()
    shown = Table("what", "result", "detail", box=None, pad_edge=False, header_style="bold")
    for what, value, detail in rows(report):
        shown.add_row(what, value, detail)
    console.print(shown)
    for claim, held in report["held"].items():
        console.print(f"{'[green]held[/]    ' if held else '[red]NOT HELD[/]'} {claim}")
    console.print(f"{report['seconds']:.0f} s in all; the report: {path}", highlight=False)


def page(report: dict[str, Any]) -> str:
    """The report as one self-contained HTML page."""
    environment = Environment(loader=PackageLoader("lab", "templates"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html").render(report=report, rows=rows(report))


def _rto(drill: dict[str, Any]) -> str:
    return "not reached" if drill["rto_seconds"] is None else f"{drill['rto_seconds']:.1f} s"
