"""Bad input: for each the one line that is printed, the exit status, and that nothing is left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pyrage
import pytest
from psycopg import sql

from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from recovery.errors import PreconditionError
from recovery.postgres import backup as backups
from recovery.postgres import inspect, tools
from tests.conftest import s3_repository
from tests.support import Site, make_site, postgres_connection, s3_connection

FULL = ("backup", "postgres", "app038", "--type", "full")
DUMP = ("backup", "postgres", "app038", "--type", "dump")


def test_an_unknown_key_stops_the_backup_before_it_begins(site: Site) -> None:
    site.system["bsae"] = {}
    assert site.error(*FULL, expect=2) == (
        f"error: {site.folder}/recovery.yaml: postgres.app038.bsae: unknown key -> did you mean 'base'?"
    )
    assert site.keys() == [] if site.system.pop("bsae") is None else True


def test_a_missing_connection_names_the_variable(site: Site) -> None:
    del site.connections["app038_backup"]
    assert site.error(*FULL, expect=2) == (
        "error: connection app038_backup: the connection is not defined "
        "-> set AIRFLOW_CONN_APP038_BACKUP (a URI or JSON, as Airflow reads it) or add the connection in Airflow"
    )
    assert not (site.folder / "repository").exists()


def test_a_wrong_recipient_is_refused_by_its_place(site: Site) -> None:
    site.document["encryption"]["recipients"] = ["age1qyqszqgpqyqszqgpqyqszqgp"]
    assert "encryption.recipients.0: not an age recipient -> age1..." in site.error(*FULL, expect=2)
    assert not (site.folder / "repository").exists()


# The store.


@pytest.fixture
def in_s3(folder: Path, server: PostgresServer, objects: SeaweedFS) -> Callable[..., Site]:
    def make(*, bucket: str = "locked", locked: bool = True, secret_key: str | None = None) -> Site:
        site = make_site(folder, server, repository=s3_repository(bucket=bucket, locked=locked))
        site.add(s3_connection(objects, secret_key=secret_key))
        return site

    return make


def test_wrong_store_credentials_are_told_without_them(in_s3: Callable[..., Site]) -> None:
    site = in_s3(secret_key="a-wrong-secret-key")
    for call in (FULL, ("list",), ("verify",), ("drill", "app038")):
        message = site.error(*call)
        assert "the store refused the credentials (SignatureDoesNotMatch) -> check connection recovery_s3" in message
        assert "a-wrong-secret-key" not in message


def test_a_missing_bucket_is_told_and_not_made(in_s3: Callable[..., Site], objects: SeaweedFS) -> None:
    site = in_s3(bucket="not-there")
    assert "s3://not-there/" in (message := site.error(*FULL))
    assert "the bucket does not exist -> create it (with Object Lock), or correct the bucket's name" in message
    with contextlib.closing(objects.client()) as client:
        assert "not-there" not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}


def test_a_bucket_without_object_lock_takes_no_backup_where_a_lock_is_asked_for(in_s3: Callable[..., Site]) -> None:
    site = in_s3(bucket="plain", locked=True)
    message = site.error(*FULL, expect=2)
    assert "the configuration asks for Object Lock, and the bucket does not have it -> make a bucket" in message
    assert list(site.store().scan("")) == []


def test_a_directory_that_cannot_be_written_is_named(site: Site) -> None:
    (site.folder / "repository").write_text("a file is in the way")
    assert f"error: {site.folder}/repository" in site.error(*FULL)


# The server.


def test_a_wrong_password_is_told_without_it(site: Site) -> None:
    site.add(replace(site.connections["app038_backup"], password="a-wrong-password"))
    for call in (FULL, DUMP):
        message = site.error(*call)
        assert 'password authentication failed for user "backup" -> correct the password of connection' in message
        assert "a-wrong-password" not in message
    assert not (site.folder / "repository").exists()


def test_a_server_that_does_not_run_is_named(site: Site) -> None:
    site.add(replace(site.connections["app038_backup"], port=1))
    message = site.error(*FULL)
    assert "PostgreSQL 127.0.0.1:1 as backup: Connection refused -> check that the server runs" in message


@pytest.fixture
def role(site: Site, server: PostgresServer) -> Iterator[str]:
    """A role like the backup role, for a test to take rights from."""
    server.execute("CREATE ROLE lesser LOGIN PASSWORD 'lesser secret' IN ROLE pg_monitor, pg_read_all_data")
    server.execute("GRANT CONNECT ON DATABASE app038, app038_reporting TO lesser")
    server.passwords["lesser"] = "lesser secret"
    site.add(postgres_connection(server, user="lesser"))
    yield "lesser"
    server.execute("REVOKE CONNECT ON DATABASE app038, app038_reporting FROM lesser")
    server.execute("DROP ROLE lesser")


def test_a_role_without_the_right_to_replicate_is_told_how_to_get_it(site: Site, role: str) -> None:
    message = site.error(*FULL)
    assert 'the role lesser may not start replication -> ALTER ROLE "lesser" REPLICATION' in message
    assert not (site.folder / "repository").exists()


def test_a_role_that_pg_hba_does_not_let_replicate_is_told_so(site: Site, server: PostgresServer, role: str) -> None:
    server.execute("ALTER ROLE lesser REPLICATION")
    rules = server.data_dir / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("".join(line for line in before.splitlines(True) if "replication" not in line))
    server.execute("SELECT pg_reload_conf()")
    try:
        message = site.error(*FULL)
    finally:
        rules.write_text(before)
        server.execute("SELECT pg_reload_conf()")
    assert "no pg_hba.conf entry for replication connection" in message
    assert "(`replication` for base backups) in pg_hba.conf" in message
    assert site.keys() == []


def test_slots_that_are_all_in_use_are_told_with_the_setting(site: Site, server: PostgresServer) -> None:
    names = [f"taken_{number}" for number in range(10)]
    for name in names:
        server.execute("SELECT pg_create_physical_replication_slot(%s)", (name,))
    try:
        message = site.error(*FULL)
    finally:
        for name in names:
            server.execute("SELECT pg_drop_replication_slot(%s)", (name,))
    assert "all 10 replication slots are in use (max_replication_slots = 10) -> raise max_replication_slots" in message
    assert not (site.folder / "repository").exists()


def test_senders_that_are_all_in_use_are_told_with_the_setting(site: Site, server: PostgresServer) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            session = psycopg.connect(server.dsn(user="backup", replication="true"), autocommit=True)
            stack.enter_context(contextlib.closing(session))
        message = site.error(*FULL)
    assert "all 10 replication connections are in use (max_wal_senders = 10) -> raise max_wal_senders" in message
    assert not (site.folder / "repository").exists()


def test_a_server_without_wal_for_a_copy_is_told_the_setting(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of the tests are shared and cannot be restarted with wal_level = minimal: the answer is replaced."""
    genuine = inspect._one
    monkeypatch.setattr(
        inspect,
        "_one",
        lambda session, query, *values: "minimal" if "wal_level" in query else genuine(session, query, *values),
    )
    with pytest.raises(PreconditionError, match="wal_level is minimal: no base backup is possible -> set wal_level"):
        site.backup()
    assert not (site.folder / "repository").exists()


