"""App038's Vault in the lab: what it holds, who may do what, the database credentials that it makes; and the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql

from lab import app038
from lab.bao import OpenBao
from lab.bao_cluster import OpenBaoCluster
from lab.errors import LabError
from lab.postgres import PostgresServer
from lab.process import marked_processes
from tests.support import REPOSITORY, new_folder

POLICIES = REPOSITORY / "include/config/vault"


@dataclass
class Credentials:
    """A role that OpenBao has made."""

    server: PostgresServer
    user: str
    password: str

    def connect(self, database: str = app038.DATABASE, **options: str) -> psycopg.Connection:
        dsn = self.server.dsn(database, user=self.user, password=self.password, **options)
        return psycopg.connect(dsn, autocommit=True)

    @property
    def exists(self) -> bool:
        return bool(self.server.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (self.user,)))


@contextmanager
def credentials(vault: OpenBao, server: PostgresServer, role: str) -> Iterator[Credentials]:
    """A fresh lease; it is revoked afterwards."""
    answer = vault.request("GET", f"database/creds/{role}")
    try:
        yield Credentials(server, answer["data"]["username"], answer["data"]["password"])
    finally:
        vault.request("PUT", "sys/leases/revoke", body={"lease_id": answer["lease_id"], "sync": True})


def user_token(vault: OpenBao, user: str) -> str:
    body = {"password": vault.passwords[user]}
    return str(vault.request("POST", f"auth/userpass/login/{user}", token="", body=body)["auth"]["client_token"])


def issued(server: PostgresServer) -> set[str]:
    """The roles that OpenBao has made."""
    return {name for (name,) in server.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'")}


def entries(vault: OpenBao, folder: str) -> int:
    """How many secrets lie in a folder and below."""
    names = vault.request("LIST", f"secret/metadata/{folder}")["data"]["keys"]
    return sum(entries(vault, folder + name) if name.endswith("/") else 1 for name in names)


# What it holds.


@pytest.mark.parametrize(
    ("path", "mounted"),
    [
        ("sys/mounts", {"secret/": "kv", "transit/": "transit", "database/": "database", "pki/": "pki"}),
        ("sys/auth", {"approle/": "approle", "userpass/": "userpass"}),
    ],
)
def test_engines_and_logins_are_mounted(vault: OpenBao, path: str, mounted: dict[str, str]) -> None:
    found = vault.request("GET", path)["data"]
    assert {name: found[name]["type"] for name in mounted} == mounted


def test_it_holds_some_two_hundred_secrets_with_versions(vault: OpenBao) -> None:
    assert vault.request("GET", "sys/mounts")["data"]["secret/"]["options"] == {"version": "2"}
    assert entries(vault, "") == 200


def test_the_transit_keys_can_encrypt(vault: OpenBao) -> None:
    assert set(vault.request("LIST", "transit/keys")["data"]["keys"]) == {app038.TRANSIT_KEY, app038.CANARY_KEY}
    for key in (app038.TRANSIT_KEY, app038.CANARY_KEY):
        sealed = vault.request("POST", f"transit/encrypt/{key}", body={"plaintext": "YQ=="})["data"]["ciphertext"]
        opened = vault.request("POST", f"transit/decrypt/{key}", body={"ciphertext": sealed})
        assert opened["data"]["plaintext"] == "YQ=="


def test_the_policies_of_the_backup_are_the_files_that_are_shipped(vault: OpenBao) -> None:
    found = vault.request("LIST", "sys/policies/acl")["data"]["keys"]
    assert {"app038-api", "app038-worker", "dba", "ci"} < set(found)
    for name, file in {"recovery-backup": "backup.hcl", "recovery-canary": "canary.hcl"}.items():
        policy = vault.request("GET", f"sys/policies/acl/{name}")["data"]["policy"]
        assert policy == (POLICIES / file).read_text()


# Who may do what.


def test_the_backup_logs_in_and_has_its_two_policies_and_no_other(vault: OpenBao) -> None:
    token = vault.log_in(app038.BACKUP_APPROLE)
    found = vault.request("GET", "auth/token/lookup-self", token=token)["data"]
    assert (set(found["policies"]), found["ttl"] > 3500) == ({"recovery-backup", "recovery-canary"}, True)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "sys/mounts", True),
        ("GET", "sys/storage/raft/configuration", True),
        ("GET", "transit/keys/app038", True),
        ("GET", "secret/data/ci/registry", False),
        ("GET", "transit/export/encryption-key/app038", False),
        ("LIST", "secret/metadata/app038", False),
        ("DELETE", "sys/policies/acl/dba", False),
        ("POST", "transit/encrypt/app038", False),
    ],
)
def test_the_backup_reads_what_it_saves_and_no_secret(vault: OpenBao, method: str, path: str, *, allowed: bool) -> None:
    token = vault.log_in(app038.BACKUP_APPROLE)
    if allowed:
        assert vault.request(method, path, token=token)["data"]
    else:
        with pytest.raises(LabError, match="403"):
            vault.request(method, path, token=token, body={"plaintext": "YQ=="} if method == "POST" else None)


def test_the_backup_writes_canaries_and_cannot_open_them(vault: OpenBao) -> None:
    token, key = vault.log_in(app038.BACKUP_APPROLE), app038.CANARY_KEY
    sealed = vault.request("POST", f"transit/encrypt/{key}", token=token, body={"plaintext": "YQ=="})
    with pytest.raises(LabError, match="403"):
        body = {"ciphertext": sealed["data"]["ciphertext"]}
        vault.request("POST", f"transit/decrypt/{key}", token=token, body=body)


def test_a_wrong_secret_id_is_refused(vault: OpenBao) -> None:
    body = {"role_id": app038.BACKUP_APPROLE, "secret_id": "wrong"}
    with pytest.raises(LabError, match="invalid role or secret ID"):
        vault.request("POST", "auth/approle/login", token="", body=body)


def test_the_pipeline_gets_its_certificate_and_nothing_of_the_application(vault: OpenBao) -> None:
    token = user_token(vault, "pipeline")
    wanted = {"common_name": "api.app038.example"}
    made = vault.request("POST", "pki/issue/app038", token=token, body=wanted)["data"]
    assert made["certificate"].startswith("-----BEGIN CERTIFICATE-----")
    with pytest.raises(LabError, match="403"):
        vault.request("GET", "secret/data/app038/services/erp", token=token)
    with pytest.raises(LabError, match="403"):
        vault.request("GET", "database/creds/app038", token=token)


def test_the_dba_gets_credentials_and_no_certificate(vault: OpenBao) -> None:
    token = user_token(vault, "dana")
    lease = vault.request("GET", "database/creds/backup", token=token)["lease_id"]
    vault.request("PUT", "sys/leases/revoke", body={"lease_id": lease, "sync": True})
    with pytest.raises(LabError, match="403"):
        vault.request("POST", "pki/issue/app038", token=token, body={"common_name": "api.app038.example"})


# The credentials that it makes.


def test_every_lease_in_use_has_its_role_in_the_server(vault: OpenBao, server: PostgresServer) -> None:
    leases = vault.request("LIST", "sys/leases/lookup/database/creds/app038")["data"]["keys"]
    assert len(leases) == len(issued(server)) == 3
    for lease in leases:
        found = vault.request("PUT", "sys/leases/lookup", body={"lease_id": f"database/creds/app038/{lease}"})["data"]
        assert 0 < found["ttl"] <= 3600


def test_the_application_works_as_its_own_role(vault: OpenBao, server: PostgresServer) -> None:
    before = issued(server)
    with credentials(vault, server, "app038") as made:
        with made.connect() as session:
            assert session.execute("SELECT session_user, current_user").fetchone() == (made.user, "app038")
            session.execute("CREATE TABLE leased (id integer)")
        owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'leased'"
        assert server.execute(owner, dbname=app038.DATABASE) == [("app038",)]
        assert issued(server) == before | {made.user}
    server.execute("DROP TABLE leased", dbname=app038.DATABASE)
    assert issued(server) == before


def test_a_backup_reads_everything_and_writes_nothing(vault: OpenBao, server: PostgresServer) -> None:
    with psycopg.connect(server.dsn(app038.DATABASE, user=app038.CANARY_ROLE), autocommit=True) as session:
        session.execute("CREATE TABLE recovery.canary (key text)")
    tables = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = 'r' AND c.oid > 16383
    """
    with credentials(vault, server, "backup") as made:
        for database in (app038.DATABASE, app038.REPORTING_DATABASE):
            with made.connect(database) as session:
                found = session.execute(tables).fetchall()
                for table in found:
                    session.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(sql.Identifier(*table)))
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        session.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(*table)))
                session.execute("CHECKPOINT")
                session.execute("SELECT lo_get(oid, 0, 10) FROM pg_largeobject_metadata")
            assert (("recovery", "canary") in found) == (database == app038.DATABASE)


