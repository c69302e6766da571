"""What the lab's clients are given: the environment with its connections, the configuration, a key pair."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lab import app038
from lab.bao import OpenBao, binary
from lab.directory import REPOSITORY
from lab.objectstore import REGION
from lab.postgres import SUPERUSER, PostgresServer
from recovery import config
from recovery.connections import Connection
from recovery.errors import ConfigurationError
from recovery.installation import Installation

if TYPE_CHECKING:
    from lab.system import Lab

BUCKET = "recovery"
SHARES_FILE = "vault-shares"


def environment(lab: Lab) -> dict[str, str]:
    """The variables that `recovery` and Airflow read: connections with their secrets, and the configuration's place."""
    connections: dict[str, dict[str, object]] = {
        "APP038_POSTGRES": _postgres_connection(lab.app038, login="backup", schema=app038.DATABASE),
        "RECOVERY_S3": {
            "conn_type": "aws",
            "login": lab.objects.access_key,
            "password": lab.objects.secret_key,
            "extra": {"endpoint_url": lab.objects.endpoint, "region_name": REGION},
        },
        "RECOVERY_IDENTITY": {"conn_type": "generic", "password": lab.identity},
    }
    if lab.staging:
        connections["STAGING_POSTGRES"] = _postgres_connection(lab.staging, login=SUPERUSER, schema="postgres")
    if lab.vault:
        connections |= {
            "APP038_VAULT": _vault_connection(lab.vault, role=app038.BACKUP_APPROLE),
            "APP038_VAULT_SHARES": {"conn_type": "generic", "extra": {"path": str(lab.root / SHARES_FILE)}},
            "APP038_CANARY": _postgres_connection(lab.app038, login=app038.CANARY_ROLE, schema=app038.DATABASE),
        }
    return {
        **{f"AIRFLOW_CONN_{name}": json.dumps(connection) for name, connection in connections.items()},
        "PYTHONPATH": str(REPOSITORY / "include"),
        "RECOVERY_CONFIG": str(lab.root / "recovery.yaml"),
    }


def configuration(lab: Lab) -> dict[str, object]:
    """What recovery.yaml says in this lab; no secrets."""
    return {
        "version": 1,
        "encryption": {"recipients": [lab.recipient], "identity": "recovery_identity"},
        "repositories": {
            "primary": {
                "s3": {
                    "connection": "recovery_s3",
                    "bucket": BUCKET,
                    "prefix": "app038",
                    "object_lock": {"mode": "COMPLIANCE", "days": 1},
                }
            }
        },
        "postgres": {
            "app038": {
                "connection": "app038_postgres",
                "repository": "primary",
                "tools": {lab.app038.major: str(lab.app038.bindir)},
                # The lab's objects are locked for a day: no chain may be longer.
                "incremental": {"max_chain": 4},
                "wal": {},
                "objectives": {"rto": "15m"},
                **({"keys": _KEYS} if lab.vault else {}),
            }
        },
        **({"vault": {"app038": _vault_system(lab)}} if lab.vault else {}),
        "sandbox": {
            "directory": str(lab.root / "sandbox"),
            "user": lab.app038.user.name if lab.app038.user else None,
        },
    }


def installation_of(lab: Lab) -> Installation:
    """The library on this lab, without its connections in this process's environment."""

    def resolve(connection_id: str) -> Connection:
        value = lab.env.get(f"AIRFLOW_CONN_{connection_id.upper()}")
        if value is None:
            raise ConfigurationError("the lab has no such connection", where=connection_id)
        return Connection.from_json(connection_id, value)

    return Installation(config.load(lab.root / "recovery.yaml"), resolve=resolve)


def key_pair() -> tuple[str, str]:
    """A fresh age identity (secret) and its recipient (public)."""
    from pyrage import x25519

    identity = x25519.Identity.generate()
    return str(identity), str(identity.to_public())


_KEYS = {
    "vault": "app038",
    "canary": {
        "key": f"transit/{app038.CANARY_KEY}",
        "database": app038.DATABASE,
        "connection": "app038_canary",
    },
}


def _vault_system(lab: Lab) -> dict[str, object]:
    return {
        "product": "openbao",
        "connection": "app038_vault",
        "repository": "primary",
        "binary": str(binary()),
        "shares": "app038_vault_shares",
        "objectives": {"rto": "15m"},
    }


def _vault_connection(vault: OpenBao, *, role: str) -> dict[str, object]:
    return {
        "conn_type": "vault",
        "host": vault.host,
        "port": vault.port,
        "login": role,
        "password": vault.passwords[role],
        "extra": {"auth_type": "approle", "use_tls": False},
    }


def _postgres_connection(server: PostgresServer, *, login: str, schema: str) -> dict[str, object]:
    return {
        "conn_type": "postgres",
        "host": server.host,
        "port": server.port,
        "login": login,
        "password": server.passwords[login],
        "schema": schema,
    }
