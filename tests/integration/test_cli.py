"""The `recovery` command: its exit statuses, its one JSON document, its one-line errors, from backup to drill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import recovery
from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from recovery.connections import Connection
from recovery.postgres import restore
from tests.conftest import ODD_DATABASE, directory_repository, s3_repository
from tests.support import (
    Site,
    contents,
    make_site,
    new_folder,
    opened,
    postgres_connection,
    s3_connection,
    server_contents,
)


@pytest.fixture(scope="module")
def used(server: PostgresServer) -> Iterator[tuple[Site, str, str]]:
    """An installation with a full backup and a dump, both taken by the command: (site, full id, dump id)."""
    with new_folder() as folder:
        site = make_site(folder, server, repository=directory_repository(folder))
        full, dump = (
            json.loads(site.run_alone("backup", "postgres", "app038", "--type", kind, "--json").stdout)
            for kind in ("full", "dump")
        )
        yield site, full["id"], dump["id"]


def test_a_backup_answers_with_its_summary_and_is_listed(used: tuple[Site, str, str]) -> None:
    site, full, dump = used
    listed = site.json("list")["postgres"]
    assert [backup["id"] for backup in listed["app038"]["backups"]] == sorted([full, dump])
    assert listed["app038"]["problems"] == []
    (found,) = [backup for backup in listed["app038"]["backups"] if backup["id"] == full]
    assert found["kind"] == "full" and found["system"] == "app038"
    assert found["source_bytes"] > found["stored_bytes"] > 0


def test_a_list_that_is_piped_shows_whole_ids_and_one_system_when_asked(used: tuple[Site, str, str]) -> None:
    site, full, dump = used
    done = site.run("list", "app038")
    assert full in done.stdout and dump in done.stdout
    assert "17." in done.stdout
    assert done.stderr == ""


def test_a_backup_for_people_is_one_line(site: Site) -> None:
    done = site.run("backup", "postgres", "app038", "--type", "full")
    (line,) = done.stdout.splitlines()
    assert line.startswith("20") and "Z-full: " in line and " objects" in line


@pytest.mark.parametrize("level", ["exists", "checksum", "opens"])
def test_an_intact_repository_verifies_at_every_level(used: tuple[Site, str, str], level: str) -> None:
    site, full, dump = used
    reports = site.json("verify", "--level", level)
    assert {report["backup"]: report["verdict"] for report in reports} == {full: "ok", dump: "ok"}
    assert all((report["bytes_read"] > 0) == (level != "exists") for report in reports)
    assert all(report["findings"] == [] for report in reports)


def test_verify_takes_a_system_or_an_id(used: tuple[Site, str, str]) -> None:
    site, full, dump = used
    assert {report["backup"] for report in site.json("verify", "app038", "--level", "exists")} == {full, dump}
    assert [report["backup"] for report in site.json("verify", dump, "--level", "exists")] == [dump]
    assert f"{dump}: ok (exists, 5 objects, " in site.run("verify", dump, "--level", "exists").stdout


def test_checksums_need_no_key_and_opening_does(used: tuple[Site, str, str]) -> None:
    site, full, _ = used
    identity = site.connections.pop("recovery_identity")
    try:
        site.run("verify", full, "--level", "checksum")
        message = site.error("verify", full, "--level", "opens", expect=2)
        assert "error: connection recovery_identity: the connection is not defined" in message
        site.run("verify", full, "--level", "opens", "--identity", site.key_file)
    finally:
        site.add(identity)


def test_a_plan_says_what_would_be_done_and_touches_nothing(used: tuple[Site, str, str]) -> None:
    site, full, dump = used
    before = set(site.folder.rglob("*"))
    plan = site.json("plan", "postgres", "app038")
    assert plan["backup"] == full and plan["objects"] == 3 and plan["blocked_by"] == []
    assert plan["fetch_bytes"] > 0 and plan["predicted_seconds"] > 0
    assert site.json("plan", "postgres", "app038", "--database", ODD_DATABASE)["backup"] == dump
    assert "recovery point" in site.run("plan", "postgres", "app038", "--to", dump).stdout
    assert set(site.folder.rglob("*")) == before


def test_a_plan_names_what_blocks_the_restore(used: tuple[Site, str, str]) -> None:
    site, *_ = used
    tools = site.system.pop("tools")
    try:
        (reason,) = site.json("plan", "postgres", "app038", expect=1)["blocked_by"]
    finally:
        site.system["tools"] = tools
    assert "no PostgreSQL 17 programs are installed" in reason


def test_a_full_backup_is_restored_into_a_directory(
    used: tuple[Site, str, str], server: PostgresServer, folder: Path
) -> None:
    site, full, _ = used
    arguments = ("restore", "postgres", "app038", "--to", "latest", "--pgdata", folder / "data")
    done = site.run(*arguments, "--tablespace", f"app038_archive={folder / 'archive'}")
    assert f"backup          {full}" in done.stderr and f"-> {folder / 'archive'}" in done.stderr
    assert done.stdout.startswith(f"restored to {folder / 'data'}\n")
    assert f"pg_ctl -D {folder / 'data'} -w start\n" in done.stdout
    assert "archive_mode = off" in done.stdout and "ALTER SYSTEM RESET recovery_target;" in done.stdout
    made = site.catalog().find(full)
    with opened(site, made, folder / "data") as sandbox:
        assert contents(sandbox.connect) == server_contents(server)


def test_a_restore_prints_one_document_when_asked(used: tuple[Site, str, str], folder: Path) -> None:
    site, full, _ = used
    done = site.run(
        *("restore", "postgres", "app038", "--to", full, "--pgdata", folder / "data", "--json"),
        *("--tablespace", f"app038_archive={folder / 'archive'}"),
    )
    document = json.loads(done.stdout)
    assert document["restored"] == str(folder / "data") and document["fetched_bytes"] > 0
    assert done.stderr == ""


def test_a_dump_is_restored_into_a_server(
    used: tuple[Site, str, str], server: PostgresServer, staging: PostgresServer
) -> None:
    site, _, dump = used
    site.add(postgres_connection(staging, "staging", user="postgres"))
    document = site.json("restore", "postgres", "app038", "--to", dump, "--into", "staging")
    assert set(document["databases"]) == {"app038", "app038_reporting", "postgres", ODD_DATABASE}
    assert server_contents(staging) == server_contents(server)
    message = site.error("restore", "postgres", "app038", "--to", "latest", "--into", "staging")
    assert "exists already and is not empty" in message


def test_a_drill_answers_with_its_evidence(used: tuple[Site, str, str]) -> None:
    site, full, _ = used
    document = site.json("drill", "app038")
    assert document["verdict"] == "ok" and document["backup"] == full
    key = f"evidence/{document['started_at'][:10]}/{document['id']}.json"
    assert json.loads(site.store().get(key)) == document


def test_a_drill_that_fails_is_status_1_and_says_what_failed(used: tuple[Site, str, str]) -> None:
    site, *_ = used
    site.system["objectives"] = {"rto": "0s"}
    try:
        done = site.run("drill", "app038", expect=1)
    finally:
        del site.system["objectives"]
    assert "failed" in done.stdout and "rto objective" in done.stdout and "evidence: evidence/" in done.stdout


# config check.


def test_config_check_reaches_everything(
    server: PostgresServer, objects: SeaweedFS, folder: Path, staging: PostgresServer
) -> None:
    site = make_site(folder, server, repository=s3_repository())
    site.system["incremental"] = {"max_chain": 4}
    site.document["repositories"]["copy"] = directory_repository(folder)
    site.add(s3_connection(objects))
    document = site.json("config", "check")
    assert document["valid"]
    assert {system["what"]: system["state"] for system in document["systems"]} == {
        "repository main": "ok",
        "repository copy": "ok",
        "postgres app038": "ok",
        "lock app038": "ok",
        "identity": "ok",
    }
    assert f"{folder}/recovery.yaml: valid" in site.run("config", "check").stdout


def test_config_check_names_everything_that_fails_in_one_pass(site: Site, objects: SeaweedFS) -> None:
    site.document["repositories"] |= {
        "missing": s3_repository(bucket="nowhere"),
        "unlocked": s3_repository(bucket="plain", locked=True),
    }
    site.document["postgres"]["gone"] = {"connection": "nobody", "repository": "main"}
    site.add(s3_connection(objects))
    site.add(Connection(id="app038_backup", host="127.0.0.1", port=1, login="backup", password="x"))
    systems = {
        system["what"]: (system["state"], system["detail"])
        for system in site.json("config", "check", expect=1)["systems"]
    }
    assert {what: state for what, (state, _) in systems.items()} == {
        "repository main": "ok",
        "repository missing": "failed",
        "repository unlocked": "failed",
        "postgres app038": "failed",
        "postgres gone": "failed",
        "identity": "ok",
    }
    assert "the bucket does not exist" in systems["repository missing"][1]
    assert "asks for Object Lock" in systems["repository unlocked"][1]
    assert "Connection refused" in systems["postgres app038"][1]
    assert "AIRFLOW_CONN_NOBODY" in systems["postgres gone"][1]


def test_config_check_tells_a_worker_without_a_key_from_one_with_the_wrong_key(site: Site) -> None:
    genuine = site.connections.pop("recovery_identity")
    absent = site.json("config", "check")["systems"][-1]
    assert (absent["what"], absent["state"]) == ("identity", "absent")
    other = make_site(site.folder, None, repository=directory_repository(site.folder))
    site.add(other.connections["recovery_identity"])
    wrong = site.json("config", "check", expect=1)["systems"][-1]
    assert wrong["state"] == "failed" and "fits none of encryption.recipients" in wrong["detail"]
    site.add(Connection(id="recovery_identity", password="no identity at all"))
    broken = site.json("config", "check", expect=1)["systems"][-1]
    assert broken["state"] == "failed" and "this is not an age identity" in broken["detail"]
    site.add(genuine)


def test_a_configuration_with_several_mistakes_is_status_2_with_a_line_for_each(site: Site) -> None:
    site.system["dmup"] = {}
    site.document["encryption"]["recipients"] = ["age1nonsense"]
    done = site.run("config", "check", expect=2)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith(f"error: {site.folder}/recovery.yaml: ") for line in lines)


# Wrong calls: status 2, and nothing done.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("list", "app39"), "no system is named 'app39' -> use one of: app038"),
        (("verify", "20200101T000000Z-full"), "20200101T000000Z-full: no backup has this id -> choose one of"),
        (("plan", "postgres", "app038", "--to", "20200101T000000Z-full"), "no backup has this id"),
        (("drill", "app038", "--to", "DUMP"), "is a dump backup, and this restore needs a full or incremental one"),
        (("restore", "postgres", "app038", "--to", "latest"), "a restore needs one target -> give either --pgdata DIR"),
        (
            ("restore", "postgres", "app038", "--to", "latest", "--pgdata", "data", "--into", "staging"),
            "a restore needs one target",
        ),
        (
            ("restore", "postgres", "app038", "--to", "latest", "--pgdata", "data", "--database", "app038"),
            "--database restores out of a dump -> use it with --into CONNECTION",
        ),
        (
            ("restore", "postgres", "app038", "--to", "DUMP", "--pgdata", "data"),
            "is a dump backup, and this restore needs a full or incremental one",
        ),
        (
            ("restore", "postgres", "app038", "--to", "FULL", "--into", "app038_backup"),
            "is a full backup, and this restore needs a dump one",
        ),
        (
            ("restore", "postgres", "app038", "--to", "latest", "--into", "nobody"),
            "connection nobody: the connection is not defined -> set AIRFLOW_CONN_NOBODY",
        ),
        (
            ("restore", "postgres", "app038", "--to", "latest", "--into", "app038_backup", "--database", "app39"),
            "the dump holds no database 'app39' -> choose one of: app038, app038_reporting",
        ),
        (
            ("restore", "postgres", "app038", "--to", "latest", "--pgdata", "data", "--tablespace", "archive"),
            "--tablespace 'archive' is not NAME=DIR -> write --tablespace archive=/new/path",
        ),
        (
            ("restore", "postgres", "app038", "--to", "latest", "--pgdata", "data", "--tablespace", "x=/y"),
            "the backup has no tablespace 'x' -> it has: app038_archive (",
        ),
        (
            ("restore", "postgres", "app038", "--to", "latest", "--pgdata", "data", "--identity", "nowhere.txt"),
            "nowhere.txt: the identity cannot be read (No such file or directory) -> name an age key file",
        ),
    ],
)
def test_a_wrong_call_is_status_2_with_one_line_and_nothing_is_done(
    used: tuple[Site, str, str], arguments: tuple[str, ...], message: str
) -> None:
    site, full, dump = used
    before = {path for path in site.folder.rglob("*") if path.name != "recovery.yaml"}
    named = [argument.replace("DUMP", dump).replace("FULL", full) for argument in arguments]
    assert message in site.error(*named, expect=2)
    assert {path for path in site.folder.rglob("*") if path.name != "recovery.yaml"} == before


@pytest.mark.parametrize(
    "arguments", [("bakcup",), ("backup", "postgres", "app038"), ("backup", "postgres", "app038", "--type", "copy")]
)
def test_a_call_that_the_command_does_not_know_is_status_2(site: Site, arguments: tuple[str, ...]) -> None:
    assert site.run(*arguments, expect=2).stdout == ""


def test_without_arguments_it_explains_itself_and_it_knows_its_version(site: Site) -> None:
    assert site.run("--version").stdout == f"{recovery.__version__}\n"
    assert "backup" in site.run("--help").stdout


def test_a_failure_with_json_leaves_standard_output_empty(site: Site) -> None:
    done = site.run_alone("drill", "app038", "--json")
    assert (
        done.returncode == 1 and done.stdout == "" and done.stderr.startswith("error: there is no full backup yet -> ")
    )


def test_verbose_adds_the_trace(site: Site) -> None:
    done = site.run_alone("drill", "app038", "--verbose")
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert done.stderr.startswith("error: there is no full backup yet")


def test_a_system_without_a_backup_is_shown_as_one(site: Site) -> None:
    assert "no backup" in site.run("list").stdout
    assert site.json("list")["postgres"] == {"app038": {"windows": [], "backups": [], "problems": []}}
    assert "there is no backup to verify" in site.error("verify", expect=2)


def places(site: Site) -> dict[int, Any]:
    """Where an unmapped tablespace of the newest full backup would go: its own path, which the source still holds."""
    return restore.place_tablespaces(site.catalog().backups[0].manifest, {})


def test_a_tablespace_of_a_living_source_must_be_mapped(used: tuple[Site, str, str], folder: Path) -> None:
    site, full, _ = used
    message = site.error("restore", "postgres", "app038", "--to", full, "--pgdata", folder / "data")
    assert "the target directory is not empty" in message
    assert str(next(iter(places(site).values()))) in message
    assert list((folder / "data").iterdir()) == []
