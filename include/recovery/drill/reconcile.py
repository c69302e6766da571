"""Credential reconciliation: database roles that Vault issued, and the leases it holds for them, after a restore.

The two halves are from two moments: a role whose lease is not there is never revoked; a lease whose role is not there
cannot be. Lease entries are read through the restored node's raw storage, which a throwaway node alone offers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from recovery.connections import Connection
from recovery.manifest import Mount
from recovery.vault.session import errors_of

if TYPE_CHECKING:
    import hvac

_LEASES = "sys/raw/sys/expire/id/"
# Vault's default user name: v-<who>-<role>-<random>-<unix time> (database secrets engine, username templating).
_ISSUED = r"v-.+-{role}-[A-Za-z0-9]{{20}}-\d{{9,11}}"
_HOSTS = re.compile(r"//(?:[^/@]*@)?([^/?]+)")


@dataclass(frozen=True)
class Loose:
    """One end that nothing holds: `what` is `role without lease` or `lease without role`."""

    what: str
    name: str
    remedy: str


def reconcile(
    session: psycopg.Connection[Any],
    client: hvac.Client,
    mounts: Sequence[Mount],
    source: Connection,
    *,
    backup_role: str | None,
) -> list[Loose]:
    """Compare the roles of a restored server with the leases of a restored Vault's database engines.

    `source` is the server that was backed up: leases for other servers are passed over. A user name that an own
    template made is found through its lease only. `backup_role` is Vault's role of the backups' own logins: each is in
    the backup that it took, and its lease was revoked at the end.
    """
    roles = {str(name) for (name,) in session.execute("SELECT rolname FROM pg_roles")}
    issued = {name for name in roles if re.fullmatch(_ISSUED.format(role=".+"), name)}
    if backup_role is not None:
        # Vault cuts it to eight characters.
        own = _ISSUED.format(role=re.escape(backup_role[:8]))
        issued = {name for name in issued if not re.fullmatch(own, name)}
    leases = dict(_leases(client, [mount.path for mount in mounts if mount.type == "database"], source))
    return [
        *(
            Loose("role without lease", role, f'nothing will revoke it: DROP OWNED BY "{role}"; DROP ROLE "{role}"')
            for role in sorted(issued - set(leases.values()))
        ),
        *(
            Loose("lease without role", lease, f"its user is gone: lease revoke -force -prefix {lease}")
            for lease, user in sorted(leases.items())
            if user not in roles
        ),
    ]


def _leases(client: hvac.Client, engines: Sequence[str], source: Connection) -> Iterator[tuple[str, str]]:
    """(lease id, user name) of every lease for the source, below the database engines."""
    for engine in engines:
        ours = _roles_of(client, engine, source)
        for path in _below(client, f"{_LEASES}{engine}creds/"):
            lease = path.removeprefix(_LEASES)
            if lease.removeprefix(f"{engine}creds/").partition("/")[0] not in ours:
                continue
            with errors_of(client.url):
                entry = client.read(path)
            user = (json.loads(entry["data"]["value"]).get("data") or {}).get("username") if entry else None
            if user:
                yield lease, str(user)


def _roles_of(client: hvac.Client, engine: str, source: Connection) -> set[str]:
    """The roles of an engine that lead to the source: by its address, or because the engine knows one server only."""
    configured = _names(client, f"{engine}config")
    ours = {name for name in configured if len(configured) == 1 or _same(client, f"{engine}config/{name}", source)}
    found = set()
    for role in _names(client, f"{engine}roles"):
        with errors_of(client.url):
            settings = client.read(f"{engine}roles/{role}")
        if settings and settings["data"].get("db_name") in ours:
            found.add(role)
    return found


def _same(client: hvac.Client, path: str, source: Connection) -> bool:
    with errors_of(client.url):
        found = client.read(path)
    url = str(((found or {}).get("data", {}).get("connection_details") or {}).get("connection_url", ""))
    match = _HOSTS.search(url)
    hosts = {host if ":" in host else f"{host}:5432" for host in match[1].split(",")} if match else set()
    return bool(hosts & {f"{host.strip()}:{source.port or 5432}" for host in source.host.split(",")})


def _names(client: hvac.Client, folder: str) -> list[str]:
    with errors_of(client.url):
        listed = client.list(folder)
    return [str(name) for name in (listed or {}).get("data", {}).get("keys", [])]


def _below(client: hvac.Client, folder: str) -> Iterator[str]:
    for name in _names(client, folder):
        if name.endswith("/"):
            yield from _below(client, folder + name)
        else:
            yield folder + name
