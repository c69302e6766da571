"""One real Airflow with App038 and a store, started when a test first asks for it, for all tests of the DAGs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.system import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """App038 under load with its Vault, an S3 server with Object Lock, and Airflow with this repository's DAGs."""
    with tempfile.TemporaryDirectory(prefix="recovery-dags-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        root.chmod(0o755)
        with Lab(root / "lab", size_mb=40, prometheus=False, staging=False) as started:
            yield started
