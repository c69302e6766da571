"""Continuous WAL from real servers: what is acknowledged is stored, byte for byte, through restarts and promotions."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from recovery.errors import IntegrityError, WalError
from recovery.postgres.wal import stream as streams
from recovery.postgres.wal.positions import Segment, parse_lsn
from recovery.postgres.wal.receiver import Progress
from tests.conftest import directory_repository, s3_repository
from tests.support import Site, s3_connection
from tests.wal import (
    archive_of,
    compare,
    current_lsn,
    new_server,
    new_site,
    point_at,
    slot_lsn,
    standby_of,
    streaming,
    until,
    wait_stored,
    write,
)

SIZE = 16 << 20


def test_what_the_server_wrote_is_stored_as_it_wrote_it(wal_site: Site, primary: PostgresServer) -> None:
    with streaming(wal_site) as outcome:
        until(lambda: slot_lsn(primary))
        for _ in range(20):
            write(primary)
        written = wait_stored(primary)
    assert compare(wal_site, primary) >= written
    assert outcome[0].gaps == [] and outcome[0].reconnects == 0
    index = archive_of(wal_site, primary).index()
    assert len(index.segments) >= 2 and len(index.pieces) <= 1


def test_into_s3_whole_segments_are_locked_and_pieces_go(
    folder: Path, primary: PostgresServer, objects: SeaweedFS
) -> None:
    site = new_site(folder, primary, repository=s3_repository())
    site.add(s3_connection(objects))
    with streaming(site):
        until(lambda: slot_lsn(primary))
        for _ in range(6):
            write(primary)
            wait_stored(primary)
    compare(site, primary)
    archive = archive_of(site, primary)
    index = archive.index()
    assert index.segments and all(segment not in index.segments for segment in index.pieces)
    client, settings = objects.client(), site.document["repositories"]["main"]["s3"]

    def locked(key: str) -> bool:
        answer = client.head_object(Bucket=settings["bucket"], Key=f"{settings['prefix']}/{key}")
        return "ObjectLockMode" in answer

    assert all(locked(archive.segment_key(segment)) for segment in index.segments)
    assert not any(
        locked(archive.piece_key(segment, piece)) for segment in index.pieces for piece in index.pieces[segment]
    )


def test_a_stream_that_is_told_to_stop_in_a_backlog_stops_there_and_loses_nothing(
    wal_site: Site, primary: PostgresServer
) -> None:
    primary.execute("SELECT pg_create_physical_replication_slot('recovery', true)")
    write(primary, rows=1_000_000)
    begun: list[Progress] = []
    outcome = streams.stream(
        lambda: wal_site.installation().source("app038"), stop=lambda: bool(begun), tick=begun.append
    )
    assert outcome.progress.stored == outcome.progress.received < current_lsn(primary) - SIZE
    with streaming(wal_site) as then:
        wait_stored(primary)
    compare(wal_site, primary)
    assert then[0].gaps == []


def test_an_idle_systems_last_commit_is_stored_and_pieces_stay_few(wal_site: Site, primary: PostgresServer) -> None:
    wal_site.system["wal"] = {"interval": "20ms"}
    with streaming(wal_site):
        until(lambda: slot_lsn(primary))
        write(primary, rows=1)
        wait_stored(primary)
        for _ in range(40):
            write(primary, rows=1)
            wait_stored(primary)
    assert compare(wal_site, primary) >= current_lsn(primary) - 8192
    index = archive_of(wal_site, primary).index()
    (pieces,) = [pieces for segment, pieces in index.pieces.items() if segment not in index.segments]
    assert len(pieces) <= 17


def test_the_next_stream_goes_on_in_the_open_segment_and_proves_its_pieces(
    wal_site: Site, primary: PostgresServer
) -> None:
    for _ in range(3):
        with streaming(wal_site):
            until(lambda: slot_lsn(primary))
            write(primary, rows=100)
            wait_stored(primary)
        compare(wal_site, primary)
    write(primary, rows=200_000)
    with streaming(wal_site) as outcome:
        wait_stored(primary)
    compare(wal_site, primary)
    index = archive_of(wal_site, primary).index()
    first = min(index.segments)
    assert [segment.number for segment in sorted(index.segments)] == list(
        range(first.number, first.number + len(index.segments))
    )
    assert outcome[0].gaps == []


def test_other_wal_under_a_segments_name_stops_the_stream_and_is_named(wal_site: Site, primary: PostgresServer) -> None:
    archive = archive_of(wal_site, primary)
    with pytest.raises(IntegrityError, match=r"other WAL under this name"), streaming(wal_site):
        until(lambda: slot_lsn(primary))
        write(primary, rows=1)
        wait_stored(primary)
        key = archive.segment_key(Segment.at(1, current_lsn(primary), SIZE))
        archive.store.put(key, b"another server's", metadata={"sealed-hash": "xxh3-128:0"})
        write(primary, rows=300_000)
        until(lambda: _ended(primary))
    assert archive.store.get(key) == b"another server's"


def _ended(server: PostgresServer) -> bool:
    return not server.execute("SELECT 1 FROM pg_stat_replication WHERE application_name = 'recovery'")


def test_a_second_receiver_of_one_slot_is_told_that_there_is_one(wal_site: Site, primary: PostgresServer) -> None:
    with streaming(wal_site):
        until(lambda: not _ended(primary))
        message = wal_site.error("wal", "stream", "app038", "--for", "5s")
    assert 'replication slot "recovery" is active for PID' in message and "another receiver streams" in message


def test_a_lost_slot_is_a_gap_that_is_reported_and_a_full_is_requested(folder: Path) -> None:
    with new_server(folder, "tight", max_slot_wal_keep_size="32MB", max_wal_size="64MB") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        with streaming(site):
            until(lambda: slot_lsn(server))
            write(server)
            stored = wait_stored(server)
        for _ in range(4):
            write(server, rows=300_000)
            server.execute("CHECKPOINT")
        (status,) = server.execute("SELECT wal_status FROM pg_replication_slots")[0]
        assert status == "lost"
        with streaming(site) as outcome:
            until(lambda: slot_lsn(server))
            write(server)
            wait_stored(server)
        (gap,) = outcome[0].gaps
        assert stored <= gap.begin < gap.end
        assert "full.json" in "".join(site.keys())
        assert [
            finding["what"].partition(":")[0] for finding in site.json("wal", "audit", "app038", expect=1)["findings"]
        ] == ["gap"] * 2


def test_a_promoted_standby_is_followed_without_a_gap(folder: Path) -> None:
    with new_server(folder, "first") as first:
        site = new_site(folder, first, repository=directory_repository(folder))
        write(first)
        with standby_of(first, folder, "second") as second:
            with streaming(site):
                until(lambda: slot_lsn(first))
                write(first)
                wait_stored(first)
            write(first)
            end = current_lsn(first)
            until(lambda: parse_lsn(second.execute("SELECT pg_last_wal_replay_lsn()")[0][0]) >= end)
            first.kill()
            second.execute("SELECT pg_promote()")
            until(lambda: not second.execute("SELECT pg_is_in_recovery()")[0][0])
            point_at(site, second)
            with streaming(site) as outcome:
                until(lambda: slot_lsn(second))
                write(second)
                wait_stored(second)
            assert outcome[0].gaps == [] and outcome[0].progress.timeline == 2
            compare(site, second, timeline=1)
            compare(site, second, timeline=2)
            index = archive_of(site, second).index()
            history = index.history(2)
            assert history is not None and index.reach(history, end) >= current_lsn(second) - 8192


def test_an_old_primary_is_refused(folder: Path) -> None:
    with new_server(folder, "old") as old, standby_of(old, folder, "new") as new:
        site = new_site(folder, old, repository=directory_repository(folder))
        new.execute("SELECT pg_promote()")
        until(lambda: not new.execute("SELECT pg_is_in_recovery()")[0][0])
        point_at(site, new)
        with streaming(site):
            until(lambda: slot_lsn(new))
            write(new)
            wait_stored(new)
        point_at(site, old)
        with (
            pytest.raises(WalError, match="this server is on timeline 1, and the repository has WAL of timeline 2"),
            streaming(site),
        ):
            until(lambda: slot_lsn(old))


def test_a_commit_that_waited_for_the_receiver_is_in_the_repository(folder: Path) -> None:
    with new_server(folder, "careful") as server:
        site = new_site(folder, server, repository=directory_repository(folder))
        site.system["wal"] = {"interval": "10ms"}
        write(server)
        with streaming(site):
            until(lambda: slot_lsn(server))
            server.execute("ALTER SYSTEM SET synchronous_standby_names = 'recovery'")
            server.execute("SELECT pg_reload_conf()")
            with psycopg.connect(server.dsn(), autocommit=True) as session:
                for _ in range(50):
                    session.execute("INSERT INTO load (filler) VALUES ('x')")
                    row = session.execute("SELECT pg_current_wal_lsn()").fetchone()
                    assert row is not None and archive_of(site, server).index().end_of(1) >= parse_lsn(row[0]) - 200
            server.execute("ALTER SYSTEM RESET synchronous_standby_names")
            server.execute("SELECT pg_reload_conf()")
