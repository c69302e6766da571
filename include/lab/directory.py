"""The lab's directory: who owns it (a lock that dies with its holder), its state file, and tidying after a crash."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lab.errors import AlreadyRunningError, LabError
from lab.process import sweep
from lab.users import blocking_directory, service_user

REPOSITORY = Path(__file__).resolve().parents[2]

# Servers' data, and all that a new start throws away. What else lies in the directory (reports) is not the lab's.
PARTS = ("postgres", "objects", "vault", "prometheus", "airflow", "sandbox", "logs")
_FILES = ("state.json", "env", "env.json", "recovery.yaml", "vault-shares")
_OWNED = ".recovery-lab"
# Guards need this long to end their servers after the launcher has died.
_GUARD_SECONDS = 25.0


def default_root() -> Path:
    """`.lab` in the repository; a link to /var/tmp where root runs the lab from a home directory that is closed."""
    root = REPOSITORY / ".lab"
    user = service_user()
    if not user or not blocking_directory(REPOSITORY, user):
        return root
    if not root.is_symlink():
        if root.exists():
            raise LabError(f"{root} cannot be reached by user {user.name}: remove it, and the lab puts it elsewhere")
        elsewhere = Path(tempfile.mkdtemp(prefix="recovery-lab-", dir="/var/tmp"))
        elsewhere.chmod(0o755)
        root.symlink_to(elsewhere)
    elsewhere = root.resolve()
    elsewhere.mkdir(mode=0o755, exist_ok=True)
    return elsewhere


class LabDirectory:
    """One `.lab/`; `acquire` makes it this process's until `release` or death."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._lock: int | None = None

    @property
    def running(self) -> bool:
        """Whether some process holds the directory."""
        path = self.root / "lock"
        if not path.exists():
            return False
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def state(self) -> dict[str, Any]:
        """What the last start wrote, or nothing."""
        try:
            state: dict[str, Any] = json.loads((self.root / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return state

    def acquire(self) -> None:
        """Take the directory, end what a crashed launcher left, and throw its data away."""
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyRunningError(self.where()) from None
        self._lock = descriptor
        try:
            self.tidy()
            self._remove_data()
        except LabError:
            self.release()
            raise

    def release(self) -> None:
        """Give the directory up, without the files that tell how to reach servers that are gone."""
        if self._lock is None:
            return
        for name in _FILES:
            (self.root / name).unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def tidy(self) -> None:
        """End the processes that the last start left behind, if its launcher was killed."""
        lab_id = self.state().get("id")
        if lab_id:
            sweep(lab_id, patience_seconds=_GUARD_SECONDS)
        for name in _FILES:
            (self.root / name).unlink(missing_ok=True)

    def write_private(self, name: str, text: str) -> Path:
        """Write a file that holds secrets: mode 0600, and never half of it to be seen."""
        path = self.root / name
        draft = path.with_name(f"{name}.new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        draft.replace(path)
        return path

    def where(self) -> str:
        """One line for whoever finds the lab running."""
        state = self.state()
        return f"already running at {self.root} (pid {state.get('pid', 'unknown')})"

    def _remove_data(self) -> None:
        owned = self.root / _OWNED
        present = [name for name in PARTS if (self.root / name).exists()]
        if present and not owned.exists():
            raise LabError(f"{self.root} holds {', '.join(present)} that no lab made: name another directory")
        owned.touch()
        for name in present:
            shutil.rmtree(self.root / name)
