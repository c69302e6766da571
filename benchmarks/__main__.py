"""`python -m benchmarks [NAME ...]`: runs benchmarks by hand and writes benchmarks/results/<name>.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks._suite import BENCHMARKS, Bench

RESULTS = Path(__file__).with_name("results")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all without it")
    parser.add_argument("--size-mb", type=int, help="the database (default 2500; for memory 5500)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keeps the databases between runs; otherwise they are removed")
    parser.add_argument("--barman-python", default=shutil.which("python3.12") or sys.executable)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is named {sorted(unknown)[0]!r}")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="recovery-bench-", dir="/var/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    results = {}
    try:
        for name in arguments.names or BENCHMARKS:
            print(f"{name}:", file=sys.stderr)
            size = arguments.size_mb or (5500 if name == "memory" else 2500)
            found = BENCHMARKS[name](Bench(folder, size, arguments.rounds, arguments.barman_python))
            results[name] = {
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            } | found
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_text(json.dumps(results[name], indent=2) + "\n")
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        for name, found in results.items():
            print(f"{name} ({found['size_mb']} MB)")
            for figure in found["figures"]:
                print(f"  {figure['name']}: {figure['seconds_median']} s, {figure['peak_rss_mib']} MiB")
            for ratio, value in found["ratios"].items():
                print(f"  {ratio}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
