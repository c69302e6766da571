"""Logins that Vault gives, on real servers: leased, renewed and revoked whatever becomes of the work, and never seen."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from lab.bao import OpenBao
from lab.errors import LabError
from lab.ports import free_port
from lab.postgres import PostgresServer
from recovery.connections import Connection
from recovery.errors import VaultError
from recovery.postgres import backup as backups
from tests.conftest import directory_repository
from tests.support import REPOSITORY, Site, make_site, new_folder
from tests.wal import compare, new_server, slot_lsn, streaming, until, wait_stored, write

PATH = "database/creds/backup"
DATABASE_POLICY = (REPOSITORY / "include/config/vault/database.hcl").read_text()
SECRET_POLICY = 'path "secret/data/app038/*" { capabilities = ["read"] }'
# Every password that Vault makes here, and nothing else, looks like this.
MARKED = re.compile(r"[QZXJ]{40}")
PASSWORD_POLICY = 'length = 40\nrule "charset" { charset = "QZXJ" }'
SECRET = "marked-password-Zx81"
CREATION = [
    "CREATE ROLE \"{{name}}\" LOGIN REPLICATION PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE backup",
    'ALTER ROLE "{{name}}" SET lo_compat_privileges = on',
]
REVOCATION = ['DROP ROLE IF EXISTS "{{name}}"']
_RENEWABLE = {"default_ttl": "1h", "max_ttl": "24h"}
FULL = ("backup", "postgres", "app038", "--type", "full")


@dataclass
class Engine:
    """An OpenBao whose database engine makes roles on `server`, and what there is of them."""

    bao: OpenBao
    server: PostgresServer
    token: str

    def set_role(self, **settings: str | list[str]) -> None:
        statements = {"creation_statements": CREATION, "revocation_statements": REVOCATION}
        body = {"db_name": self.server.name, **statements, **settings}
        self.bao.request("POST", "database/roles/backup", body=body)

    def roles(self) -> list[str]:
        return [name for (name,) in self.server.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'")]

    def leases(self) -> list[str]:
        try:
            return list(self.bao.request("LIST", f"sys/leases/lookup/{PATH}")["data"]["keys"])
        except LabError:
            return []

    def copies(self) -> bool:
        """Whether a role that lives makes a base backup; the server may still be ending an earlier one."""
        under_way = "SELECT 1 FROM pg_stat_progress_basebackup JOIN pg_stat_activity USING (pid) JOIN pg_roles ON usename = rolname"
        return bool(self.server.execute(under_way))

    def nothing_is_left(self) -> bool:
        return not self.roles() and not self.leases()

    def only_role(self) -> str:
        """The one that is there now, or comes."""
        (role,) = until(self.roles)
        return str(role)

    def connection(self, **changes: Any) -> Connection:
        """How a backup's identity reaches this Vault."""
        fields = {"type": "vault", "host": self.bao.host, "port": self.bao.port, "password": self.token}
        return Connection(id="app038_vault", **(fields | changes))

    def site(self, folder: Path, *, path: str = PATH) -> Site:
        """An installation that is given no password of the database, only a token of Vault."""
        site = make_site(folder, None, repository=directory_repository(folder))
        site.document["vault"] = {"app038": {"product": "openbao", "connection": "app038_vault", "repository": "main"}}
        site.document["postgres"]["app038"] = {
            "connection": "app038_backup",
            "repository": "main",
            "tools": {self.server.major: str(self.server.bindir)},
            "credentials": {"vault": "app038", "path": path},
        }
        site.add(self.connection())
        server = Connection(id="app038_backup", type="postgres", host=self.server.host, port=self.server.port)
        site.add(replace(server, login="nobody", password="of-no-use"))
        return site