@pytest.mark.parametrize("number", [140012, 190000])
def test_a_major_that_is_not_supported_is_refused_by_every_kind_of_backup(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    genuine = inspect.inspect
    changes = {"version": f"{number // 10000}.1", "version_number": number}
    monkeypatch.setattr(backups.inspect, "inspect", lambda connection: genuine(connection).model_copy(update=changes))
    for kind in ("full", "dump"):
        with pytest.raises(PreconditionError) as caught:
            site.backup(kind)  # type: ignore[arg-type]
        assert f"PostgreSQL {number // 10000}.1 is not supported -> upgrade to one of 15, 16, 17, 18" in str(
            caught.value
        )
    assert not (site.folder / "repository").exists()


def test_a_server_whose_programs_are_not_here_is_not_backed_up(site: Site) -> None:
    """A backup that could never be restored here would only look like one."""
    site.system["tools"] = {17: "/nowhere/bin"}
    for call in (FULL, DUMP):
        message = site.error(*call)
        assert "no PostgreSQL 17 programs are installed" in message and "/nowhere/bin" in message
        assert "install postgresql-17, or name their directory under `tools: {17: DIR}`" in message
    assert not (site.folder / "repository").exists()


def test_programs_of_another_major_do_not_pass_for_it(servers, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = servers.source(18).bindir
    with pytest.raises(PreconditionError, match="no PostgreSQL 16 programs are installed"):
        tools.find(16, configured={16: other})


# The key.


def test_a_wrong_identity_leaves_an_empty_target(site: Site) -> None:
    site.backup()
    (site.folder / "other.txt").write_text(str(pyrage.x25519.Identity.generate()))
    message = site.error(
        *("restore", "postgres", "app038", "--to", "latest", "--pgdata", site.folder / "data"),
        *("--tablespace", f"app038_archive={site.folder / 'archive'}", "--identity", site.folder / "other.txt"),
    )
    assert "no identity given here opens this object -> use the identity of one of the recipients" in message
    assert list((site.folder / "data").iterdir()) == list((site.folder / "archive").iterdir()) == []


@pytest.mark.parametrize("text", ["nonsense", "age1qyqszqgpqyqszqgpqyqszqgp", ""])
def test_what_is_no_identity_is_refused_before_anything_is_made(site: Site, text: str) -> None:
    site.backup()
    (site.folder / "other.txt").write_text(text)
    message = site.error(
        *("restore", "postgres", "app038", "--to", "latest", "--pgdata", site.folder / "data"),
        *("--identity", site.folder / "other.txt"),
    )
    assert "other.txt: this is not an age identity -> give the AGE-SECRET-KEY-1... line" in message
    assert not (site.folder / "data").exists()


# The target.


def test_a_target_that_is_not_empty_is_refused_and_left_as_it_was(site: Site) -> None:
    site.backup()
    target = site.folder / "data"
    target.mkdir()
    (target / "PG_VERSION").write_text("production")
    message = site.error("restore", "postgres", "app038", "--to", "latest", "--pgdata", target)
    assert f"error: {target}: the target directory is not empty (it holds 'PG_VERSION') -> name an empty" in message
    assert [(path.name, path.read_text()) for path in target.iterdir()] == [("PG_VERSION", "production")]


def test_a_tablespaces_target_that_is_not_empty_is_refused_too(site: Site) -> None:
    site.backup()
    (site.folder / "archive").mkdir()
    (site.folder / "archive" / "somebody's").touch()
    message = site.error(
        *("restore", "postgres", "app038", "--to", "latest", "--pgdata", site.folder / "data"),
        *("--tablespace", f"app038_archive={site.folder / 'archive'}"),
    )
    assert f"{site.folder}/archive: the target directory is not empty" in message
    assert [path.name for path in (site.folder / "archive").iterdir()] == ["somebody's"]
    assert list((site.folder / "data").iterdir()) == []


def test_an_owner_who_does_not_exist_is_named(site: Site) -> None:
    import os

    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    site.backup()
    arguments = ("restore", "postgres", "app038", "--to", "latest", "--pgdata", site.folder / "data", "--owner")
    assert "there is no user 'nobody-at-all' to own the restored cluster" in site.error(
        *arguments, "nobody-at-all", expect=2
    )
    assert "PostgreSQL does not run as root -> name another user" in site.error(*arguments, "root", expect=2)
    assert not (site.folder / "data").exists()


def test_names_of_databases_are_only_data(server: PostgresServer, site: Site) -> None:
    name = "x'; DROP DATABASE app038; --"
    server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        made = site.backup("dump")
    finally:
        server.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
    assert name in {item.database for item in made.manifest.objects}
    assert server.execute("SELECT 1 FROM pg_database WHERE datname = 'app038'") == [(1,)]
