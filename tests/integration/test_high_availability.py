"""A system of several hosts: the stream follows the primary by itself, base backups are read from a standby."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from recovery.postgres.server import SandboxServer
from recovery.postgres.wal.positions import parse_lsn
from tests.conftest import directory_repository
from tests.support import OWNER
from tests.wal import current_lsn, new_server, new_site, slot_lsn, standby_of, streaming, until, wait_stored, write


def test_a_stream_follows_a_failover_and_nothing_that_the_new_primary_has_is_lost(folder: Path) -> None:
    with new_server(folder, "one", wal_keep_size="1GB", summarize_wal="on") as one:
        write(one)
        with standby_of(one, folder, "two") as two:
            site = new_site(folder, one, repository=directory_repository(folder))
            backup = site.connections["app038_backup"]
            hosts = {"ports": f"{one.port},{two.port}", "target_session_attrs": "read-write"}
            site.add(replace(backup, host=f"{one.host},{two.host}", extra=hosts))
            site.add(replace(backup, id="app038_standby", port=two.port))
            site.system["base"] = {"connection": "app038_standby"}
            checked = {item["what"]: item for item in site.json("config", "check")["systems"]}
            assert checked["base app038"]["state"] == checked["postgres app038"]["state"] == "ok"
            assert checked["base app038"]["detail"].endswith(", a standby")
            with streaming(site) as outcome:
                until(lambda: slot_lsn(one))
                assert site.backup("full").manifest.server.in_recovery
                write(one)
                wait_stored(one)
                end = current_lsn(one)
                until(lambda: parse_lsn(two.execute("SELECT pg_last_wal_replay_lsn()")[0][0]) >= end)
                one.kill()
                time.sleep(1)
                two.execute("SELECT pg_promote()")
                until(lambda: slot_lsn(two))
                write(two)
                wait_stored(two)
            assert outcome[0].gaps == [] and outcome[0].reconnects > 0 and outcome[0].progress.timeline == 2
            (kept,) = two.execute("SELECT count(*), max(id) FROM load")
        site.run("restore", "postgres", "app038", "--to", "latest", "--pgdata", folder / "restored")
        found = site.catalog().newest("full")
        assert found is not None
        sandbox = SandboxServer(
            folder / "restored", tools=site.tools(found.manifest), superuser="postgres", owner=OWNER
        )
        with sandbox, sandbox.connect() as session:
            assert session.execute("SELECT count(*), max(id) FROM load").fetchall() == [kept]