def test_a_backup_may_replicate_until_its_lease_is_revoked(vault: OpenBao, server: PostgresServer) -> None:
    with credentials(vault, server, "backup") as made, made.connect("postgres", replication="true") as session:
        assert session.execute("IDENTIFY_SYSTEM").fetchone()
        assert made.exists
    assert not made.exists
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        made.connect("postgres", replication="true")


def test_the_role_that_makes_roles_reads_nothing_itself(vault: OpenBao, server: PostgresServer) -> None:
    assert vault.request("GET", "database/config/app038")["data"]["connection_details"]["username"] == "vault"
    assert server.execute("SELECT rolsuper FROM pg_roles WHERE rolname = 'vault'") == [(False,)]
    with (
        psycopg.connect(server.dsn(app038.DATABASE, user=app038.MANAGEMENT_ROLE)) as session,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        session.execute("SELECT FROM users")


def test_the_canary_role_reads_nothing_but_its_own(server: PostgresServer) -> None:
    with (
        psycopg.connect(server.dsn(app038.DATABASE, user=app038.CANARY_ROLE)) as session,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        session.execute("SELECT FROM users")


# The cluster.


def test_every_node_is_unsealed_and_names_the_leader(vault_cluster: OpenBaoCluster) -> None:
    leader, standbys = vault_cluster.leader(), vault_cluster.standbys()
    assert len(standbys) == 2
    assert [node.address for node in vault_cluster.nodes] == vault_cluster.addresses
    for node in vault_cluster.nodes:
        found = node.request("GET", "sys/leader", token="")
        assert (found["leader_address"], found["is_self"]) == (leader.address, node is leader)
    for node in standbys:
        with pytest.raises(LabError, match="answers 429 to GET sys/health"):
            node.request("GET", "sys/health", token="")


def test_another_node_leads_after_the_leader_was_killed(vault_cluster: OpenBaoCluster) -> None:
    leader = vault_cluster.leader()
    leader.request("POST", "sys/mounts/kept", body={"type": "kv"})
    leader.request("POST", "kept/a", body={"b": "c"})
    leader.kill()
    try:
        new = vault_cluster.wait_for_leader()
        assert new is not leader
        assert new.request("GET", "kept/a", token=vault_cluster.root_token)["data"] == {"b": "c"}
        assert vault_cluster.standbys() == [node for node in vault_cluster.nodes if node not in (leader, new)]
    finally:
        leader.start()
    assert leader in vault_cluster.standbys()
    assert leader.request("GET", "sys/leader", token="")["leader_address"] == new.address
    new.request("DELETE", "sys/mounts/kept")


def test_without_a_majority_there_is_no_leader_and_nothing_is_left_running() -> None:
    with new_folder() as folder:
        with OpenBaoCluster(folder / "cluster") as cluster:
            marks = [process.lab_id for node in cluster.nodes for process in node.processes]
            assert len(marks) == 3
            assert all(marked_processes(mark) for mark in marks)
            last = cluster.standbys()[0]
            for node in cluster.nodes:
                if node is not last:
                    node.kill()
            with pytest.raises(LabError, match="the cluster has no leader"):
                cluster.leader()
        assert not any(marked_processes(mark) for mark in marks)
