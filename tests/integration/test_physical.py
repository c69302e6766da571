"""Full backups: what the protocol brings is stored in whole volumes, and restored it opens to the source's rows."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, datetime

import psycopg
import pyrage
import pytest

from lab.postgres import PostgresServer
from recovery.config import BaseBackupOptions, Compression
from recovery.errors import ConfigurationError, PreconditionError
from recovery.postgres import backup as backups
from recovery.postgres import base, inspect, restore
from recovery.postgres.backup import Source
from recovery.repository import layout
from recovery.repository.catalog import Backup
from recovery.repository.sealing import unseal_bytes
from tests.conftest import ODD_DATABASE, Servers
from tests.memory import MemoryStore
from tests.support import OWNER, Site, contents, opened, server_contents

SiteOf = Callable[[PostgresServer], Site]


def restored(site: Site, made: Backup, *, name: str = "data") -> None:
    places = restore.place_tablespaces(made.manifest, {"app038_archive": str(site.folder / f"{name}-archive")})
    site.restore(made, site.folder / name, tablespaces=places)


def test_a_full_backup_restores_to_equal_rows(any_server: PostgresServer, site_of: SiteOf) -> None:
    site = site_of(any_server)
    made = site.backup()
    restored(site, made)
    with opened(site, made, site.folder / "data") as sandbox:
        assert contents(sandbox.connect) == server_contents(any_server)
        with sandbox.connect() as session:
            row = session.execute(
                "SELECT pg_tablespace_location(t.oid), timeline_id FROM pg_tablespace t, pg_control_checkpoint()"
                " WHERE spcname = 'app038_archive'"
            ).fetchone()
    # A new timeline: its WAL can never be taken for the source's.
    assert row == (str(site.folder / "data-archive"), 2)


@pytest.mark.parametrize("major", [15, 17])
def test_a_backup_that_the_server_compresses_restores_to_equal_rows(
    servers: Servers, site_of: SiteOf, major: int
) -> None:
    server = servers.source(major)
    site = site_of(server)
    site.system["base"] = {"compression": {"where": "server", "level": 3}}
    made = site.backup()
    assert {item.compression for item in made.manifest.objects if item.role == "volume"} == {"zstd-by-source"}
    restored(site, made)
    with opened(site, made, site.folder / "data") as sandbox:
        assert contents(sandbox.connect) == server_contents(server)


def test_a_server_without_zstd_is_refused_before_anything_is_copied(servers: Servers, site_of: SiteOf) -> None:
    server = servers.source(18)
    ((methods,),) = server.execute("SELECT enumvals FROM pg_settings WHERE name = 'wal_compression'")
    if "zstd" in methods:
        pytest.skip("this build of PostgreSQL 18 has zstd")
    site = site_of(server)
    site.system["base"] = {"compression": {"where": "server"}}
    with pytest.raises(PreconditionError) as caught:
        site.backup()
    assert "the server was built without zstd -> set base.compression.where: client" in str(caught.value)
    assert site.keys() == []


def test_a_backup_in_s3_under_object_lock_restores_to_equal_rows(s3_site: Site, server: PostgresServer) -> None:
    made = s3_site.backup()
    restored(s3_site, made)
    with opened(s3_site, made, s3_site.folder / "data") as sandbox:
        assert contents(sandbox.connect) == server_contents(server)


def test_a_backup_taken_while_the_source_is_written_to_opens_consistent(server: PostgresServer, site: Site) -> None:
    site.system["base"] = {"max_rate_mib_per_second": 25}
    server.execute("CREATE TABLE pairs (a bigint, b bigint)")
    try:
        with psycopg.connect(server.dsn()) as writer:
            writes = iter(range(1_000_000))

            def write(what: str, done: int, expected: int | None) -> None:
                number = next(writes)
                writer.execute("INSERT INTO pairs SELECT n, -n FROM generate_series(1, 2000) AS n")
                writer.commit()
                assert number < 1000

            made = backups.take(site.installation().source("app038"), "full", progress=write)
        restored(site, made)
        with opened(site, made, site.folder / "data") as sandbox, sandbox.connect() as session:
            row = session.execute("SELECT count(*), sum(a + b), count(*) % 2000 FROM pairs").fetchone()
            assert row is not None and row[0] > 0 and row[1:] == (0, 0)
    finally:
        server.execute("DROP TABLE pairs")


def test_inherited_timeouts_cannot_break_a_backup(server: PostgresServer, site: Site) -> None:
    site.system["base"] = {"max_rate_mib_per_second": 25}
    names = [
        *("statement_timeout", "lock_timeout", "idle_session_timeout"),
        *("idle_in_transaction_session_timeout", "transaction_timeout", "wal_sender_timeout"),
    ]
    for name in names:
        server.execute(f"ALTER ROLE backup SET {name} = '1s'")  # type: ignore[arg-type]
    try:
        began = time.monotonic()
        made = site.backup()
        assert time.monotonic() - began > 2
        assert site.catalog().find(made.id) == made
        dumped = site.backup("dump")
        assert site.catalog().find(dumped.id) == dumped
    finally:
        for name in names:
            server.execute(f"ALTER ROLE backup RESET {name}")  # type: ignore[arg-type]


# What lies in the store.


def take(source: Source, store: MemoryStore, *, recipients: list[object], volume_bytes: int) -> base.Taken:
    server = inspect.inspect(source.connection)
    return base.take(
        source.connection,
        store,
        folder="b/",
        label="test",
        server=server,
        options=BaseBackupOptions(compression=Compression(level=1, workers=1)),
        recipients=recipients,
        volume_bytes=volume_bytes,
    )


def test_volumes_are_whole_tars_that_together_hold_the_servers_manifest(site: Site, server: PostgresServer) -> None:
    identity, store, limit = pyrage.x25519.Identity.generate(), MemoryStore(part_size=1 << 20), 3 << 20
    taken = take(site.installation().source("app038"), store, recipients=[identity.to_public()], volume_bytes=limit)
    ((archive,),) = server.execute("SELECT oid FROM pg_tablespace WHERE spcname = 'app038_archive'")
    found: dict[str, int] = {}
    volumes = [item for item in taken.objects if item.role == "volume"]
    assert len(volumes) > 8
    assert {item.tablespace for item in volumes} == {None, archive}
    for item in volumes:
        content = unseal_bytes(store, item.sealed("b/"), identities=[identity])
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            members = tar.getmembers()
        assert content.endswith(bytes(1024))
        assert len(content) <= limit + 1024 or len(members) == 1
        prefix = f"pg_tblspc/{item.tablespace}/" if item.tablespace else ""
        files = {prefix + member.name: member.size for member in members if member.isfile()}
        assert not files.keys() & found.keys()
        found |= files
    (server_manifest,) = [item for item in taken.objects if item.role == "backup_manifest"]
    assert not server_manifest.encrypted
    listed = json.loads(unseal_bytes(store, server_manifest.sealed("b/"), identities=[]))["Files"]
    in_manifest = {
        entry.get("Path") or bytes.fromhex(entry["Encoded-Path"]).decode(): entry["Size"] for entry in listed
    }
    extra = {name: size for name, size in found.items() if name not in in_manifest}
    assert {name: size for name, size in found.items() if name in in_manifest} == in_manifest
    # WAL is named by its range in the manifest, and the map of the tablespaces is written after it.
    assert all(name.startswith("pg_wal/") or name == "tablespace_map" for name in extra)


def test_objects_lie_where_the_format_says_and_the_manifest_names_each(site: Site) -> None:
    made = site.backup()
    folder = layout.backup_folder("app038", made.manifest.server.system_identifier, made.id)
    named = {folder + item.key for item in made.manifest.objects} | {folder + "manifest.json"}
    assert set(site.keys()) == named
    assert {item.key for item in made.manifest.objects} == {
        *("volumes/00000.tar.zst.age", "volumes/00001.tar.zst.age", "backup_manifest.zst"),
    }


def test_the_manifest_tells_what_a_restore_elsewhere_needs(any_server: PostgresServer, site_of: SiteOf) -> None:
    site = site_of(any_server)
    began = datetime.now(UTC)
    found = site.backup().manifest
    assert began.replace(microsecond=0) <= found.started_at <= found.finished_at <= datetime.now(UTC)
    ((version, identifier),) = any_server.execute(
        "SELECT current_setting('server_version_num')::int, system_identifier FROM pg_control_system()"
    )
    assert found.server.version_number == version and found.server.major == any_server.major
    assert found.server.system_identifier == str(identifier)
    assert found.server.data_checksums and found.server.superuser == "postgres"
    assert {database.name for database in found.server.databases} == {
        *("postgres", "app038", "app038_reporting", ODD_DATABASE)
    }
    databases = {database.name: database for database in found.server.databases}
    assert "pg_trgm" in databases["app038"].extensions
    assert databases["app038"].encoding == "UTF8" and databases["app038"].collate == "C.UTF-8"
    assert [space.name for space in found.server.tablespaces] == ["app038_archive"]
    assert found.wal is not None and found.wal.included and found.wal.start_timeline == 1
    assert found.recipients == [str(site.identity.to_public())]
    assert site.catalog().backups[-1].manifest == found


def test_a_backup_leaves_no_slot_and_no_session(server: PostgresServer, site: Site) -> None:
    site.backup()
    deadline = time.monotonic() + 5
    while server.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = 'recovery'"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.execute("SELECT slot_name FROM pg_replication_slots") == []


def test_two_backups_within_one_second_never_share_a_folder(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(datetime):
        """A clock that stands still for the second backup."""

        moments = iter([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])

        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def, override]
            return datetime(2026, 11, 23, 2, 0, next(cls.moments), tzinfo=UTC)

    monkeypatch.setattr(backups, "datetime", Stopped)
    first, second = site.backup(), site.backup()
    assert first.folder != second.folder
    assert [backup.id for backup in site.catalog().backups] == [first.id, second.id]
    restored(site, first)


def test_the_wal_between_start_and_end_is_in_the_backup(site: Site) -> None:
    found = site.backup().manifest
    assert found.wal is not None
    (server_manifest,) = [item for item in found.objects if item.role == "backup_manifest"]
    folder = layout.backup_folder("app038", found.server.system_identifier, found.id)
    ranges = json.loads(unseal_bytes(site.store(), server_manifest.sealed(folder), identities=[]))["WAL-Ranges"]
    assert (ranges[0]["Start-LSN"], ranges[-1]["End-LSN"]) == (found.wal.start_lsn, found.wal.end_lsn)


def test_a_worker_that_can_only_make_backups_cannot_read_them(site: Site) -> None:
    del site.document["encryption"]["identity"]
    site.backup()
    with pytest.raises(ConfigurationError, match="no identity is configured here"):
        site.installation().identities()


# Restoring.


def test_files_belong_to_the_owner_and_to_nobody_else(site: Site) -> None:
    made = site.backup()
    restored(site, made)
    for folder in (site.folder / "data", site.folder / "data-archive"):
        assert folder.stat().st_mode & 0o777 == 0o700
        for path in [folder, *folder.rglob("*")]:
            status = path.lstat()
            assert OWNER is None or (status.st_uid, status.st_gid) == (OWNER.uid, OWNER.gid), path
            assert path.is_symlink() or not status.st_mode & 0o077, path


def test_a_tablespace_that_is_not_mapped_goes_back_to_its_own_path(site: Site) -> None:
    made = site.backup()
    (space,) = made.manifest.server.tablespaces
    assert {str(path) for path in restore.place_tablespaces(made.manifest, {}).values()} == {space.path}
    by_path = restore.place_tablespaces(made.manifest, {space.path: "/elsewhere"})
    assert {str(path) for path in by_path.values()} == {"/elsewhere"}
    with pytest.raises(ConfigurationError) as caught:
        restore.place_tablespaces(made.manifest, {"archiv": "/elsewhere"})
    assert "the backup has no tablespace 'archiv' -> it has: app038_archive" in str(caught.value)


def test_the_source_still_holds_its_tablespace_so_restoring_over_it_is_refused(site: Site) -> None:
    made = site.backup()
    places = restore.place_tablespaces(made.manifest, {})
    with pytest.raises(PreconditionError, match="the target directory is not empty"):
        site.restore(made, site.folder / "data", tablespaces=places)
    assert list((site.folder / "data").iterdir()) == []


def test_targets_that_production_kept_from_an_earlier_recovery_do_not_stop_this_one(
    site: Site, server: PostgresServer
) -> None:
    server.execute("ALTER SYSTEM SET recovery_target_time = '2026-01-01 00:00:00+00'")
    settings = server.data_dir / "postgresql.conf"
    before = settings.read_text()
    settings.write_text(before + "recovery_target_name = 'before the migration'\n")
    try:
        made = site.backup()
    finally:
        settings.write_text(before)
        server.execute("ALTER SYSTEM RESET ALL")
    restored(site, made)
    with opened(site, made, site.folder / "data") as sandbox, sandbox.connect() as session:
        assert session.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
    # Also with its own postgresql.conf, as a person would start it.
    done = subprocess.run(
        [server.bindir / "postgres", "-D", site.folder / "data", "-C", "recovery_target_time"],
        capture_output=True,
        text=True,
        **({"user": OWNER.uid, "group": OWNER.gid, "extra_groups": []} if OWNER else {}),
    )
    assert (done.returncode, done.stdout.strip()) == (0, "")
