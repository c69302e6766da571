"""Logical dumps: every database and the globals, proven while they are sealed, restored into another server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from lab.postgres import PostgresServer
from recovery.connections import Connection
from recovery.errors import BackupError, PreconditionError, RestoreError
from recovery.postgres import load
from recovery.repository.catalog import Backup
from recovery.repository.sealing import unseal_bytes
from tests.conftest import ODD_DATABASE
from tests.support import Site, postgres_connection, server_contents

SiteOf = Callable[[PostgresServer], Site]


def staging_connection(staging: PostgresServer) -> Connection:
    return postgres_connection(staging, "staging", user="postgres")


def restore_into(site: Site, made: Backup, staging: PostgresServer, *, database: str | None = None) -> load.Loaded:
    return load.restore_dump(
        site.store(),
        made,
        staging_connection(staging),
        database=database,
        identities=[site.identity],
        tools=site.tools(made.manifest),
    )


def databases(server: PostgresServer) -> set[str]:
    return {name for (name,) in server.execute("SELECT datname FROM pg_database WHERE NOT datistemplate")}


def test_a_dump_of_any_major_restores_into_another_server(
    any_server: PostgresServer, site_of: SiteOf, staging_of: Callable[[int], PostgresServer]
) -> None:
    """15 into 17 on the way: a dump is the copy that other majors can read."""
    site, staging = site_of(any_server), staging_of(max(17, any_server.major))
    made = site.backup("dump")
    loaded = restore_into(site, made, staging)
    assert set(loaded.databases) == {"postgres", "app038", "app038_reporting", ODD_DATABASE}
    assert server_contents(staging) == server_contents(any_server)
    assert staging.execute("SELECT rolreplication FROM pg_roles WHERE rolname = 'backup'") == [(True,)]


def test_the_sources_tablespaces_are_not_touched_though_their_directories_are_in_reach(
    site: Site, staging: PostgresServer
) -> None:
    loaded = restore_into(site, site.backup("dump"), staging, database="app038")
    assert loaded.notes == ("tablespace app038_archive: what lay in it lies in the default tablespace",)
    assert staging.execute("SELECT spcname FROM pg_tablespace WHERE spcname !~ '^pg_'") == []
    assert staging.execute("SELECT count(*) > 0 FROM audit_log", dbname="app038") == [(True,)]


def test_one_database_is_restored_out_of_the_dump(site: Site, staging: PostgresServer) -> None:
    made = site.backup("dump")
    assert restore_into(site, made, staging, database=ODD_DATABASE).databases == (ODD_DATABASE,)
    assert databases(staging) == {"postgres", ODD_DATABASE}


def test_the_dump_is_a_custom_format_dump_for_each_database_and_the_globals(site: Site) -> None:
    found = site.backup("dump").manifest
    assert {(item.role, item.key) for item in found.objects} == {
        ("dump", "dumps/app038.pgdump.age"),
        ("dump", "dumps/app038_reporting.pgdump.age"),
        ("dump", "dumps/o%27dd%20%22base%22%2F%251.pgdump.age"),
        ("dump", "dumps/postgres.pgdump.age"),
        ("globals", "globals.sql.zst.age"),
    }
    assert found.wal is None and all(item.encrypted for item in found.objects)


def test_excluded_databases_are_left_out_and_excluding_all_is_refused(site: Site) -> None:
    site.system["dump"] = {"exclude_databases": ["app038", "postgres"]}
    names = {item.database for item in site.backup("dump").manifest.objects}
    assert names == {None, "app038_reporting", ODD_DATABASE}
    site.system["dump"] = {"exclude_databases": ["app038", "postgres", "app038_reporting", ODD_DATABASE]}
    with pytest.raises(BackupError, match="every database is excluded"):
        site.backup("dump")


def test_a_database_that_holds_something_is_never_written_over(site: Site, staging: PostgresServer) -> None:
    made = site.backup("dump")
    staging.execute("CREATE DATABASE app038")
    staging.execute("CREATE TABLE precious AS SELECT 1 AS one", dbname="app038")
    with pytest.raises(PreconditionError) as caught:
        restore_into(site, made, staging)
    assert "the database 'app038' exists already and is not empty -> drop or rename it" in str(caught.value)
    assert staging.execute("SELECT one FROM precious", dbname="app038") == [(1,)]
    assert databases(staging) == {"postgres", "app038"}
    assert staging.execute("SELECT 1 FROM pg_roles WHERE rolname = 'app038'") == []


def test_a_restore_that_fails_drops_what_it_made_and_names_what_it_kept(site: Site, staging: PostgresServer) -> None:
    made = site.backup("dump")

    def break_it(name: str, size: int) -> None:
        if name == ODD_DATABASE:
            raise RestoreError("the line is dead", remedy="mend it")

    with pytest.raises(RestoreError) as caught:
        load.restore_dump(
            site.store(),
            made,
            staging_connection(staging),
            database=None,
            identities=[site.identity],
            tools=site.tools(made.manifest),
            tick=break_it,
        )
    assert f"{ODD_DATABASE} was dropped again, restored before it and kept: app038, app038_reporting" in str(
        caught.value
    )
    assert databases(staging) == {"postgres", "app038", "app038_reporting"}


@contextmanager
def backed_up_by(server: PostgresServer, site: Site, role: str, attributes: str) -> Iterator[None]:
    server.execute(f"CREATE ROLE {role} LOGIN {attributes} PASSWORD 'secret of {role}'")  # type: ignore[arg-type]
    server.passwords[role] = f"secret of {role}"
    site.add(postgres_connection(server, user=role))
    try:
        yield
    finally:
        server.execute(f"DROP ROLE {role}")  # type: ignore[arg-type]


def test_the_targets_own_roles_keep_their_passwords_and_rights(
    site: Site, server: PostgresServer, staging: PostgresServer
) -> None:
    """A dump made by a superuser carries every password: also the source's for `postgres`, whom the restore logs in as."""
    staging.execute("CREATE ROLE reporting LOGIN CREATEDB PASSWORD 'its own'")
    before = staging.execute("SELECT rolname, rolpassword FROM pg_authid WHERE oid > 16383 OR rolname = 'postgres'")
    with backed_up_by(server, site, "dba", "SUPERUSER"):
        made = site.backup("dump")
        assert made.manifest.notes == []
        restore_into(site, made, staging, database="app038_reporting")
        after = dict(staging.execute("SELECT rolname, rolpassword FROM pg_authid"))
        assert {name: after[name] for name, _ in before} == dict(before)
        assert staging.execute("SELECT rolcreatedb FROM pg_roles WHERE rolname = 'reporting'") == [(True,)]
        # One that was not there has the source's password.
        source = dict(server.execute("SELECT rolname, rolpassword FROM pg_authid"))
        assert after["app038"] == source["app038"]


