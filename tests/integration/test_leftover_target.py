"""A recovery target that production kept from an earlier recovery does not keep a backup from being restored."""

from __future__ import annotations

import pytest

from lab.postgres import PostgresServer
from recovery.drill.postgres import drill
from recovery.postgres import backup as backups
from recovery.repository.verify import Verdict
from tests.support import Site


@pytest.fixture
def leftover(server: PostgresServer) -> object:
    server.execute("ALTER SYSTEM SET recovery_target_time = '2026-01-01 00:00:00+00'")
    yield
    server.execute("ALTER SYSTEM RESET recovery_target_time")


def test_a_leftover_recovery_target_does_not_stop_a_restore(site: Site, leftover: object) -> None:
    installation = site.installation()
    made = backups.take(installation.source("app038"), "full")
    assert drill(installation, "app038", made).verdict is Verdict.OK
