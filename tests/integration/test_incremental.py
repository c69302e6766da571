"""Incremental backups: what changed, on a parent that can be trusted; restored with its chain it is the source's rows."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.app038 import DATABASE
from lab.postgres import PostgresServer
from lab.users import make_directory
from recovery.drill.postgres import drill
from recovery.errors import IntegrityError, LeaseError
from recovery.repository import layout
from recovery.repository.catalog import Backup
from recovery.repository.lease import Lease
from recovery.repository.verify import Verdict
from tests.conftest import Servers, directory_repository
from tests.forge import forge, without_member
from tests.support import Site, contents, make_site, new_folder, opened, server_contents

SiteOf = Callable[[PostgresServer], Site]
ARCHIVE = "app038_archive"


def on(server: PostgresServer, *statements: str) -> None:
    for statement in statements:
        server.execute(statement, dbname=DATABASE)  # type: ignore[arg-type]


def incremental(site: Site) -> Backup:
    made = site.backup("incremental")
    assert made.manifest.kind == "incremental", made.manifest.notes
    return made


def places_of(site: Site, made: Backup, name: str) -> dict[int, Path]:
    return {space.oid: site.folder / f"{name}-{space.name}" for space in made.manifest.server.tablespaces}


@contextlib.contextmanager
def restored(site: Site, made: Backup, name: str) -> Iterator[dict[tuple[str, ...], tuple[Any, ...]]]:
    """What a server on the restored directory holds."""
    site.restore(made, site.folder / name, tablespaces=places_of(site, made, name))
    with opened(site, made, site.folder / name) as sandbox:
        yield contents(sandbox.connect)


@pytest.fixture(scope="module", params=[17, 18])
def changing(request: pytest.FixtureRequest, servers: Servers) -> Iterator[tuple[Site, list[tuple[Backup, Any]]]]:
    """A full and three incrementals on it, with what the source held when each was taken."""
    server = servers.source(request.param)
    extra = make_directory(server.directory_beside / "extra", user=server.user)
    with new_folder() as folder:
        site = make_site(folder, server, repository=directory_repository(folder))
        taken: list[tuple[Backup, Any]] = []

        def take(made: Backup) -> None:
            taken.append((made, server_contents(server)))

        on(
            server,
            "CREATE TABLE grows AS SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) AS n",
            f"CREATE TABLE archived TABLESPACE {ARCHIVE} AS SELECT n FROM generate_series(1, 50000) AS n",
            "CREATE TABLE emptied AS SELECT n FROM generate_series(1, 50000) AS n",
            "CREATE TABLE dropped AS SELECT n FROM generate_series(1, 5000) AS n",
            f"CREATE TABLESPACE extra LOCATION '{extra}'",
            "CREATE TABLE elsewhere TABLESPACE extra AS SELECT n FROM generate_series(1, 5000) AS n",
        )
        try:
            take(site.backup())
            on(
                server,
                "UPDATE grows SET text = 'changed' WHERE n % 1000 = 0",
                "UPDATE archived SET n = -n WHERE n % 900 = 0",
                "TRUNCATE emptied",
                "INSERT INTO emptied SELECT n FROM generate_series(1, 100) AS n",
                "DROP TABLE dropped",
                f"CREATE TABLE new TABLESPACE {ARCHIVE} AS SELECT n FROM generate_series(1, 3000) AS n",
            )
            take(incremental(site))
            on(server, "DROP TABLE elsewhere", "DROP TABLESPACE extra")
            on(server, "INSERT INTO grows SELECT n FROM generate_series(1, 9000) AS n", "DELETE FROM new WHERE n > 9")
            on(server, "VACUUM grows, new, archived")
            on(server, "CREATE DATABASE later")
            server.execute("CREATE TABLE late AS SELECT 1 AS n", dbname="later")
            take(incremental(site))
            on(server, "INSERT INTO emptied SELECT n FROM generate_series(1, 70000) AS n")
            take(incremental(site))
            yield site, taken
        finally:
            on(server, "DROP TABLE IF EXISTS grows, archived, emptied, dropped, elsewhere, new")
            on(server, "DROP TABLESPACE IF EXISTS extra", "DROP DATABASE IF EXISTS later")


Changing = tuple[Site, list[tuple[Backup, Any]]]


def test_each_member_names_its_parent_and_the_whole_chain_before_it(changing: Changing) -> None:
    _, taken = changing
    ids = [made.id for made, _ in taken]
    assert [made.manifest.parent for made, _ in taken] == [None, *ids[:-1]]
    assert [made.manifest.chain for made, _ in taken] == [ids[:number] for number in range(4)]
    assert {item.role for made, _ in taken for item in made.manifest.objects} == {"volume", "backup_manifest"}
    assert all(made.manifest.stored_bytes < taken[0][0].manifest.stored_bytes / 2 for made, _ in taken[1:])


@pytest.mark.parametrize("number", [1, 3])
def test_an_incremental_restores_to_what_the_source_held_when_it_was_taken(changing: Changing, number: int) -> None:
    site, taken = changing
    made, held = taken[number]
    name = f"restored-{number}"
    with restored(site, made, name) as found:
        assert found == held
    left = {
        path.name for folder in (site.folder / name, *places_of(site, made, name).values()) for path in folder.iterdir()
    }
    assert not {"recovery.staging", "recovery.incomplete", "pg_wal.log"} & left
    for place in (site.folder / name, *places_of(site, made, name).values()):
        assert all(path.lstat().st_uid == place.stat().st_uid for path in place.rglob("*"))


def test_a_drill_proves_an_incremental_and_its_chain(changing: Changing) -> None:
    site, taken = changing
    found = drill(site.installation(), "app038", taken[-1][0])
    assert {check.name: check.verdict for check in found.checks} == {
        "pg_verifybackup": Verdict.OK,
        "rows": Verdict.OK,
        "pg_amcheck": Verdict.OK,
    }
    assert found.fetched_bytes == sum(
        item.stored_bytes for made, _ in taken for item in made.manifest.objects if item.role == "volume"
    )


def test_the_command_plans_and_restores_the_newest_and_verifies_each_alone(changing: Changing) -> None:
    site, taken = changing
    ids = [made.id for made, _ in taken]
    plan = site.json("plan", "postgres", "app038")
    assert (plan["backup"], plan["chain"]) == (ids[-1], ids)
    assert plan["fetch_bytes"] == sum(made.manifest.stored_bytes for made, _ in taken)
    shown = site.run("plan", "postgres", "app038", "--to", ids[1]).stdout
    assert f"backup          {ids[1]} (PostgreSQL" in shown and f"builds on       {ids[0]}\n" in shown
    (report,) = site.json("verify", ids[2], "--level", "opens")
    assert (report["verdict"], report["objects"]) == ("ok", len(taken[2][0].manifest.objects))
    restored = site.json(
        *("restore", "postgres", "app038", "--to", ids[1], "--pgdata", site.folder / "command"),
        *("--tablespace", f"{ARCHIVE}={site.folder / 'command-archive'}"),
        *("--tablespace", f"extra={site.folder / 'command-extra'}"),
    )
    assert restored["chain"] == ids[:2]
    assert (site.folder / "command" / "recovery.signal").exists()


def flip(site: Site, key: str) -> None:
    path = site.folder / "repository" / key
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.faults
@pytest.mark.parametrize("role", ["volume", "backup_manifest"])
def test_a_damaged_member_is_found_before_anything_is_combined(
    changing: Changing, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, taken = changing
    made, (middle, _) = taken[-1][0], taken[1]
    key = middle.objects(role)[0].key
    monkeypatch.setattr("recovery.postgres.combine.combine", lambda *_, **__: pytest.fail("combined all the same"))
    flip(site, key)
    try:
        with pytest.raises(IntegrityError, match=f"/{key}: the object's SHA-256 differs"):
            site.restore(made, site.folder / "damaged", tablespaces=places_of(site, made, "damaged"))
    finally:
        flip(site, key)
    for place in (site.folder / "damaged", *places_of(site, made, "damaged").values()):
        assert list(place.iterdir()) == []


@pytest.mark.faults
def test_a_member_that_lacks_a_file_of_the_server_s_manifest_is_refused(changing: Changing) -> None:
    site, taken = changing
    last = taken[-1][0]
    forged = forge(site, last, change=without_member("PG_VERSION"))
    try:
        with pytest.raises(IntegrityError, match="PG_VERSION is missing -> use another backup, and report this"):
            site.restore(forged, site.folder / "lacking", tablespaces=places_of(site, last, "lacking"))
        assert list((site.folder / "lacking").iterdir()) == []
    finally:
        shutil.rmtree(site.folder / "repository" / forged.folder)


@pytest.mark.faults
def test_what_a_killed_restore_of_a_chain_leaves_is_cleared_by_the_next(changing: Changing) -> None:
    """pg_combinebackup is slowed down by a script before it, so that the kill comes while members lie unpacked."""
    site, taken = changing
    made, held = taken[-1]
    tools, data = site.folder / "tools", site.folder / "killed"
    real = Path(site.system["tools"][made.manifest.server.major])
    tools.mkdir(mode=0o755)
    for program in real.iterdir():
        (tools / program.name).symlink_to(program)
    (tools / "pg_combinebackup").unlink()
    (tools / "pg_combinebackup").write_text("#!/bin/sh\nexec sleep 60\n")
    (tools / "pg_combinebackup").chmod(0o755)
    site.system["tools"] = {made.manifest.server.major: str(tools)}
    try:
        process = site.start(
            *("restore", "postgres", "app038", "--to", made.id, "--pgdata", data),
            *("--tablespace", f"{ARCHIVE}={site.folder / f'killed-{ARCHIVE}'}"),
        )
        while not (data / "recovery.staging" / "result.log").exists():
            assert process.poll() is None
        process.kill()
        process.communicate()
    finally:
        site.system["tools"] = {made.manifest.server.major: str(real)}
    assert {"recovery.incomplete", "recovery.staging"} <= {path.name for path in data.iterdir()}
    with restored(site, made, "killed") as found:
        assert found == held


def test_members_that_the_server_compressed_are_restored_too(servers: Servers, site_of: SiteOf) -> None:
    server = servers.source(17)
    site = site_of(server)
    site.system["base"] = {"compression": {"where": "server"}}
    site.backup()
    on(server, "CREATE TABLE more AS SELECT n FROM generate_series(1, 9000) AS n")
    try:
        made, held = incremental(site), server_contents(server)
    finally:
        on(server, "DROP TABLE more")
    with restored(site, made, "data") as found:
        assert found == held


def test_a_chain_in_s3_under_object_lock_is_restored(s3_site: Site, server: PostgresServer) -> None:
    s3_site.backup()
    made = incremental(s3_site)
    with restored(s3_site, made, "data") as found:
        assert found == server_contents(server)


def test_a_system_has_one_base_backup_at_a_time_full_or_incremental(site: Site) -> None:
    with (
        Lease(site.store(), kind="postgres", name="app038", job=layout.job_of("full")),
        pytest.raises(LeaseError, match="postgres app038, base is being written by"),
    ):
        site.backup("incremental")
    assert site.keys() == []
