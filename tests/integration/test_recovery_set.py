"""A recovery set on real servers: Postgres and Vault restored together, and what a drill says when one half is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import app038
from lab.app038 import DATABASE, fill_vault
from lab.bao import OpenBao, binary
from lab.postgres import PostgresServer
from recovery.connections import Connection
from recovery.drill import evidence
from recovery.vault import inspect
from tests.conftest import directory_repository
from tests.support import Site, make_site, new_folder, postgres_connection

KEY = "transit/recovery-canary"


@dataclass
class Pair:
    """App038's database and its Vault, and an installation that backs up both."""

    site: Site
    server: PostgresServer
    vault: OpenBao

    def rotate(self) -> None:
        self.vault.request("POST", "transit/keys/recovery-canary/rotate")

    def canary(self) -> dict[str, Any]:
        found: dict[str, Any] = self.site.json("vault", "canary", "app038")
        return found

    def snapshot(self, kind: str = "full") -> str:
        return str(self.site.json("backup", "vault", "app038", "--type", kind)["id"])

    def drill(self, *arguments: object, expect: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = self.site.json("drill", "app038", *arguments, expect=expect)
        return found


def check_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    (check,) = [check for check in found["checks"] if check["name"] == name]
    return dict(check)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[PostgresServer, OpenBao]]:
    with (
        new_folder() as folder,
        PostgresServer(folder / "app038", name="app038", settings=app038.SETTINGS) as server,
        OpenBao(folder / "vault") as vault,
    ):
        app038.create(server)
        app038.fill(server.dsn(DATABASE), 4)
        fill_vault(vault, server)
        yield server, vault


@pytest.fixture
def pair(running: tuple[PostgresServer, OpenBao], folder: Path) -> Pair:
    server, vault = running
    return make_pair(folder, server, vault)


def make_pair(folder: Path, server: PostgresServer, vault: OpenBao) -> Pair:
    site = make_site(folder, server, repository=directory_repository(folder))
    site.system["keys"] = {
        "vault": "app038",
        "canary": {"key": KEY, "database": DATABASE, "connection": "app038_canary"},
    }
    site.document["vault"] = {
        "app038": {
            "product": "openbao",
            "connection": "app038_vault",
            "repository": "main",
            "binary": str(binary()),
            "shares": "app038_shares",
        }
    }
    site.add(postgres_connection(server, "app038_canary", user="canary"))
    site.add(
        Connection(
            id="app038_vault",
            type="vault",
            host=vault.host,
            port=vault.port,
            login="recovery-backup",
            password=vault.passwords["recovery-backup"],
            extra={"auth_type": "approle"},
        )
    )
    site.add(Connection(id="app038_shares", type="generic", password="\n".join(vault.shares)))
    return Pair(site, server, vault)


def test_both_halves_are_restored_and_rows_open_across_them(pair: Pair) -> None:
    assert pair.canary()["due"] == "there is none yet"
    # The application's own ciphertext, under two versions of its key.
    pair.site.system["keys"]["columns"] = [
        {"key": "transit/app038", "database": DATABASE, "column": "public.sealed.phone"}
    ]
    pair.server.execute("CREATE TABLE sealed (phone text)", dbname=DATABASE)
    for _ in range(2):
        answer = pair.vault.request("POST", "transit/encrypt/app038", body={"plaintext": "MDEyMw=="})
        pair.server.execute("INSERT INTO sealed VALUES (%s)", (answer["data"]["ciphertext"],), dbname=DATABASE)
        pair.vault.request("POST", "transit/keys/app038/rotate")
    try:
        made = pair.site.backup()
    finally:
        pair.server.execute("DROP TABLE sealed", dbname=DATABASE)
    assert made.manifest.key_versions["transit/app038"].model_dump() == {"oldest": 1, "newest": 2}
    snapshot = pair.snapshot()
    found = pair.drill()
    assert found["verdict"] == "ok", found["checks"]
    assert check_of(found, "column app038: public.sealed.phone")["detail"] == "opened: v1, v2"
    assert found["kind"] == "set" and found["snapshot"] == snapshot
    assert "opened: transit/recovery-canary v1" in check_of(found, "canaries")["detail"]
    assert check_of(found, "vault seal")["verdict"] == "ok"
    assert {check["name"] for check in found["checks"]} >= {
        *("recovery set", "vault cluster", "vault mounts", "vault policies", "vault transit keys", "vault key counts"),
        *("rows", "pg_amcheck", "canaries", "credentials"),
    }


