"""What a drill writes down while it runs: how long each phase took, and what every check found."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from recovery.drill.evidence import Check, Phase
from recovery.repository.verify import Verdict

Progress = Callable[[str, int, int | None], None]
"""Called with the phase, the bytes done and the bytes expected (None: not known)."""


@dataclass
class Record:
    progress: Progress
    phases: list[Phase] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.progress(name, 0, None)
        begun = time.monotonic()
        try:
            yield
        finally:
            self.phases.append(Phase(name, round(time.monotonic() - begun, 3)))

    def check(self, name: str, problems: list[str], fine: str) -> None:
        """A check that failed with problems, and is ok without."""
        verdict = Verdict.FAILED if problems else Verdict.OK
        self.checks.append(Check(name, verdict, "; ".join(problems) or fine))
