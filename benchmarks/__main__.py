"""`python -m benchmarks [NAME ...]`: runs by hand; writes results/<name>.json and the tables in README.md."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks._bench import Bench
from benchmarks.incremental import chain, incremental
from benchmarks.local import local
from benchmarks.memory import memory
from benchmarks.parse import parse
from benchmarks.restore import restore
from benchmarks.s3 import find_barman_python, s3
from benchmarks.vault import vault
from benchmarks.wal import backlog, recovery_point

BENCHMARKS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "local": local,
    "s3": s3,
    "memory": memory,
    "restore": restore,
    "parse": parse,
    "incremental": incremental,
    "chain": chain,
    "wal-backlog": backlog,
    "recovery-point": recovery_point,
    "vault": vault,
}
_SIZE_MB = 2500
_OTHER_SIZES_MB = {"memory": 5500, "wal-backlog": 5120, "incremental": 5500}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all without it")
    parser.add_argument("--size-mb", type=int, help=f"the database (default {_SIZE_MB}; others: {_OTHER_SIZES_MB})")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keeps the databases between runs; otherwise they are removed")
    parser.add_argument("--barman-python", help="a Python 3.12 or later for Barman (default: one that is found)")
    parser.add_argument("--discard", action="store_true", help="leave results/ and README.md as they are")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON document")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is named {sorted(unknown)[0]!r}")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="recovery-bench-", dir="/var/tmp"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    results = {}
    try:
        for name in arguments.names or BENCHMARKS:
            print(f"{name}:", file=sys.stderr)
            size = arguments.size_mb or _OTHER_SIZES_MB.get(name, _SIZE_MB)
            python = arguments.barman_python or find_barman_python()
            found = BENCHMARKS[name](Bench(folder, size, arguments.rounds, python))
            results[name] = {
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "machine": _report.machine(),
                "command": f"python -m benchmarks {name} --size-mb {size} --rounds {arguments.rounds}",
            } | found
            if not arguments.discard:
                _report.write(name, results[name])
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        print("\n\n".join(_report.table(name, found) for name, found in results.items()))
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