def test_a_role_that_may_not_read_a_table_fails_the_dump_and_commits_nothing(
    site: Site, server: PostgresServer
) -> None:
    with backed_up_by(server, site, "nosy", "REPLICATION"):
        server.execute("GRANT pg_monitor TO nosy")
        with may_connect(server, "nosy"), pytest.raises(BackupError) as caught:
            site.backup("dump")
    assert "the dump of app038 failed: pg_dump: error: " in str(caught.value)
    assert "permission denied for" in str(caught.value)
    assert "nothing was committed; give the backup role the right that is missing" in str(caught.value)
    assert site.catalog().backups == ()


@contextmanager
def may_connect(server: PostgresServer, role: str) -> Iterator[None]:
    names = sql.SQL("app038, app038_reporting")
    server.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(names, sql.Identifier(role)))
    try:
        yield
    finally:
        server.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM {}").format(names, sql.Identifier(role)))


def test_a_role_that_may_not_connect_to_a_database_is_told_which(site: Site, server: PostgresServer) -> None:
    with backed_up_by(server, site, "stranger", "REPLICATION"):
        server.execute("GRANT pg_monitor TO stranger")
        with pytest.raises(PreconditionError) as caught:
            site.backup("dump")
    assert 'permission denied for database "app038"' in str(caught.value)
    assert site.keys() == []


def test_a_role_that_may_not_read_the_settings_is_told_what_to_grant(site: Site, server: PostgresServer) -> None:
    with backed_up_by(server, site, "stranger", "REPLICATION"), pytest.raises(PreconditionError) as caught:
        site.backup("dump")
    assert str(caught.value).endswith(
        'permission denied to examine "shared_preload_libraries" -> GRANT pg_monitor, pg_read_all_data TO "stranger"'
    )


def test_a_role_that_may_not_read_passwords_dumps_the_globals_without_them(site: Site, server: PostgresServer) -> None:
    site.system["dump"] = {"exclude_databases": ["app038", ODD_DATABASE]}
    with backed_up_by(server, site, "modest", "REPLICATION"), may_connect(server, "modest"):
        server.execute("GRANT pg_monitor, app038_readonly TO modest")
        made = site.backup("dump")
    assert made.manifest.notes == ["globals carry no role passwords: the backup role may not read pg_authid"]
    assert "PASSWORD" not in globals_of(site, made) and "CREATE ROLE app038;" in globals_of(site, made)


def test_passwords_are_in_the_globals_and_nowhere_in_clear(site: Site, server: PostgresServer) -> None:
    made = site.backup("dump")
    ((secret,),) = server.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'app038'")
    assert secret in globals_of(site, made)
    assert not any(secret.encode() in site.store().get(key) for key in site.keys())


def globals_of(site: Site, made: Backup) -> str:
    (sealed,) = made.objects("globals")
    return unseal_bytes(site.store(), sealed, identities=[site.identity]).decode()


def test_rows_that_a_policy_hides_fail_the_dump_instead_of_missing_from_it(site: Site, server: PostgresServer) -> None:
    server.execute("CREATE TABLE hidden AS SELECT 1 AS one")
    server.execute("GRANT SELECT ON hidden TO backup")
    server.execute("ALTER TABLE hidden ENABLE ROW LEVEL SECURITY")
    try:
        with pytest.raises(BackupError, match="row-level security"):
            site.backup("dump")
        assert site.catalog().backups == ()
    finally:
        server.execute("DROP TABLE hidden")


def test_a_dump_whose_server_goes_away_commits_nothing(site: Site, server: PostgresServer) -> None:
    """Only its own sessions are ended, as the end of the server would: the server is shared."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE application_name = 'recovery' AND wait_event_type = 'Lock'"
    with psycopg.connect(server.dsn("app038")) as holder, ThreadPoolExecutor(1) as other:
        holder.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        dumping = other.submit(site.backup, "dump")
        while not (found := server.execute(waiting)):
            assert not dumping.done()
        server.execute("SELECT pg_terminate_backend(%s)", found[0])
        with pytest.raises(BackupError) as caught:
            dumping.result(30)
    assert "the dump of app038 failed: pg_dump: error: " in str(caught.value)
    assert "terminating connection due to administrator command" in str(caught.value)
    assert site.catalog().backups == ()
