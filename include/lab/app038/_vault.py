"""App038's Vault: its secrets, keys, logins and certificates, and the credentials that it makes in App038's server."""

from __future__ import annotations

import secrets
import time

from psycopg import sql

from lab.app038._create import BACKUP_ROLE, DATABASE
from lab.bao import OpenBao
from lab.directory import REPOSITORY
from lab.errors import LabError
from lab.postgres import PostgresServer

TRANSIT_KEY = "app038"
CANARY_KEY = "recovery-canary"
MANAGEMENT_ROLE = "vault"
BACKUP_APPROLE = "recovery-backup"

_POLICY_FILES = {"recovery-backup": "backup.hcl", "recovery-canary": "canary.hcl"}
_POLICIES = {
    "app038-api": """\
path "secret/data/app038/*" { capabilities = ["read"] }
path "transit/encrypt/app038" { capabilities = ["update"] }
path "transit/decrypt/app038" { capabilities = ["update"] }
path "database/creds/app038" { capabilities = ["read"] }
""",
    "app038-worker": """\
path "secret/data/app038/services/*" { capabilities = ["read"] }
path "transit/decrypt/app038" { capabilities = ["update"] }
path "database/creds/app038" { capabilities = ["read"] }
""",
    "dba": """\
path "database/creds/*" { capabilities = ["read"] }
path "database/roles/*" { capabilities = ["read", "list"] }
path "sys/leases/lookup/database/*" { capabilities = ["list", "sudo"] }
""",
    "ci": """\
path "secret/data/ci/*" { capabilities = ["read"] }
path "pki/issue/app038" { capabilities = ["update"] }
""",
}
_USERS = {"dana": ["dba"], "pipeline": ["ci"]}
_SERVICES = ("erp", "mail", "queue", "cache", "search", "payments", "maps", "sms")
_SHOPS = 190
_LEASES = 3
_KV_SECONDS = 10.0
# As include/config/vault/database.hcl says it.
_BACKUP_CREATION = [
    "CREATE ROLE \"{{name}}\" LOGIN REPLICATION PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE backup",
    'ALTER ROLE "{{name}}" SET lo_compat_privileges = on',
]
# What a session creates is the application's, and outlives the role.
_APPLICATION_CREATION = [
    "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE app038",
    'ALTER ROLE "{{name}}" SET role = app038',
]
# Without this the engine first revokes rights on every table and sequence of its database, which `vault` may not.
_REVOCATION = ['DROP ROLE IF EXISTS "{{name}}"']


def fill_vault(vault: OpenBao, database: PostgresServer) -> None:
    """Fill an empty OpenBao for App038 on `database` (PostgreSQL 16 or later), with a few credentials in use there.

    Passwords that the two objects do not know yet are made and put there.
    """
    _write_secrets(vault)
    _create_keys(vault)
    _create_certificates(vault)
    _create_logins(vault)
    _connect_database(vault, database)
    for _ in range(_LEASES):
        vault.request("GET", "database/creds/app038")


def _write_secrets(vault: OpenBao) -> None:
    vault.request("POST", "sys/mounts/secret", body={"type": "kv", "options": {"version": "2"}})
    _wait_for_kv(vault)
    paths = [
        *(f"app038/services/{service}" for service in _SERVICES),
        *(f"app038/shops/{number:03}" for number in range(1, _SHOPS + 1)),
        *("ci/registry", "ci/signing"),
    ]
    for path in paths:
        vault.request("POST", f"secret/data/{path}", body={"data": {"key": secrets.token_urlsafe(24)}})


def _wait_for_kv(vault: OpenBao) -> None:
    """Version 2 refuses everything for a moment after it is mounted."""
    deadline = time.monotonic() + _KV_SECONDS
    while True:
        try:
            vault.request("GET", "secret/config")
        except LabError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _create_keys(vault: OpenBao) -> None:
    vault.request("POST", "sys/mounts/transit", body={"type": "transit"})
    for key in (TRANSIT_KEY, CANARY_KEY):
        vault.request("POST", f"transit/keys/{key}", body={"type": "aes256-gcm96"})


def _create_certificates(vault: OpenBao) -> None:
    vault.request("POST", "sys/mounts/pki", body={"type": "pki", "config": {"max_lease_ttl": "87600h"}})
    root = {"common_name": "App038 Root", "key_type": "ec", "key_bits": 256, "ttl": "87600h"}
    vault.request("POST", "pki/root/generate/internal", body=root)
    role = {"allowed_domains": "app038.example", "allow_subdomains": True, "key_type": "ec", "max_ttl": "720h"}
    vault.request("POST", "pki/roles/app038", body=role)


def _create_logins(vault: OpenBao) -> None:
    files = {name: REPOSITORY / "include" / "config" / "vault" / file for name, file in _POLICY_FILES.items()}
    for name, text in (_POLICIES | {name: file.read_text() for name, file in files.items()}).items():
        vault.write_policy(name, text)
    for who in (BACKUP_APPROLE, *_USERS):
        vault.passwords.setdefault(who, secrets.token_urlsafe(18))
    vault.request("POST", "sys/auth/approle", body={"type": "approle"})
    role = f"auth/approle/role/{BACKUP_APPROLE}"
    tokens = {"token_no_default_policy": True, "token_ttl": "1h", "token_max_ttl": "4h"}
    vault.request("POST", role, body={"token_policies": list(_POLICY_FILES)} | tokens)
    vault.request("POST", f"{role}/role-id", body={"role_id": BACKUP_APPROLE})
    vault.request("POST", f"{role}/custom-secret-id", body={"secret_id": vault.passwords[BACKUP_APPROLE]})
    vault.request("POST", "sys/auth/userpass", body={"type": "userpass"})
    for user, policies in _USERS.items():
        body = {"password": vault.passwords[user], "token_policies": policies}
        vault.request("POST", f"auth/userpass/users/{user}", body=body)


def _connect_database(vault: OpenBao, database: PostgresServer) -> None:
    _create_management_role(database)
    vault.request("POST", "sys/mounts/database", body={"type": "database"})
    connection = {
        "plugin_name": "postgresql-database-plugin",
        "allowed_roles": ["app038", "backup"],
        "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{database.host}:{database.port}/{DATABASE}",
        "username": MANAGEMENT_ROLE,
        "password": database.passwords[MANAGEMENT_ROLE],
    }
    vault.request("POST", "database/config/app038", body=connection)
    common = {"db_name": "app038", "revocation_statements": _REVOCATION, "default_ttl": "1h", "max_ttl": "24h"}
    for role, statements in {"app038": _APPLICATION_CREATION, "backup": _BACKUP_CREATION}.items():
        vault.request("POST", f"database/roles/{role}", body=common | {"creation_statements": statements})


def _create_management_role(database: PostgresServer) -> None:
    """A role that makes roles like `backup` and `app038` and is like neither: no superuser."""
    password = sql.Literal(database.passwords.setdefault(MANAGEMENT_ROLE, secrets.token_urlsafe(18)))
    management = sql.Identifier(MANAGEMENT_ROLE)
    for statement in (
        sql.SQL("CREATE ROLE {} LOGIN CREATEROLE REPLICATION PASSWORD {}").format(management, password),
        sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(DATABASE), management),
        sql.SQL("GRANT app038, {} TO {} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE").format(
            sql.Identifier(BACKUP_ROLE), management
        ),
        sql.SQL("GRANT SET ON PARAMETER lo_compat_privileges TO {}").format(management),
    ):
        database.execute(statement)
