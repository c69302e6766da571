"""What a Vault says of itself: its version, seal, mounts and policies, as a manifest keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recovery.errors import VaultError
from recovery.manifest import Mount, Seal, TransitKey, VaultServer
from recovery.vault import export
from recovery.vault.ask import ask
from recovery.vault.session import errors_of

if TYPE_CHECKING:
    import hvac

_HINT = "give its role the policy include/config/vault/backup.hcl"


def describe(client: hvac.Client) -> VaultServer:
    """The server behind a logged-in client; raises PreconditionError naming the right that is missing."""
    with errors_of(client.url):
        status = client.seal_status
    mounts, methods = _ask(client, "get", "sys/mounts"), _ask(client, "get", "sys/auth")
    policies = _ask(client, "list", "sys/policies/acl")["keys"]
    return VaultServer(
        version=str(status["version"]),
        cluster_id=str(status.get("cluster_id", "")),
        cluster_name=str(status.get("cluster_name", "")),
        address=client.url,
        seal=Seal(type=str(status["type"]), shares=int(status["n"]), threshold=int(status["t"])),
        mounts=[*_mounts("", mounts), *_mounts("auth/", methods)],
        policies=sorted(policies),
        transit=transit(client),
    )


def transit(client: hvac.Client) -> dict[str, TransitKey]:
    """The versions of every transit key, by mount and name."""
    return export.transit_keys(client)


def check_storage(client: hvac.Client) -> None:
    """Snapshots exist for Raft storage only; raises VaultError."""
    with errors_of(client.url):
        storage = client.seal_status.get("storage_type", "raft")
    if storage != "raft":
        raise VaultError(
            f"its storage is {storage}, and snapshots exist for Raft storage (Integrated Storage) only",
            where=client.url,
            remedy="migrate it with `operator migrate`, or back up that storage itself",
        )


def merged(before: Mapping[str, TransitKey], after: Mapping[str, TransitKey]) -> dict[str, TransitKey]:
    """What a snapshot between two readings is sure to decrypt: up to the newest version of the first."""
    return {
        name: TransitKey(
            latest_version=key.latest_version,
            min_decryption_version=max(key.min_decryption_version, after[name].min_decryption_version),
            min_available_version=max(key.min_available_version, after[name].min_available_version),
        )
        for name, key in before.items()
        if name in after
    }


def _ask(client: hvac.Client, method: str, path: str) -> dict[str, Any]:
    found = ask(client, method, path, needs=("read" if method == "get" else method,), hint=_HINT)
    if found is None:
        raise VaultError(f"{path} is not there", where=client.url, remedy="see what answers at this address")
    return found


def _mounts(prefix: str, found: Mapping[str, Any]) -> list[Mount]:
    return [
        Mount(path=prefix + path, type=str(values["type"]), uuid=str(values.get("uuid", "")))
        for path, values in sorted(found.items())
    ]