@pytest.fixture(scope="module")
def bao() -> Iterator[OpenBao]:
    with new_folder() as folder, OpenBao(folder / "vault") as started:
        started.request("POST", "sys/mounts/database", body={"type": "database"})
        started.request("POST", "sys/mounts/secret", body={"type": "kv", "options": {"version": "2"}})
        started.request("POST", "sys/policies/password/marked", body={"policy": PASSWORD_POLICY})
        started.write_policy("database", DATABASE_POLICY)
        started.write_policy("secret", SECRET_POLICY)
        started.write_policy("backup", (REPOSITORY / "include/config/vault/backup.hcl").read_text())
        until(lambda: _written(started, "secret/data/app038/postgres", {"username": "backup", "password": "x"}))
        yield started


def _written(bao: OpenBao, path: str, values: dict[str, str]) -> bool:
    """Version 2 refuses writes for a moment after it is mounted."""
    try:
        bao.request("POST", path, body={"data": values})
    except LabError:
        return False
    return True


@contextmanager
def engine_on(bao: OpenBao, server: PostgresServer) -> Iterator[Engine]:
    """As include/config/vault/database.hcl says it: a role that may make others like `backup`, and is not like it."""
    server.execute("CREATE ROLE vault LOGIN CREATEROLE REPLICATION PASSWORD 'management'")
    server.execute("GRANT backup TO vault WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
    server.execute("GRANT SET ON PARAMETER lo_compat_privileges TO vault")
    settings = {
        "plugin_name": "postgresql-database-plugin",
        "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{server.host}:{server.port}/postgres",
        "username": "vault",
        "password": "management",
        "allowed_roles": "*",
        "password_policy": "marked",
    }
    bao.request("POST", f"database/config/{server.name}", body=settings)
    try:
        yield Engine(bao, server, bao.create_token(["database", "secret", "backup"]))
    finally:
        bao.request("DELETE", f"database/config/{server.name}")
        server.execute("DROP OWNED BY vault")
        for name in [*Engine(bao, server, "").roles(), "vault"]:
            server.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def shared(bao: OpenBao, server: PostgresServer) -> Iterator[Engine]:
    with engine_on(bao, server) as engine:
        yield engine


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    shared.set_role(**_RENEWABLE)
    yield shared
    shared.bao.request("PUT", f"sys/leases/revoke-prefix/{PATH}", body={"sync": True})


@pytest.fixture
def site(engine: Engine, folder: Path) -> Site:
    return engine.site(folder)


@pytest.fixture
def slow(site: Site) -> Site:
    """Its base backups take several seconds."""
    site.system["base"] = {"max_rate_mib_per_second": 8}
    return site


def reached(site: Site, what: str = "postgres app038", *, expect: int = 0) -> tuple[str, str]:
    """State and detail of a line of `config check`."""
    found = {item["what"]: item for item in site.json("config", "check", expect=expect)["systems"]}
    return found[what]["state"], found[what]["detail"]


def nothing_was_committed(site: Site) -> None:
    assert [key for key in site.keys() if key.endswith("manifest.json")] == []


# A role for each backup.


@pytest.mark.parametrize("kind", ["full", "incremental", "dump"])
def test_a_backup_is_made_as_a_role_that_is_gone_afterwards(site: Site, engine: Engine, kind: backups.Kind) -> None:
    made = site.backup(kind)
    assert engine.nothing_is_left()
    assert site.catalog().find(made.id).manifest == made.manifest


def test_base_backups_from_another_server_use_the_same_login(site: Site, engine: Engine) -> None:
    site.add(replace(site.connections["app038_backup"], id="app038_standby"))
    site.system["base"] = {"connection": "app038_standby"}
    assert reached(site, "base app038")[0] == "ok"
    site.backup("full")
    site.add(replace(site.connections["app038_standby"], port=free_port()))
    state, detail = reached(site, "base app038", expect=1)
    assert state == "failed"
    assert detail.endswith(f"that connection app038_standby (login from {PATH}) names its address")
    assert engine.nothing_is_left()


def test_an_approle_with_the_shipped_policies_and_no_other_is_enough(site: Site, engine: Engine) -> None:
    bao = engine.bao
    bao.request("POST", "sys/auth/approle", body={"type": "approle"})
    body = {"token_policies": ["backup", "database"], "token_no_default_policy": True, "token_ttl": "1h"}
    bao.request("POST", "auth/approle/role/backup", body=body)
    role = bao.request("GET", "auth/approle/role/backup/role-id")["data"]["role_id"]
    secret = bao.request("POST", "auth/approle/role/backup/secret-id")["data"]["secret_id"]
    site.add(engine.connection(login=role, password=secret, extra={"auth_type": "approle"}))
    assert site.run_alone(*FULL).stderr == ""
    assert engine.nothing_is_left()


def test_the_lease_is_renewed_for_as_long_as_the_backup_takes(slow: Site, engine: Engine) -> None:
    engine.set_role(default_ttl="2s", max_ttl="60s")
    began, seen = time.monotonic(), []
    process = slow.start(*FULL)
    role = engine.only_role()
    while process.poll() is None:
        seen += engine.server.execute("SELECT rolvaliduntil FROM pg_roles WHERE rolname = %s", (role,))
        time.sleep(0.1)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert time.monotonic() - began > 5, "the backup was too quick to need a renewal"
    assert len(set(seen)) >= 3
    assert engine.nothing_is_left()


def test_a_backup_that_outlives_max_ttl_is_ended_before_its_role_is(slow: Site, engine: Engine) -> None:
    engine.set_role(default_ttl="2s", max_ttl="4s")
    said = slow.error(*FULL)
    assert said == (
        f"error: Vault {engine.bao.address}, {PATH}: the database login ends now, and its lease cannot be renewed any "
        "more -> raise max_ttl of its role (and of its mount) above the longest backup"
    )
    nothing_was_committed(slow)
    assert engine.nothing_is_left()


def test_a_lease_that_is_revoked_under_way_ends_the_backup(slow: Site, engine: Engine) -> None:
    engine.set_role(default_ttl="2s", max_ttl="60s")
    process = slow.start(*FULL)
    until(engine.copies)
    engine.bao.request("PUT", f"sys/leases/revoke-prefix/{PATH}", body={"sync": True})
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    (line,) = errors.splitlines()
    assert line.startswith(f"error: Vault {engine.bao.address}, {PATH}: the lease could not be renewed: ")
    assert "lease not found" in line
    nothing_was_committed(slow)
    assert engine.nothing_is_left()


def test_a_store_that_fails_leaves_no_role(site: Site, engine: Engine) -> None:
    (site.folder / "file").touch()
    site.document["repositories"]["main"] = {"directory": {"path": str(site.folder / "file" / "repository")}}
    made: list[str] = []
    with watching(engine, made):
        site.error(*FULL)
    assert made
    assert engine.nothing_is_left()


@contextmanager
def watching(engine: Engine, seen: list[str]) -> Iterator[None]:
    """Collects the roles that come while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            seen.extend(engine.roles())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("kind", ["full", "dump"])
def test_an_interrupted_backup_leaves_no_role(slow: Site, engine: Engine, kind: str) -> None:
    with psycopg.connect(engine.server.dsn("app038")) as holder:
        # A dump waits for it.
        holder.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        process = slow.start("backup", "postgres", "app038", "--type", kind)
        engine.only_role()
        until(lambda: engine.copies() or engine.server.execute("SELECT 1 FROM pg_locks WHERE NOT granted"))
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "error: interrupted -> nothing was committed; run it again\n")
    assert engine.nothing_is_left()


def test_a_vault_that_is_sealed_under_way_does_not_end_a_base_backup(slow: Site, engine: Engine) -> None:
    """It cannot drop the role either, until it is unsealed."""
    engine.set_role(default_ttl="2s", max_ttl="60s")
    process = slow.start(*FULL)
    until(engine.copies)
    try:
        engine.bao.request("PUT", "sys/seal")
        _, errors = process.communicate(timeout=60)
    finally:
        unseal(engine.bao)
    assert process.returncode == 0, errors
    where = f"{engine.bao.address}, {PATH}"
    lost, kept = [line for line in errors.splitlines() if not line.startswith("base backup: ")]
    assert lost.startswith(f"Vault {where}: the lease could not be renewed: it does not serve: ")
    assert lost.endswith("; sessions that are open go on, new ones may be refused")
    assert kept.startswith(f"Vault {where}: the lease is not revoked yet (it does not serve: ")
    assert kept.endswith("; it ends by itself in 0 s")
    slow.run("verify", "--level", "checksum")
    until(engine.nothing_is_left)


def unseal(bao: OpenBao) -> None:
    bao.unseal()
    until(lambda: _active(bao))


def _active(bao: OpenBao) -> bool:
    try:
        bao.request("GET", "sys/health", token="")
    except LabError:
        return False
    return True


def test_an_identity_that_may_not_revoke_says_so_and_the_role_ends_with_its_lease(site: Site, engine: Engine) -> None:
    engine.set_role(default_ttl="4s", max_ttl="60s")
    engine.bao.write_policy("reader", f'path "{PATH}" {{ capabilities = ["read"] }}')
    site.add(replace(site.connections["app038_vault"], password=engine.bao.create_token(["reader", "backup"])))
    done = site.run_alone("backup", "postgres", "app038", "--type", "full")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        rf"Vault {engine.bao.address}, {PATH}: the lease is not revoked yet \(Vault refuses: .*permission denied\); "
        r"it ends by itself in \d s",
        line,
    )
    until(engine.nothing_is_left)


# Logins without a lease.


def test_a_secret_of_kv_version_2_is_a_login(engine: Engine, folder: Path) -> None:
    site = engine.site(folder, path="secret/data/app038/postgres")
    assert _written(
        engine.bao, "secret/data/app038/postgres", {"username": "backup", "password": engine.server.passwords["backup"]}
    )
    assert reached(site)[0] == "ok"
    for kind in ("full", "dump"):
        site.run("backup", "postgres", "app038", "--type", kind)
    assert _written(engine.bao, "secret/data/app038/postgres", {"username": "backup", "password": "changed"})
    said = site.error(*FULL)
    assert said.endswith("correct the password of connection app038_backup (login from secret/data/app038/postgres)")


def test_a_static_role_is_a_login(engine: Engine, folder: Path) -> None:
    server, bao = engine.server, engine.bao
    server.execute("CREATE ROLE fixed LOGIN REPLICATION IN ROLE backup")
    server.execute("GRANT fixed TO vault WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
    try:
        body = {"db_name": server.name, "username": "fixed", "rotation_period": "24h"}
        bao.request("POST", "database/static-roles/fixed", body=body)
        bao.write_policy("fixed", 'path "database/static-creds/fixed" { capabilities = ["read"] }')
        site = engine.site(folder, path="database/static-creds/fixed")
        site.add(engine.connection(password=bao.create_token(["fixed", "backup"])))
        site.run(*FULL)
        bao.request("DELETE", "database/static-roles/fixed")
    finally:
        server.execute("DROP ROLE fixed")


# What can be wrong.


def test_config_check_says_what_it_reached_with_the_login(site: Site, engine: Engine) -> None:
    site.system["wal"] = {}
    state, detail = reached(site)
    assert state == "ok" and detail.startswith("PostgreSQL 17.")
    assert reached(site, "wal app038") == ("ok", "slot recovery will be made when WAL first streams")
    assert engine.nothing_is_left()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "secret/app038/postgres",
            "Vault refuses: 1 error occurred: * permission denied -> "
            "its engine is KV version 2: write secret/data/app038/postgres",
        ),
        ("secret/data/app038/none", "there is nothing at this path -> correct credentials.path"),
        ("secret/data/app038/user", "it has no username -> give it the keys username and password"),
        ("secret/data/app038/empty", "it has no password -> give it the keys username and password"),
        (
            "secret/data/other",
            "Vault refuses: 1 error occurred: * permission denied -> allow it as include/config/vault/database.hcl does",
        ),
        (
            "nowhere/creds/backup",
            "Vault refuses: 1 error occurred: * permission denied -> allow it as include/config/vault/database.hcl does",
        ),
    ],
)
def test_a_path_that_gives_no_login_is_named_in_one_line(engine: Engine, folder: Path, path: str, message: str) -> None:
    assert _written(engine.bao, "secret/data/app038/user", {"user": "backup", "password": SECRET})
    assert _written(engine.bao, "secret/data/app038/empty", {"username": "backup", "password": ""})
    site = engine.site(folder, path=path)
    said = f"Vault {engine.bao.address}, {path}: {message}"
    assert reached(site, expect=1) == ("failed", said)
    assert site.error(*FULL) == f"error: {said}"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "secret/app038/postgres",
            "there is nothing at this path -> its engine is KV version 2: write secret/data/app038/postgres",
        ),
        (
            "database/creds/none",
            "Vault answers: unknown role: none -> see that its role exists, and that Vault reaches the database",
        ),
        ("database/nothing", "there is nothing at this path -> correct credentials.path"),
        ("nowhere/creds/backup", "there is nothing at this path -> correct credentials.path"),
    ],
)
def test_a_path_that_is_allowed_and_gives_no_login_is_named_too(
    engine: Engine, folder: Path, path: str, message: str
) -> None:
    site = engine.site(folder, path=path)
    site.add(engine.connection(password=engine.bao.root_token))
    assert reached(site, expect=1) == ("failed", f"Vault {engine.bao.address}, {path}: {message}")


def test_a_role_that_the_database_refuses_to_make_is_named(site: Site, engine: Engine) -> None:
    engine.set_role(creation_statements=['CREATE ROLE "{{name}}" SUPERUSER'])
    said = site.error(*FULL)
    assert said.startswith(f"error: Vault {engine.bao.address}, {PATH}: Vault answers: ")
    assert "permission denied to create role" in said
    assert said.endswith(" -> see that its role exists, and that Vault reaches the database")


def test_a_role_that_lacks_a_right_is_refused_before_anything_is_copied(site: Site, engine: Engine) -> None:
    engine.set_role(creation_statements=[CREATION[0].replace(" REPLICATION", "")])
    assert 'may not start replication -> ALTER ROLE "v-token-backup-' in site.error(*FULL)
    assert engine.nothing_is_left()


def test_a_vault_that_does_not_answer_is_named_in_one_line(site: Site, engine: Engine) -> None:
    port = free_port()
    site.add(engine.connection(port=port))
    said = site.error(*FULL)
    assert said.startswith(f"error: connection app038_vault: http://{engine.bao.host}:{port}: no answer (")
    assert reached(site, expect=1) == ("failed", said.removeprefix("error: "))


def test_a_sealed_vault_is_named_in_one_line(site: Site, engine: Engine) -> None:
    engine.bao.request("PUT", "sys/seal")
    try:
        said = site.error(*FULL)
    finally:
        unseal(engine.bao)
    assert said.startswith("error: connection app038_vault: ") and "-> unseal it" in said


def test_a_token_that_is_not_one_is_named_in_one_line(site: Site, engine: Engine) -> None:
    site.add(engine.connection(password=SECRET))
    said = site.error(*FULL)
    assert "Vault refuses: " in said and "permission denied" in said
    assert SECRET not in said


# The drill.


def test_a_drill_reads_the_sources_rows_with_the_login(site: Site, engine: Engine) -> None:
    site.run(*FULL)
    evidence = site.json("drill", "app038")
    (rows,) = [item for item in evidence["checks"] if item["name"] == "rows"]
    assert rows["verdict"] == "ok" and " tables equal" in rows["detail"]
    assert engine.nothing_is_left()


# Secrets.


def test_neither_the_password_nor_the_token_is_seen_anywhere(
    site: Site, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = engine.bao.request("GET", PATH)["data"]
    assert MARKED.fullmatch(answer["password"]), "passwords cannot be told from other text"
    outputs = []
    for call in (
        ("config", "check"),
        FULL,
        (*FULL, "--json"),
        ("backup", "postgres", "app038", "--type", "dump", "--verbose"),
        ("list", "--json"),
        ("verify", "--json"),
    ):
        done = site.run(*call)
        outputs.append(done.stdout + done.stderr)
    # And where a right is missing.
    engine.set_role(creation_statements=[CREATION[0].replace(" REPLICATION", "")])
    done = site.run(*FULL, "--verbose", expect=1)
    outputs.append(done.stdout + done.stderr)
    store = site.store()
    outputs += [store.get(key).decode("latin-1") for key in site.keys()]
    outputs += [record.getMessage() for record in caplog.records]
    assert len(outputs) > 20
    assert [text for text in outputs if MARKED.search(text) or engine.token in text] == []


# Continuous WAL, on a server of its own that may be restarted.


@pytest.fixture(scope="module")
def primary(bao: OpenBao) -> Iterator[Engine]:
    with new_folder() as folder, new_server(folder, "wal") as server:
        server.execute("CREATE ROLE backup NOLOGIN")
        server.execute("GRANT pg_read_all_data, pg_monitor, pg_checkpoint TO backup")
        with engine_on(bao, server) as engine:
            yield engine


@pytest.fixture
def streamed(primary: Engine, folder: Path) -> Iterator[Site]:
    primary.set_role(**_RENEWABLE)
    site = primary.site(folder)
    site.system["wal"] = {}
    yield site
    primary.server.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    primary.bao.request("PUT", f"sys/leases/revoke-prefix/{PATH}", body={"sync": True})


def test_a_stream_that_reconnects_does_so_with_a_new_login(streamed: Site, primary: Engine) -> None:
    server = primary.server
    with streaming(streamed) as outcome:
        until(lambda: slot_lsn(server))
        wait_stored(server)
        first = primary.only_role()
        server.stop()
        server.start()
        until(lambda: _streams_as_another_than(server, first))
        write(server)
        written = wait_stored(server)
    assert outcome[0].reconnects >= 1 and outcome[0].gaps == []
    assert compare(streamed, server) >= written
    # The first could not be dropped while its server was down: Vault was asked to try on.
    until(primary.nothing_is_left)


def test_a_stream_outlives_the_lease_of_its_login(streamed: Site, primary: Engine) -> None:
    server = primary.server
    primary.set_role(default_ttl="2s", max_ttl="4s")
    with streaming(streamed) as outcome:
        until(lambda: slot_lsn(server))
        wait_stored(server)
        first = primary.only_role()
        until(lambda: _streams_as_another_than(server, first))
        written = wait_stored(server)
    assert outcome[0].reconnects >= 1 and outcome[0].gaps == []
    assert compare(streamed, server) >= written
    assert primary.nothing_is_left()


def test_a_stream_goes_on_while_vault_is_sealed(
    streamed: Site, primary: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    server = primary.server
    primary.set_role(default_ttl="2s", max_ttl="60s")
    with streaming(streamed) as outcome:
        until(lambda: slot_lsn(server))
        wait_stored(server)
        primary.bao.request("PUT", "sys/seal")
        try:
            until(lambda: "sessions that are open go on" in caplog.text)
            time.sleep(2)
            written = wait_stored(server)
            assert outcome == [] and "the WAL stream broke" not in caplog.text
        finally:
            unseal(primary.bao)
    assert outcome[0].reconnects == 0
    assert compare(streamed, server) >= written
    until(primary.nothing_is_left)


def test_a_stream_whose_vault_gives_no_login_says_so_at_once(streamed: Site, primary: Engine) -> None:
    streamed.add(primary.connection(port=free_port()))
    with pytest.raises(VaultError, match=r"^connection app038_vault: .*no answer"), streaming(streamed):
        pass


def _streams_as_another_than(server: PostgresServer, role: str) -> bool:
    rows = server.execute("SELECT usename FROM pg_stat_replication WHERE application_name = 'recovery'")
    return any(name != role for (name,) in rows)
