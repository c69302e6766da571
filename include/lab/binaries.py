"""Where the servers' programs are: in wheels, beside this Python, or installed by the distribution."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from pathlib import Path

from lab.errors import LabError


def wheel_directory(package: str) -> Path | None:
    """The directory of an installed package that carries binaries, without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def program(name: str, *, remedy: str) -> Path:
    """A program beside this Python (a virtual environment's), or else on the search path."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = beside if beside.is_file() else shutil.which(name)
    if not found:
        raise LabError(f"no program {name} here: {remedy}")
    return Path(found)
