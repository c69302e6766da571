"""pg_combinebackup: a full backup and the incrementals on it become the data directory that they stand for.

It checks that the members fit together, and no content: each member must be whole before it starts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recovery.errors import IntegrityError, RestoreError
from recovery.postgres.owner import Owner
from recovery.postgres.tools import Tools

PROGRAM = "pg_combinebackup"
MANIFEST = "backup_manifest"
_TICK_SECONDS = 0.5


def check_files(member: Path) -> None:
    """Every file that the member's backup_manifest names is there with its size; raises IntegrityError."""
    for name, expected in _listed(member / MANIFEST).items():
        try:
            size = (member / name).stat().st_size
        except FileNotFoundError:
            size = None
        if size != expected:
            found = "is missing" if size is None else f"has {size} bytes, and {expected} are in the server's manifest"
            raise IntegrityError(f"{name} {found}", where=str(member), remedy="use another backup, and report this")


def _listed(manifest: Path) -> dict[str, int]:
    try:
        return {
            entry["Path"] if "Path" in entry else os.fsdecode(bytes.fromhex(entry["Encoded-Path"])): entry["Size"]
            for entry in json.loads(manifest.read_bytes())["Files"]
        }
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(
            "this is not a manifest of PostgreSQL's", where=str(manifest), remedy="use another backup, and report this"
        ) from None


def combine(
    members: Sequence[Path],
    output: Path,
    *,
    tablespaces: Mapping[Path, Path],
    tools: Tools,
    owner: Owner | None,
    tick: Callable[[], None],
) -> None:
    """Combine `members`, the full first, into the new directory `output`; raises RestoreError in the program's words.

    `tablespaces` maps where the last member has each one to a new directory. `tick` is called twice a second, and may
    raise to end the work.
    """
    # PostgreSQL itself writes everything to disk when it starts on a backup (SyncDataDirectory).
    command = [tools.path(PROGRAM), "--no-sync", f"--output={output}"]
    command += [f"--tablespace-mapping={_escaped(old)}={_escaped(new)}" for old, new in tablespaces.items()]
    # setpriv (util-linux) ends it when this process dies, kill -9 included: what it wrote could not be cleared before.
    prefix = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    user: dict[str, Any] = {"user": owner.uid, "group": owner.gid, "extra_groups": []} if owner is not None else {}
    said = output.with_name(f"{output.name}.log")
    with (
        said.open("wb") as log,
        subprocess.Popen(
            [*prefix, *command, *map(str, members)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            **user,
        ) as process,
    ):
        try:
            while _runs(process):
                tick()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        lines = [line for line in said.read_text(errors="replace").splitlines() if "error:" in line]
        reason = lines[-1].rpartition("error:")[2].strip() if lines else f"exit status {process.returncode}"
        raise RestoreError(f"{PROGRAM} failed: {reason}", where=str(output), remedy="restore an earlier backup")


def _runs(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_TICK_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _escaped(path: Path) -> str:
    return str(path).replace("=", "\\=")
