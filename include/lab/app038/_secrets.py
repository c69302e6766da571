"""What App038 keeps in Vault: a key for encrypting columns, secrets, its own policy; and the backup's own identity."""

from __future__ import annotations

from pathlib import Path

from lab.bao import OpenBao

BACKUP_POLICY = "recovery-backup"
TRANSIT_KEY = "app038"
_APPLICATION_POLICY = """\
path "transit/encrypt/app038" { capabilities = ["update"] }
path "transit/decrypt/app038" { capabilities = ["update"] }
path "secret/app038/*" { capabilities = ["read"] }
"""


def create_secrets(bao: OpenBao, *, backup_policy: Path, backup_token: str) -> None:
    """Fill an empty OpenBao; `backup_token` becomes a token that has what `backup_policy` allows and nothing else."""
    bao.request("POST", "sys/mounts/transit", body={"type": "transit"})
    bao.request("POST", f"transit/keys/{TRANSIT_KEY}", body={"type": "aes256-gcm96"})
    # Version 1: version 2 refuses writes for a moment after it is mounted.
    bao.request("POST", "sys/mounts/secret", body={"type": "kv"})
    bao.request("POST", "secret/app038/erp", body={"endpoint": "https://erp.example", "key": "lab-only"})
    bao.request("POST", "sys/auth/approle", body={"type": "approle"})
    bao.write_policy("app038", _APPLICATION_POLICY)
    bao.request("POST", "auth/approle/role/app038", body={"token_policies": ["app038"], "token_ttl": "1h"})
    bao.write_policy(BACKUP_POLICY, backup_policy.read_text())
    bao.create_token([BACKUP_POLICY], token=backup_token)
