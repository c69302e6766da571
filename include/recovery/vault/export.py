"""A Vault's policies and configuration as a tree of files that can be kept, compared and read by people.

    policies/<name>.hcl              ACL policies exactly as stored
    mounts.json  auth.json           secrets engines and auth methods, and how they are tuned
    audit.json                       audit devices
    roles/<mount>/names.json         the names of roles (methods: roles/auth/<mount>/), versions of transit keys
    namespaces/<name>/...            the same of each child namespace, and its namespace.json

No secret is in it: of what the server answers only the fields named here are taken. Nor is anything that changes by
itself (counters, times, versions that an upgrade moves): an unchanged server gives the same bytes again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from recovery.errors import VaultError
from recovery.manifest import TransitKey
from recovery.vault.ask import ask
from recovery.vault.tree import Tree, pack, unpack, write_tree

if TYPE_CHECKING:
    import hvac

__all__ = ["ROOT_POLICY", "Tree", "collect", "pack", "transit_keys", "unpack", "write_tree"]

ROOT_POLICY = "root"
"""Built in, without a text."""

_POLICY = "include/config/vault/backup.hcl"
_PROGRAMS = {"vault": "vault", "openbao": "bao"}
_LEFT_OUT = "(left out)"

_MOUNT = ("type", "description", "uuid", "accessor", "local", "seal_wrap", "external_entropy_access", "plugin_version")
_TUNING = (
    "allowed_managed_keys",
    "allowed_response_headers",
    "audit_non_hmac_request_keys",
    "audit_non_hmac_response_keys",
    "default_lease_ttl",
    "delegated_auth_accessors",
    "force_no_cache",
    "listing_visibility",
    "max_lease_ttl",
    "passthrough_request_headers",
    "token_type",
)
_LOCKOUT = ("lockout_threshold", "lockout_duration", "lockout_counter_reset", "lockout_disable_feature")
_MOUNT_OPTIONS = ("version",)
_AUDIT = ("type", "path", "description", "local")
# Not `address`, `uri`, `headers`, `prefix`: they may carry a credential.
_AUDIT_OPTIONS = (
    "elide_list_responses",
    "facility",
    "file_path",
    "format",
    "hmac_accessor",
    "log_raw",
    "mode",
    "socket_type",
    "tag",
    "write_timeout",
)
_NAMESPACE = ("id", "uuid", "locked", "tainted")
_TRANSIT_KEY = (
    "allow_plaintext_backup",
    "auto_rotate_period",
    "convergent_encryption",
    "deletion_allowed",
    "derived",
    "exportable",
    "imported_key",
    "latest_version",
    "min_available_version",
    "min_decryption_version",
    "min_encryption_version",
    "soft_deleted",
    "type",
)
# What can be listed, by type. The paths are those of Vault's and OpenBao's HTTP API.
_AUTH_LISTS = {
    "approle": ("role",),
    "aws": ("roles",),
    "azure": ("role",),
    "cert": ("certs",),
    "gcp": ("roles",),
    "jwt": ("role",),
    "kubernetes": ("role",),
    "ldap": ("groups", "users"),
    "oidc": ("role",),
    "token": ("roles",),
    "userpass": ("users",),
}
_SECRETS_LISTS = {
    "aws": ("roles",),
    "azure": ("roles",),
    "consul": ("roles",),
    "database": ("roles", "static-roles"),
    "kubernetes": ("roles",),
    "pki": ("roles",),
    "rabbitmq": ("roles",),
    "ssh": ("roles",),
}


def collect(client: hvac.Client, *, product: str) -> Tree:
    """The whole export, sorted. Ask the active node: OpenBao's standbys answer reads from behind.

    Raises PreconditionError naming the path and the capability that the token lacks.
    """
    program = _PROGRAMS[product]
    server = _Server(client, hint=f"`{program} policy write` the policy {_POLICY} for its role")
    tree: Tree = {}
    for path, info in server.namespaces():
        folder = "".join(f"namespaces/{quote(name, safe='')}/" for name in path.split("/") if name)
        if path:
            tree[f"{folder}namespace.json"] = _json(_kept(info, _NAMESPACE))
        if _serves(info):
            tree |= {folder + file: content for file, content in _Namespace(server, path).files()}
    # Audit devices belong to the whole server, and only its root namespace tells them.
    if not client.adapter.namespace:
        tree["audit.json"] = _json(server.audit())
    return dict(sorted(tree.items()))


def transit_keys(client: hvac.Client) -> dict[str, TransitKey]:
    """Every transit key, by mount and name: `transit/app038`, in a child namespace `team/transit/app038`.

    Raises PreconditionError as collect() does: a key that goes unseen could not be missed later.
    """
    server = _Server(client, hint=f"give its role the policy {_POLICY}")
    return {
        f"{path}{mount}{name}": TransitKey(
            latest_version=key["latest_version"],
            min_decryption_version=key["min_decryption_version"],
            min_available_version=key.get("min_available_version", 0),
        )
        for path, info in server.namespaces()
        if _serves(info)
        for mount, values in sorted(server.mounts(path).items())
        if values["type"] == "transit"
        for name, key in server.transit(path + mount).items()
    }


class _Server:
    """What one server answers, per namespace (`""`: the client's own, else its path with a slash at the end)."""

    def __init__(self, client: hvac.Client, *, hint: str) -> None:
        self._client, self._hint = client, hint

    def namespaces(self, parent: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Every namespace from here on down with what its parent says of it. Vault's community edition has none."""
        if not parent:
            yield "", {}
        found = self._ask("list", f"{parent}sys/namespaces", needs=("list",)) or {}
        about = found.get("key_info") or {}
        for name in sorted(found.get("keys", ())):
            path, info = f"{parent}{name.rstrip('/')}/", about.get(name) or {}
            yield path, info
            if _serves(info):
                yield from self.namespaces(path)

    def mounts(self, namespace: str) -> dict[str, dict[str, Any]]:
        return self.get(f"{namespace}sys/mounts")

    def audit(self) -> dict[str, Any]:
        found = self.get("sys/audit", needs=("read", "sudo"))
        return {
            path: _kept(values, _AUDIT) | {"options": _options(values.get("options"), _AUDIT_OPTIONS)}
            for path, values in found.items()
        }

    def transit(self, mount: str) -> dict[str, dict[str, Any]]:
        """The keys of one transit engine: which versions there are, and what may be done with them."""
        return {
            name: _kept(self.get(f"{mount}keys/{name}", rule=f"{mount}keys/+"), _TRANSIT_KEY)
            for name in self.names(f"{mount}keys")
        }

    def names(self, path: str, *, rule: str = "") -> list[str]:
        found = self._ask("list", path, needs=("list",), rule=rule)
        return sorted(found["keys"]) if found else []

    def get(self, path: str, *, needs: Sequence[str] = ("read",), rule: str = "") -> dict[str, Any]:
        found = self._ask("get", path, needs=needs, rule=rule)
        if found is None:
            raise VaultError(
                f"{path} is not there, and was listed a moment ago", where=self._client.url, remedy="run it again"
            )
        return found

    def _ask(self, method: str, path: str, *, needs: Sequence[str], rule: str = "") -> dict[str, Any] | None:
        return ask(self._client, method, path, needs=needs, hint=self._hint, rule=rule)


class _Namespace:
    def __init__(self, server: _Server, path: str) -> None:
        self._server, self._path = server, path

    def files(self) -> Iterator[tuple[str, bytes]]:
        server, path = self._server, self._path
        for name in server.names(f"{path}sys/policies/acl"):
            if name != ROOT_POLICY:
                found = server.get(f"{path}sys/policies/acl/{name}", rule=f"{path}sys/policies/acl/*")
                yield f"policies/{quote(name, safe='')}.hcl", str(found["policy"]).encode()
        mounts, methods = server.mounts(path), server.get(f"{path}sys/auth")
        yield "mounts.json", _json(_mounts(mounts))
        yield "auth.json", _json(_mounts(methods))
        for mount, values in mounts.items():
            if values["type"] == "transit":
                yield f"roles/{quote(mount)}names.json", _json({"keys": server.transit(path + mount)})
            else:
                yield from self._roles("", mount, _SECRETS_LISTS.get(_type(values), ()))
        for mount, values in methods.items():
            yield from self._roles("auth/", mount, _AUTH_LISTS.get(_type(values), ()))

    def _roles(self, prefix: str, mount: str, lists: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        place, segments = self._path + prefix, "+/" * mount.count("/")
        found = {name: self._server.names(place + mount + name, rule=place + segments + name) for name in lists}
        if found:
            yield f"roles/{prefix}{quote(mount)}names.json", _json(found)


def _serves(info: Mapping[str, Any]) -> bool:
    """A namespace that is locked, or being deleted, answers nothing; the rest of the server is exported."""
    return not (info.get("locked") or info.get("tainted"))


def _type(values: Mapping[str, Any]) -> str:
    """OpenBao calls the token method of a child namespace ns_token."""
    return str(values["type"]).removeprefix("ns_")


def _mounts(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        path: _kept(values, _MOUNT)
        | {
            "config": _tuning(values.get("config") or {}),
            "options": _options(values.get("options"), _MOUNT_OPTIONS),
        }
        for path, values in found.items()
    }


def _tuning(config: Mapping[str, Any]) -> dict[str, Any]:
    lockout = _kept(config.get("user_lockout_config") or {}, _LOCKOUT)
    return _kept(config, _TUNING) | ({"user_lockout_config": lockout} if lockout else {})


def _options(found: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Any]:
    """Options that are known to hold no secret; of any other one it is said that it is set."""
    kept = _kept(found or {}, names)
    return {name: kept.get(name, _LEFT_OUT) for name in found or {}}


def _kept(found: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found and _plain(found[name])}


def _plain(value: object) -> bool:
    """No objects: what a later version nests in a known field is not known."""
    values = value if isinstance(value, list) else [value]
    return all(item is None or isinstance(item, str | int | float) for item in values)


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
