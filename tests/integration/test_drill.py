"""A drill proves a backup or says why not, keeps the evidence, and leaves no directory and no process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyrage
import pytest

from lab.postgres import PostgresServer
from recovery.connections import Connection
from recovery.drill import evidence
from recovery.drill.evidence import Evidence
from recovery.drill.postgres import drill
from recovery.errors import ConfigurationError, RestoreError
from recovery.repository.catalog import Backup
from recovery.repository.verify import Verdict
from tests.conftest import directory_repository
from tests.forge import forge, with_flipped_bit_in, with_member
from tests.support import Site, make_site, new_folder


@pytest.fixture(scope="module")
def proven(server: PostgresServer) -> Iterator[tuple[Site, Backup]]:
    """One backup for the tests that do not change the source."""
    with new_folder() as folder:
        site = make_site(folder, server, repository=directory_repository(folder))
        yield site, site.backup()


@pytest.fixture
def evidence_of(proven: tuple[Site, Backup]) -> Iterator[Site]:
    """The same installation; after each test nothing of the drill is left but its evidence."""
    site, _ = proven
    yield site
    assert left(site) == []


def left(site: Site) -> list[str]:
    """Directories and processes of drills."""
    sandbox = Path(site.document["sandbox"]["directory"])
    found = [str(path) for path in sandbox.iterdir()] if sandbox.exists() else []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        found += [" ".join(command)] if any(str(sandbox) in argument for argument in command) else []
    return found


def checks(found: Evidence) -> dict[str, Verdict]:
    return {check.name: check.verdict for check in found.checks}


def detail(found: Evidence, name: str) -> str:
    return next(check.detail for check in found.checks if check.name == name)


def test_an_untouched_system_is_proven(any_server: PostgresServer, folder: Path) -> None:
    site = make_site(folder, any_server, repository=directory_repository(folder))
    site.system["objectives"] = {"rto": "10m"}
    made = site.backup()
    found = drill(site.installation(), "app038", made)
    assert found.verdict is Verdict.OK, found.checks
    assert checks(found) == {
        "pg_verifybackup": Verdict.OK,
        "rows": Verdict.OK,
        "pg_amcheck": Verdict.OK,
        "rto objective": Verdict.OK,
    }
    assert {table.verdict for table in found.tables} == {Verdict.OK}
    assert sum(table.moved for table in found.tables) == 0
    assert {"app038", "app038_reporting", "postgres"} < {table.database for table in found.tables}
    assert {phase.name for phase in found.phases} == {"plan", "fetch", "files", "start", "compare", "amcheck"}
    assert found.rto_seconds is not None and 0 < found.rto_seconds < 60
    assert 0 < found.rpo_seconds < 120
    assert found.backup == made.id and found.fetched_bytes > 0
    assert list(evidence.read_all(site.store())) == [found.document()]
    assert left(site) == []


def test_rows_that_moved_since_are_counted_and_the_verdict_is_ok(server: PostgresServer, folder: Path) -> None:
    site = make_site(folder, server, repository=directory_repository(folder))
    server.execute("CREATE TABLE moving AS SELECT n AS id FROM generate_series(1, 100) AS n")
    try:
        made = site.backup()
        server.execute("INSERT INTO moving VALUES (1000), (1001)")
        server.execute("UPDATE moving SET id = -id WHERE id <= 3")
        server.execute("DELETE FROM moving WHERE id BETWEEN 50 AND 53")
        found = drill(site.installation(), "app038", made)
    finally:
        server.execute("DROP TABLE moving")
    assert found.verdict is Verdict.OK, found.checks
    (table,) = [table for table in found.tables if table.table == "public.moving"]
    # Without a key an updated row is one that went and one that came.
    assert (table.verdict, table.moved) == (Verdict.OK, 2 + 3 + 3 + 4)
    assert "12 rows moved on the source since" in detail(found, "rows")


def test_an_objective_that_was_not_met_fails(proven: tuple[Site, Backup], evidence_of: Site) -> None:
    site, made = proven
    site.system["objectives"] = {"rto": "0s"}
    try:
        found = drill(site.installation(), "app038", made)
    finally:
        del site.system["objectives"]
    assert found.verdict is Verdict.FAILED
    assert checks(found)["rto objective"] is Verdict.FAILED and checks(found)["rows"] is Verdict.OK


def test_a_source_that_cannot_be_reached_leaves_the_rows_unknown(
    proven: tuple[Site, Backup], evidence_of: Site
) -> None:
    site, made = proven
    genuine = site.connections["app038_backup"]
    site.add(Connection(id="app038_backup", host="127.0.0.1", port=1, login="backup", password="x"))
    try:
        found = drill(site.installation(), "app038", made)
    finally:
        site.add(genuine)
    assert found.verdict is Verdict.UNKNOWN
    assert checks(found) == {"pg_verifybackup": Verdict.OK, "rows": Verdict.UNKNOWN, "pg_amcheck": Verdict.OK}
    assert "the rows could not be compared: PostgreSQL 127.0.0.1:1 as backup: " in detail(found, "rows")


def test_a_wrong_identity_is_unknown_and_none_is_a_configuration_error(
    proven: tuple[Site, Backup], evidence_of: Site
) -> None:
    site, made = proven
    genuine = site.connections["recovery_identity"]
    site.add(Connection(id="recovery_identity", password=str(pyrage.x25519.Identity.generate())))
    try:
        found = drill(site.installation(), "app038", made)
        del site.connections["recovery_identity"]
        with pytest.raises(ConfigurationError):
            drill(site.installation(), "app038", made)
    finally:
        site.add(genuine)
    assert found.verdict is Verdict.UNKNOWN
    assert "no identity given here opens this object" in detail(found, "restore")


def test_programs_that_are_not_installed_leave_it_unknown(proven: tuple[Site, Backup], evidence_of: Site) -> None:
    site, made = proven
    tools = site.system.pop("tools")
    try:
        found = drill(site.installation(), "app038", made)
    finally:
        site.system["tools"] = tools
    assert found.verdict is Verdict.UNKNOWN
    assert "no PostgreSQL 17 programs are installed" in detail(found, "restore")


# Backups that are not what they were, or never were right.


def test_a_damaged_backup_gives_failed_evidence(site: Site) -> None:
    made = site.backup()
    path = site.folder / "repository" / made.folder / "volumes/00000.tar.zst.age"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = drill(site.installation(), "app038", made)
    assert found.verdict is Verdict.FAILED
    assert "volumes/00000.tar.zst.age: the object's SHA-256 differs from what was written" in detail(found, "restore")
    assert found.rto_seconds is None and found.tables == ()
    assert [each["verdict"] for each in evidence.read_all(site.store())] == ["failed"]
    assert left(site) == []


def test_a_missing_object_gives_failed_evidence(site: Site) -> None:
    made = site.backup()
    (site.folder / "repository" / made.folder / "volumes/00001.tar.zst.age").unlink()
    found = drill(site.installation(), "app038", made)
    assert found.verdict is Verdict.FAILED
    assert "volumes/00001.tar.zst.age: the object is not there" in detail(found, "restore")
    assert left(site) == []


def test_a_forged_file_is_found_by_the_servers_own_manifest(proven: tuple[Site, Backup], evidence_of: Site) -> None:
    site, made = proven
    found = drill(site.installation(), "app038", forge(site, made, change=with_flipped_bit_in("base/1/1259")))
    assert found.verdict is Verdict.FAILED
    assert checks(found)["pg_verifybackup"] is Verdict.FAILED
    assert "base/1/1259" in detail(found, "pg_verifybackup")


def test_a_member_that_escapes_fails_the_drill_and_writes_nothing_outside(site: Site) -> None:
    escaping = forge(site, site.backup(), change=with_member("../../../escaped"))
    before = {path.name for path in site.folder.iterdir()} | {"sandbox"}
    found = drill(site.installation(), "app038", escaping)
    assert found.verdict is Verdict.FAILED
    assert "would be written outside the target: '../../../escaped'" in detail(found, "restore")
    assert {path.name for path in site.folder.iterdir()} == before
    assert left(site) == []


def test_a_cluster_that_does_not_start_fails_with_the_servers_words(
    proven: tuple[Site, Backup], evidence_of: Site
) -> None:
    site, made = proven
    without_label = forge(site, made, change=lambda data: data.replace(b"START WAL LOCATION", b"NO WAL LOCATION   "))
    found = drill(site.installation(), "app038", without_label)
    assert found.verdict is Verdict.FAILED
    assert "the sandbox server did not start: " in detail(found, "restore")
    assert "backup_label" in detail(found, "restore")


# The workplace.


def test_remains_of_a_killed_drill_are_removed_and_a_living_ones_are_not(
    proven: tuple[Site, Backup], evidence_of: Site
) -> None:
    site, made = proven
    sandbox = Path(site.document["sandbox"]["directory"])
    for name in ("killed", "living", "foreign"):
        (sandbox / name / "data").mkdir(parents=True)
        if name != "foreign":
            (sandbox / name / "drill.lock").touch()
    living = os.open(sandbox / "living" / "drill.lock", os.O_RDWR)
    fcntl.flock(living, fcntl.LOCK_EX)
    try:
        drill(site.installation(), "app038", made)
        assert sorted(path.name for path in sandbox.iterdir()) == ["foreign", "living"]
    finally:
        os.close(living)
        for name in ("living", "foreign"):
            for path in sorted((sandbox / name).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (sandbox / name).rmdir()


def test_a_sandbox_directory_that_cannot_be_made_is_named(proven: tuple[Site, Backup]) -> None:
    site, made = proven
    site.document["sandbox"]["directory"], genuine = "/proc/nowhere", site.document["sandbox"]["directory"]
    try:
        with pytest.raises(RestoreError) as caught:
            drill(site.installation(), "app038", made)
    finally:
        site.document["sandbox"]["directory"] = genuine
    assert "/proc/nowhere: the sandbox directory cannot be used" in str(caught.value)


def test_evidence_is_never_overwritten(proven: tuple[Site, Backup]) -> None:
    from dataclasses import replace

    from recovery.errors import ObjectExists

    site, _ = proven
    documents = list(evidence.read_all(site.store()))
    found = drill_evidence(documents[0])
    with pytest.raises(ObjectExists):
        evidence.write(site.store(), replace(found, verdict=Verdict.OK, system="another"))
    assert list(evidence.read_all(site.store())) == documents


def drill_evidence(document: dict) -> Evidence:  # type: ignore[type-arg]
    from datetime import datetime

    times = {name: datetime.fromisoformat(document[name]) for name in ("recovery_point", "started_at", "finished_at")}
    return Evidence(**(document | times | {"phases": (), "checks": (), "tables": ()}))
