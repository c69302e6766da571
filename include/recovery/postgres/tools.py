"""PostgreSQL's own programs by major version: where they are, and how one is run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recovery.errors import PreconditionError

_NEEDED = ("postgres", "pg_ctl", "pg_dump", "pg_dumpall", "pg_restore", "psql")


@dataclass(frozen=True)
class Tools:
    """The programs of one major version, all in one directory."""

    major: int
    bindir: Path

    def path(self, program: str) -> str:
        """The program's absolute path; raises PreconditionError when it is not installed."""
        found = self.bindir / program
        if not found.exists():
            raise PreconditionError(
                f"{program} of PostgreSQL {self.major} is not installed",
                where=str(self.bindir),
                remedy=f"install the server and client packages of PostgreSQL {self.major}",
            )
        return str(found)

    def dumps_with_zstd(self) -> bool:
        """Whether this pg_dump compresses with zstd: since 16, and only where it was built with it.

        It checks its options before it connects, and here it finds no server to connect to.
        """
        answer = subprocess.run(
            [self.path("pg_dump"), "--format=custom", "--compress=zstd", "--host=/dev/null", "--no-password"],
            capture_output=True,
            text=True,
            env={"LC_ALL": "C"},
            check=False,
        )
        return "compress" not in answer.stderr


def find(major: int, *, configured: Mapping[int, Path]) -> Tools:
    """The programs for servers of `major`: as configured, where packages put them, or on PATH.

    Raises PreconditionError: without them a backup could be taken and never be restored here.
    """
    candidates = [configured[major]] if major in configured else []
    candidates += [Path(f"/usr/lib/postgresql/{major}/bin"), Path(f"/usr/pgsql-{major}/bin")]
    if on_path := shutil.which("postgres"):
        candidates.append(Path(on_path).resolve().parent)
    for bindir in candidates:
        if all((bindir / program).exists() for program in _NEEDED) and _major(bindir) == major:
            return Tools(major, bindir)
    raise PreconditionError(
        f"no PostgreSQL {major} programs are installed, so that a backup of this server could not be restored here",
        where=", ".join(str(path) for path in candidates),
        remedy=f"install postgresql-{major}, or name their directory under `tools: {{{major}: DIR}}`",
    )


def _major(bindir: Path) -> int | None:
    answer = subprocess.run([bindir / "postgres", "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(match.group(1)) if match else None