def test_a_snapshot_that_does_not_know_the_rows_key_version_is_not_chosen_and_fails_where_it_is_given(
    pair: Pair,
) -> None:
    pair.canary()
    old = pair.snapshot("snapshot")
    pair.rotate()
    rotated = pair.canary()
    assert rotated["due"] == f"{KEY} is at version {rotated['version']}, and {old} ends at {rotated['version'] - 1}"
    made = pair.site.backup()
    assert made.manifest.key_versions[KEY].newest == rotated["version"]
    listed = pair.site.json("list")["postgres"]["app038"]["backups"][0]["vault"]
    assert listed["snapshot"] is None and "the Vault's half is too old" in listed["risk"]
    found = pair.drill(expect=1)
    assert found["verdict"] == "failed" and found["snapshot"] is None
    told = check_of(found, "recovery set")["detail"]
    assert told.startswith(f"no snapshot fits; {old}: the Vault's half is too old: rows carry version ")
    assert check_of(found, "rows")["verdict"] == "ok", "the database's half is looked at all the same"
    found = pair.drill("--snapshot", old, expect=1)
    told = check_of(found, "canaries")["detail"]
    assert told.startswith(f"the Vault's half is too old: rows carry version {rotated['version']} of {KEY}")
    new = pair.snapshot("snapshot")
    listed = pair.site.json("list")["postgres"]["app038"]["backups"][0]["vault"]
    assert listed["snapshot"] == new and listed["apart_seconds"] > 0 and listed["risk"] == ""
    assert f"{new}, " in pair.site.run("list").stdout


def test_wrong_shares_are_the_vaults_half(pair: Pair, running: tuple[PostgresServer, OpenBao]) -> None:
    pair.canary()
    pair.site.backup()
    pair.snapshot("snapshot")
    wrong = [share[:8] + share[8:].swapcase() for share in pair.vault.shares]
    pair.site.add(Connection(id="app038_shares", type="generic", password=",".join(wrong)))
    found = pair.drill(expect=1)
    assert found["verdict"] == "failed"
    told = check_of(found, "vault restore")["detail"]
    assert told.startswith("the Vault's half is wrong: ") and "the shares given do not open this snapshot" in told
    assert not any(share in str(found) for share in [*wrong, *pair.vault.shares])
    assert check_of(found, "rows")["verdict"] == "ok"


def test_a_policy_that_is_not_in_the_snapshot_is_missed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.canary()
    pair.site.backup()
    pair.vault.write_policy("short-lived", 'path "secret/data/x" { capabilities = ["read"] }')
    describe = inspect.describe

    def then_it_goes(client: Any) -> Any:
        found = describe(client)
        pair.vault.request("DELETE", "sys/policies/acl/short-lived")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(inspect, "describe", then_it_goes)
        pair.snapshot("snapshot")
    found = pair.drill(expect=1)
    assert check_of(found, "vault policies") == {
        "name": "vault policies",
        "verdict": "failed",
        "detail": "the policy short-lived is missing in the restored Vault",
    }
    assert check_of(found, "canaries")["verdict"] == "ok"


def test_roles_without_leases_and_leases_without_roles_are_listed(pair: Pair) -> None:
    pair.canary()
    orphan = pair.vault.request("GET", "database/creds/app038")
    pair.site.backup()
    pair.vault.request("PUT", "sys/leases/revoke", body={"lease_id": orphan["lease_id"], "sync": True})
    later = pair.vault.request("GET", "database/creds/app038")
    pair.snapshot("snapshot")
    told = pair.site.run("drill", "app038").stdout
    (found,) = evidence.read_all(pair.site.store())
    loose = {(each["what"], each["name"]): each["remedy"] for each in found["loose"]}
    assert set(loose) == {
        ("role without lease", orphan["data"]["username"]),
        ("lease without role", later["lease_id"]),
    }
    assert f'DROP ROLE "{orphan["data"]["username"]}"' in loose["role without lease", orphan["data"]["username"]]
    assert f"lease without role: {later['lease_id']} -> its user is gone: lease revoke -force -prefix" in told
    for secret in (orphan["data"]["password"], later["data"]["password"], *pair.vault.shares, pair.vault.root_token):
        assert secret not in told and secret not in str(found)


def test_a_database_from_before_the_keys_least_version_is_the_wrong_half(pair: Pair) -> None:
    version = pair.canary()["version"]
    early = pair.site.backup()
    pair.rotate()
    pair.vault.request("POST", "transit/keys/recovery-canary/config", body={"min_decryption_version": version + 1})
    retired = pair.canary()
    assert retired["retired"] >= 1
    late = pair.snapshot("snapshot")
    found = pair.drill("--to", early.id, expect=1)
    told = check_of(found, "recovery set")["detail"]
    assert told.startswith(f"no snapshot fits; {late}: the database's half is too old: rows carry version ")
    found = pair.drill("--to", early.id, "--snapshot", late, expect=1)
    assert "the database's half is too old" in check_of(found, "canaries")["detail"]


def test_without_a_canary_a_set_is_not_known_to_belong_together(pair: Pair) -> None:
    pair.server.execute("DROP TABLE recovery.canary", dbname=DATABASE)
    made = pair.site.backup()
    assert made.manifest.key_versions == {}
    assert made.manifest.notes == [
        "the key versions in app038, recovery.canary.ciphertext are not known: there is no such column"
    ]
    pair.snapshot("snapshot")
    found = pair.drill(expect=1)
    assert found["verdict"] == "unknown"
    assert "the restored database holds no canary" in check_of(found, "canaries")["detail"]
