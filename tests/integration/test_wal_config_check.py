"""What `recovery config check` says of a system's WAL: the slot, the role, the server's settings."""

from __future__ import annotations

from pathlib import Path

import psycopg

from lab.postgres import SUPERUSER, PostgresServer
from tests.conftest import directory_repository
from tests.support import Site
from tests.wal import all_slots_in_use, new_server, new_site, point_at, slot_lsn, streaming, until, wait_stored, write


def checked(site: Site, *, expect: int) -> tuple[str, str]:
    """The state and the detail of app038's WAL."""
    systems = {each["what"]: each for each in site.json("config", "check", expect=expect)["systems"]}
    return systems["wal app038"]["state"], systems["wal app038"]["detail"]


def test_config_check_says_how_the_slot_stands(wal_site: Site, primary: PostgresServer) -> None:
    assert checked(wal_site, expect=0) == ("ok", "slot recovery will be made when WAL first streams")
    assert not slot_lsn(primary)
    with streaming(wal_site):
        wait_stored(primary)
        assert checked(wal_site, expect=0)[1].startswith("slot recovery streams, ")
    state, detail = checked(wal_site, expect=0)
    assert state == "ok" and detail.startswith("slot recovery waits for a receiver, ") and "MB are kept" in detail
    del wal_site.system["wal"]
    assert "wal app038" not in {each["what"] for each in wal_site.json("config", "check")["systems"]}


def test_config_check_names_a_role_that_may_not_replicate(bystander: Site) -> None:
    assert "the role bystander may not start replication -> ALTER ROLE" in checked(bystander, expect=1)[1]


def test_config_check_wants_a_free_slot_unless_there_is_one(wal_site: Site, primary: PostgresServer) -> None:
    with all_slots_in_use(primary):
        assert "all 10 replication slots are in use" in checked(wal_site, expect=1)[1]
        primary.execute("SELECT pg_drop_replication_slot('other0')")
        primary.execute("SELECT pg_create_physical_replication_slot('recovery', true)")
        assert checked(wal_site, expect=1)[0] == "ok"


def test_config_check_wants_a_free_sender_unless_it_streams(folder: Path) -> None:
    with new_server(folder, "small", max_wal_senders="1") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        with streaming(site):
            wait_stored(server)
            assert checked(site, expect=1)[0] == "ok"
        until(lambda: not server.execute("SELECT 1 FROM pg_stat_replication"))
        with psycopg.connect(server.dsn(), replication="database"):
            assert "all 1 replication connections are in use (max_wal_senders = 1)" in checked(site, expect=1)[1]


def test_config_check_names_a_server_without_wal_to_stream(folder: Path) -> None:
    with new_server(folder, "minimal", wal_level="minimal", max_wal_senders="0", summarize_wal="off") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        message = "wal_level is minimal: no continuous WAL is possible -> set wal_level = replica and restart"
        assert message in checked(site, expect=1)[1]


def test_config_check_names_a_slot_that_has_lost_wal(folder: Path) -> None:
    with new_server(folder, "tight", max_slot_wal_keep_size="16MB", max_wal_size="64MB") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        server.execute("SELECT pg_create_physical_replication_slot('recovery', true)")
        for _ in range(8):
            write(server, rows=1)
            server.execute("SELECT pg_switch_wal()")
        server.execute("CHECKPOINT")
        assert (
            "slot recovery has lost WAL that was not stored yet -> raise max_slot_wal_keep_size"
            in (checked(site, expect=1)[1])
        )


def test_config_check_names_a_timeout_that_would_drop_the_slot(folder: Path) -> None:
    server = PostgresServer(folder / "timed", major=18, settings={"idle_replication_slot_timeout": "1d"})
    server.passwords["backup"] = server.passwords[SUPERUSER]
    with server:
        site = new_site(folder, server, repository=directory_repository(folder))
        point_at(site, server)
        assert (
            "idle_replication_slot_timeout is set: it drops WAL that waits for a receiver -> set"
            in (checked(site, expect=1)[1])
        )
