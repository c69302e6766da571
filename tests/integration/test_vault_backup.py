"""Backups of a Vault by the command, on a real server: what they say, what they hold, and what keeps them from being made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyrage
import pytest

from lab.bao import OpenBao, binary
from lab.objectstore import SeaweedFS
from recovery.connections import Connection
from recovery.repository.in_memory import seal_bytes
from recovery.repository.lease import Lease
from recovery.repository.sealing import parse_recipient
from recovery.vault import catalog, content, inspect
from tests.conftest import directory_repository, s3_repository
from tests.integration.test_by_hand import check_sums, run
from tests.support import REPOSITORY, Site, make_site, s3_connection
from tests.unit.test_vault_snapshot import verify

BACKUP = ("backup", "vault", "app038")
KINDS = ("full", "snapshot", "policies")
POLICY = (REPOSITORY / "include" / "config" / "vault" / "backup.hcl").read_text()


def vault_site(folder: Path, vault: OpenBao, *, repository: Mapping[str, Any] | None = None, **changes: Any) -> Site:
    """An installation that backs up `vault` as app038, and nothing else. `changes` are those of its connection."""
    site = make_site(folder, None, repository=repository or directory_repository(folder))
    site.document["vault"] = {
        "app038": {
            "product": "openbao",
            "connection": "app038_vault",
            "repository": "main",
            "binary": str(binary()),
            "shares": "app038_shares",
        }
    }
    fields: dict[str, Any] = {
        "type": "vault",
        "host": vault.host,
        "port": vault.port,
        "login": "recovery-backup",
        "password": vault.passwords.get("recovery-backup", ""),
        "extra": {"auth_type": "approle"},
    }
    site.add(Connection(id="app038_vault", **(fields | changes)))
    site.add(Connection(id="app038_shares", type="generic", password="\n".join(vault.shares)))
    return site


def with_token(vault: OpenBao, token: str) -> dict[str, Any]:
    """The connection of somebody who has a token."""
    return {"host": vault.host, "port": vault.port, "login": "", "password": token, "extra": {}}


def keys(site: Site) -> list[str]:
    """Every object of the repository but leases."""
    return [info.key for info in site.installation().store("main").scan("") if not info.key.startswith("leases/")]


def manifest_of(site: Site, identifier: str) -> dict[str, Any]:
    store = site.installation().store("main")
    data = store.get(f"vault/app038/snapshots/{identifier}/manifest.json")
    found: dict[str, Any] = json.loads(data)
    assert data == (json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n").encode()
    return found


def nothing_is_there(site: Site) -> None:
    """No object, no unfinished upload, and nothing listed."""
    assert keys(site) == []
    uploads = site.folder / "repository" / ".uploads"
    assert not uploads.exists() or list(uploads.iterdir()) == []
    assert site.json("list")["vault"] == {"app038": {"backups": [], "problems": []}}


@pytest.fixture
def vault_in(folder: Path, vault: OpenBao) -> Site:
    """App038's Vault, backed up into a directory by the identity that the shipped policy describes."""
    return vault_site(folder, vault)


# What a backup is.


@pytest.mark.parametrize("kind", KINDS)
def test_a_backup_says_what_it_holds(vault_in: Site, vault: OpenBao, kind: str) -> None:
    before = vault.request("GET", "sys/leader", token="")
    made = vault_in.json(*BACKUP, "--type", kind)
    after = vault.request("GET", "sys/leader", token="")
    found = manifest_of(vault_in, made["id"])
    assert made["id"].endswith(f"Z-{kind}")
    assert (found["format_version"], found["id"], found["kind"]) == (1, made["id"], kind)
    assert (found["product"], found["system"]) == ("openbao", "app038")
    expected = {
        "full": {"snapshot": "snapshot.snap.zst.age", "export": "policies/export.tar.zst.age"},
        "snapshot": {"snapshot": "snapshot.snap.zst.age"},
        "policies": {"export": "policies/export.tar.zst.age"},
    }[kind]
    assert {item["role"]: item["key"] for item in found["objects"]} == expected
    folder = f"vault/app038/snapshots/{made['id']}/"
    assert sorted(keys(vault_in)) == sorted([folder + "manifest.json", *(folder + key for key in expected.values())])
    status = vault.request("GET", "sys/seal-status", token="")
    server = found["server"]
    assert server["seal"] == {"type": "shamir", "shares": 3, "threshold": 2}
    assert (server["version"], server["cluster_id"]) == (status["version"], status["cluster_id"])
    assert server["cluster_name"] == status["cluster_name"]
    assert server["address"] == vault.address
    mounts = {mount["path"]: mount for mount in server["mounts"]}
    assert {"secret/", "transit/", "pki/", "database/", "auth/approle/", "auth/userpass/"} <= mounts.keys()
    assert (mounts["secret/"]["type"], mounts["auth/approle/"]["type"]) == ("kv", "approle")
    assert {"app038-api", "recovery-backup", "default", "root"} <= set(server["policies"])
    assert server["policies"] == sorted(server["policies"])
    assert server["transit"]["transit/app038"] == {
        "latest_version": 1,
        "min_decryption_version": 1,
        "min_available_version": 0,
    }
    assert found["recipients"] == [str(vault_in.identity.to_public())]
    assert set(found["timings_seconds"]) == {"prepare", "copy"}
    assert all(item["encrypted"] and item["compression"] == "zstd" for item in found["objects"])
    if kind == "policies":
        assert found["snapshot"] is None
        return
    snapshot = found["snapshot"]
    assert before["raft_applied_index"] <= snapshot["index"] <= after["raft_applied_index"]
    assert snapshot["term"] >= 1
    assert set(snapshot["key_counts"]) == {"auth", "core", "logical", "sys"}
    # A version and its metadata for each secret.
    assert snapshot["mount_key_counts"][mounts["secret/"]["uuid"]] >= 2 * 200
    assert snapshot["mount_key_counts"][mounts["transit/"]["uuid"]] == 4
    assert found["started_at"] <= snapshot["taken_at"] <= found["finished_at"]


def test_a_backup_is_told_to_people_and_to_programs(vault_in: Site) -> None:
    assert "app038" in vault_in.run("list").stdout and "no backup" in vault_in.run("list").stdout
    told = vault_in.run(*BACKUP)
    assert told.stderr == ""
    first, second = told.stdout.splitlines()
    identifier = first.partition(":")[0]
    assert identifier.endswith("Z-full") and first.endswith("/s), 2 objects")
    found = manifest_of(vault_in, identifier)
    stored = sum(found["snapshot"]["key_counts"].values())
    assert second == f"Raft index {found['snapshot']['index']}, {stored} keys in the storage, verified"
    made = vault_in.json(*BACKUP, "--type", "policies")
    assert made | {"seconds": 0} == {
        "id": made["id"],
        "system": "app038",
        "kind": "policies",
        "product": "openbao",
        "recovery_point": made["recovery_point"],
        "source_bytes": made["source_bytes"],
        "stored_bytes": made["stored_bytes"],
        "objects": 1,
        "seconds": 0,
        "server_version": found["server"]["version"],
        "raft_index": None,
        "notes": [],
    }
    assert vault_in.run(*BACKUP, "--type", "policies").stdout.count("\n") == 1, "it has no Raft index to tell"
    listed = vault_in.json("list", "app038")["vault"]["app038"]
    assert [backup["id"] for backup in listed["backups"]][:2] == [identifier, made["id"]]
    assert (listed["backups"][1], listed["problems"]) == (made | {"hold": None}, [])
    lines = vault_in.run("list").stdout.splitlines()
    (line,) = [line for line in lines if identifier in line]
    assert f"openbao {found['server']['version']}" in line and line.rstrip().endswith(str(found["snapshot"]["index"]))


def test_the_product_is_what_the_configuration_says(vault_in: Site) -> None:
    vault_in.document["vault"]["app038"]["product"] = "vault"
    made = vault_in.json(*BACKUP, "--type", "snapshot")
    assert (made["product"], manifest_of(vault_in, made["id"])["product"]) == ("vault", "vault")


def test_versions_of_a_key_are_those_that_the_snapshot_is_sure_to_have(
    vault_in: Site, vault: OpenBao, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotated while the backup runs: the manifest promises no more than was there before."""
    vault.request("POST", "transit/keys/moving", body={"type": "aes256-gcm96"})
    describe = inspect.describe

    def then_it_rotates(client: Any) -> Any:
        found = describe(client)
        vault.request("POST", "transit/keys/moving/rotate")
        return found

    monkeypatch.setattr(inspect, "describe", then_it_rotates)
    made = vault_in.json(*BACKUP, "--type", "snapshot")
    assert manifest_of(vault_in, made["id"])["server"]["transit"]["transit/moving"]["latest_version"] == 1


def test_two_backups_within_a_second_have_ids_of_their_own(vault_in: Site) -> None:
    made = [vault_in.json(*BACKUP, "--type", kind)["id"] for kind in ("policies", "snapshot", "policies")]
    assert len({identifier.partition("-")[0] for identifier in made}) == 3 and made == sorted(made)


def test_a_backup_goes_into_s3_under_object_lock(folder: Path, vault: OpenBao, objects: SeaweedFS) -> None:
    site = vault_site(folder, vault, repository=s3_repository())
    site.add(s3_connection(objects))
    made = site.json(*BACKUP)
    site.run("verify", made["id"], "--level", "opens")
    settings = site.document["repositories"]["main"]["s3"]
    client = objects.client()
    locked = [
        client.get_object_retention(Bucket=settings["bucket"], Key=f"{settings['prefix']}/{key}")["Retention"]["Mode"]
        for key in keys(site)
    ]
    client.close()
    assert locked == ["COMPLIANCE"] * 3


def test_a_backup_is_opened_by_hand_with_age_zstd_and_tar(vault_in: Site) -> None:
    made = vault_in.json(*BACKUP)
    (path,) = (vault_in.folder / "repository").glob("vault/app038/snapshots/*/manifest.json")
    folder, found = path.parent, json.loads(path.read_text())
    check_sums(folder, found)
    opened = f"age --decrypt --identity {vault_in.key_file}"
    by_hand = vault_in.folder / "by-hand"
    by_hand.mkdir()
    run(f"{opened} snapshot.snap.zst.age | zstd --decompress --stdout > {by_hand}/app038.snap", cwd=folder)
    data = (by_hand / "app038.snap").read_bytes()
    facts = verify(data)
    assert (facts.index, facts.keys) == (found["snapshot"]["index"], found["snapshot"]["key_counts"])
    assert facts.mount_keys == found["snapshot"]["mount_key_counts"]
    (item,) = [item for item in found["objects"] if item["role"] == "snapshot"]
    assert len(data) == item["sealed_bytes"]
    installation = vault_in.installation()
    store = installation.store("main")
    backup = catalog.read(store, "app038").find(made["id"])
    assert b"".join(content.stream(store, backup, [vault_in.identity])) == data
    run(
        "mkdir snap; tar --extract --gzip --file app038.snap --directory snap; cd snap; sha256sum --check SHA256SUMS",
        cwd=by_hand,
    )
    run(
        f"mkdir {by_hand}/export; {opened} policies/export.tar.zst.age | zstd --decompress --stdout"
        f" | tar --extract --directory {by_hand}/export",
        cwd=folder,
    )
    vault_in.run("vault", "export", "app038", "--output", by_hand / "command")
    run("diff --recursive export command", cwd=by_hand)
    assert (by_hand / "export" / "policies" / "recovery-backup.hcl").read_text() == POLICY


# Is it still what was written?


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["exists", "checksum", "opens"])
def test_a_good_backup_is_verified_by_its_id(vault_in: Site, kind: str, level: str) -> None:
    made = vault_in.json(*BACKUP, "--type", kind)
    (report,) = vault_in.json("verify", made["id"], "--level", level)
    assert (report["backup"], report["verdict"], report["findings"]) == (made["id"], "ok", [])
    assert report["objects"] == made["objects"]
    assert report["bytes_read"] == (0 if level == "exists" else made["stored_bytes"])


def test_verifying_a_vault_by_its_name_takes_the_newest_of_each_kind(vault_in: Site) -> None:
    assert vault_in.error("verify", "app038", expect=2) == (
        "error: app038: there is no backup to verify -> take one: recovery backup postgres NAME --type full"
    )
    made = {kind: [vault_in.json(*BACKUP, "--type", kind)["id"] for _ in range(2)][1] for kind in KINDS}
    reports = vault_in.json("verify", "app038")
    assert [report["backup"] for report in reports] == [made[kind] for kind in KINDS]
    told = vault_in.run("verify").stdout
    assert all(f"{identifier}: ok (checksum, " in told for identifier in made.values())


def damage(site: Site, name: str, change: Callable[[bytes], bytes | None]) -> None:
    (path,) = (site.folder / "repository").glob(f"vault/app038/snapshots/*/{name}")
    path.chmod(0o644)
    changed = change(path.read_bytes())
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("name", ["snapshot.snap.zst.age", "policies/export.tar.zst.age"])
@pytest.mark.parametrize(
    ("change", "levels"),
    [
        (flip, {"exists": "ok", "checksum": "failed", "opens": "failed"}),
        (lambda data: data[:-1], {"exists": "failed", "checksum": "failed", "opens": "failed"}),
        (lambda data: None, {"exists": "failed", "checksum": "failed", "opens": "failed"}),
    ],
    ids=["flipped", "cut", "gone"],
)
def test_damage_is_found_and_named(
    vault_in: Site, name: str, change: Callable[[bytes], bytes | None], levels: dict[str, str]
) -> None:
    made = vault_in.json(*BACKUP)
    damage(vault_in, name, change)
    for level, verdict in levels.items():
        (report,) = vault_in.json("verify", made["id"], "--level", level, expect=int(verdict != "ok"))
        assert report["verdict"] == verdict, (level, report)
        assert [finding["key"] for finding in report["findings"]] == ([name] if verdict != "ok" else [])


def test_a_snapshot_that_was_sealed_right_and_is_none_fails_to_open(vault_in: Site) -> None:
    """As somebody with the public key could store it: only `opens` tells."""
    made = vault_in.json(*BACKUP, "--type", "snapshot")
    store = vault_in.installation().store("main")
    folder = f"vault/app038/snapshots/{made['id']}/"
    damage(vault_in, "snapshot.snap.zst.age", lambda data: None)
    recipients = [parse_recipient(str(vault_in.identity.to_public()))]
    sealed = seal_bytes(store, folder + "snapshot.snap.zst.age", b"no snapshot" * 9, recipients=recipients)
    found = manifest_of(vault_in, made["id"])
    fields = ("stored_bytes", "stored_sha256", "sealed_bytes", "sealed_hash")
    found["objects"][0] |= {field: getattr(sealed, field) for field in fields}
    damage(vault_in, "manifest.json", lambda data: json.dumps(found).encode())
    vault_in.run("verify", made["id"], "--level", "checksum")
    (report,) = vault_in.json("verify", made["id"], "--level", "opens", expect=1)
    assert "Raft snapshot: this is no snapshot but text" in report["findings"][0]["problem"]


def test_a_backup_of_another_recipient_is_unknown_and_not_failed(vault_in: Site) -> None:
    made = vault_in.json(*BACKUP)
    stranger = vault_in.folder / "stranger.txt"
    stranger.write_text(str(pyrage.x25519.Identity.generate()))
    (report,) = vault_in.json("verify", made["id"], "--level", "opens", "--identity", stranger, expect=1)
    assert report["verdict"] == "unknown" and len(report["findings"]) == 2


@pytest.mark.parametrize(
    ("content_of", "told"),
    [
        (lambda data: b"{}", "this is not a manifest"),
        (lambda data: data[:50], "this is not a manifest"),
        (lambda data: data.replace(b'"seal":', b'"sale":'), "the manifest is not valid at server.seal: Field required"),
        (
            lambda data: data.replace(b'"format_version":1', b'"format_version":2'),
            "the manifest has format version 2, and this program reads up to 1",
        ),
        (lambda data: data.replace(b'"key":"', b'"key":"../'), "an object's key must stay below the backup's folder"),
    ],
    ids=["empty", "cut", "field", "newer", "escape"],
)
def test_a_damaged_manifest_is_a_problem_everywhere(
    vault_in: Site, content_of: Callable[[bytes], bytes], told: str
) -> None:
    good, bad = (vault_in.json(*BACKUP)["id"] for _ in range(2))
    path = vault_in.folder / "repository" / "vault" / "app038" / "snapshots" / bad / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(content_of(path.read_bytes()))
    listed = vault_in.json("list", expect=1)["vault"]["app038"]
    assert [backup["id"] for backup in listed["backups"]] == [good]
    (problem,) = listed["problems"]
    assert told in problem and bad in problem
    assert f"damaged: {problem}" in vault_in.run("list", expect=1).stdout
    for call in (("verify", bad), ("verify", "app038"), ("vault", "diff", "app038", bad)):
        assert told in vault_in.error(*call), call


# What keeps one from being made.


def test_a_name_that_is_not_configured_is_refused_with_those_that_are(vault_in: Site) -> None:
    for call in (
        ("backup", "vault", "app83"),
        ("vault", "diff", "app83"),
        ("vault", "export", "app83", "--output", "x"),
    ):
        assert "app83" in (message := vault_in.error(*call, expect=2)) and "app038" in message, call
    for call in (("list", "app83"), ("verify", "app83")):
        assert vault_in.error(*call, expect=2) == "error: no system is named 'app83' -> use one of: app038"
    assert vault_in.error("verify", "20200101T000000Z-snapshot", expect=2) == (
        "error: 20200101T000000Z-snapshot: no backup has this id -> choose one of `recovery list`"
    )


def test_a_second_writer_is_told_who_is_at_work(vault_in: Site) -> None:
    with Lease(vault_in.installation().store("main"), kind="vault", name="app038", job="snapshot"):
        message = vault_in.error(*BACKUP)
    assert "vault app038, snapshot is being written by " in message and "-> wait for it" in message
    nothing_is_there(vault_in)
    vault_in.run(*BACKUP)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("sys/storage/raft/snapshot", "snapshot"),
        ("sys/policies/acl", "policies"),
        ("sys/mounts", "snapshot"),
        ("transit/keys/+", "snapshot"),
        ("sys/audit", "policies"),
    ],
)
def test_a_right_that_is_missing_is_named(vault_in: Site, vault: OpenBao, path: str, kind: str) -> None:
    vault.write_policy("lacking", POLICY.replace(f'path "{path}" {{', 'path "nothing" {'))
    vault_in.add(replace(vault_in.connections["app038_vault"], **with_token(vault, vault.create_token(["lacking"]))))
    message = vault_in.error(*BACKUP, "--type", kind)
    assert path.removesuffix("/+") in message, message
    assert "include/config/vault/backup.hcl" in message
    nothing_is_there(vault_in)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"password": "wrong-secret-id"}, "invalid role or secret ID"),
        ({"login": "nobody"}, "invalid role or secret ID"),
        ({"extra": {"auth_type": "token"}, "password": "s.no-token"}, "Vault refuses: "),
        ({"port": 1}, "no answer ("),
    ],
)
def test_a_login_that_fails_is_one_line(vault_in: Site, vault: OpenBao, changes: dict[str, Any], told: str) -> None:
    vault_in.add(replace(vault_in.connections["app038_vault"], **changes))
    message = vault_in.error(*BACKUP)
    assert told in message and "wrong-secret-id" not in message and "s.no-token" not in message
    nothing_is_there(vault_in)


class _OtherStorage(OpenBao):
    """OpenBao on storage that knows no snapshots."""

    def _config(self) -> dict[str, object]:
        return super()._config() | {"storage": {"inmem": {}}}


def test_storage_without_snapshots_is_said_and_policies_are_exported_all_the_same(folder: Path) -> None:
    with _OtherStorage(folder / "vault") as vault:
        site = vault_site(folder, vault, **with_token(vault, vault.root_token))
        for kind in ("full", "snapshot"):
            assert site.error(*BACKUP, "--type", kind) == (
                f"error: {vault.address}: its storage is inmem, and snapshots exist for Raft storage (Integrated Storage)"
                " only -> migrate it with `operator migrate`, or back up that storage itself"
            )
        nothing_is_there(site)
        made = site.json(*BACKUP, "--type", "policies")
        site.run("verify", made["id"], "--level", "opens")


def test_a_sealed_vault_is_one_line(folder: Path) -> None:
    with OpenBao(folder / "vault") as vault:
        site = vault_site(folder, vault, **with_token(vault, vault.root_token))
        vault.request("PUT", "sys/seal")
        message = site.error(*BACKUP)
        assert "-> unseal it" in message and message.count("\n") == 0
        nothing_is_there(site)


# Exports by the command.


def test_changes_between_exports_and_the_live_server_are_shown(vault_in: Site, vault: OpenBao) -> None:
    assert "there is no export of this Vault yet" in vault_in.error("vault", "diff", "app038", expect=2)
    vault.write_policy("drifting", "# one\n")
    first = vault_in.json(*BACKUP, "--type", "policies")["id"]
    assert vault_in.json("vault", "diff", "app038") == {"before": first, "after": "live", "changes": []}
    vault.write_policy("drifting", "# two\n")
    second = vault_in.json(*BACKUP)["id"]
    snapshot = vault_in.json(*BACKUP, "--type", "snapshot")["id"]
    change = {"path": "policies/drifting.hcl", "kind": "changed", "lines": ["@@ -1 +1 @@", "-# one", "+# two"]}
    found = vault_in.json("vault", "diff", "app038", first, second)
    assert found == {"before": first, "after": second, "changes": [change]}
    assert vault_in.json("vault", "diff", "app038", first)["changes"] == [change]
    vault.request("DELETE", "sys/policies/acl/drifting")
    told = vault_in.run("vault", "diff", "app038").stdout.splitlines()
    assert told == [
        "removed: policies/drifting.hcl",
        "  @@ -1 +0,0 @@",
        "  -# two",
        f"{second} to live: 1 files differ",
    ]
    assert "it holds no export" in vault_in.error("vault", "diff", "app038", snapshot, expect=2)
    unknown = vault_in.error("vault", "diff", "app038", "20200101T000000Z-full", expect=2)
    assert "no backup of this Vault has this id" in unknown and snapshot in unknown


def test_an_export_is_written_as_files(vault_in: Site, vault: OpenBao) -> None:
    made = vault_in.json(*BACKUP)["id"]
    output = vault_in.folder / "tree"
    found = vault_in.json("vault", "export", "app038", "--output", output)
    assert (found["export"], found["directory"]) == (made, str(output))
    assert sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()) == found["files"]
    vault.write_policy("written-later", "# later\n")
    told = vault_in.run("vault", "export", "app038", "--output", output, "--id", "live").stdout
    assert told == f"live: {len(found['files']) + 1} files in {output}\n"
    assert (output / "policies" / "written-later.hcl").read_text() == "# later\n"
    vault_in.run("vault", "export", "app038", "--output", output, "--id", made)
    assert not (output / "policies" / "written-later.hcl").exists()
    vault.request("DELETE", "sys/policies/acl/written-later")
    (vault_in.folder / "theirs").mkdir()
    (vault_in.folder / "theirs" / "letter.txt").write_text("kept")
    assert "(letter.txt)" in vault_in.error(
        "vault", "export", "app038", "--output", vault_in.folder / "theirs", expect=2
    )
    assert (vault_in.folder / "theirs" / "letter.txt").read_text() == "kept"


def test_policies_go_back_into_the_server_by_the_command(vault_in: Site, vault: OpenBao) -> None:
    restore = ("restore", "vault-policies", "app038")
    vault.write_policy("changing", "# good\n")
    made = vault_in.json(*BACKUP)["id"]
    snapshot = vault_in.json(*BACKUP, "--type", "snapshot")["id"]
    vault.write_policy("changing", "# bad\n")
    vault_in.add(replace(vault_in.connections["app038_vault"], id="root", **with_token(vault, vault.root_token)))
    plan = vault_in.json(*restore, "--into", "root", "--policy", "changing")
    change = {"name": "changing", "action": "replace", "diff": ["@@ -1 +1 @@", "-# bad", "+# good"]}
    assert plan == {"backup": made, "changes": [change], "written": None}
    assert vault_in.run(*restore, "--into", "root", "--policy", "changing").stdout.endswith("--apply writes them\n")
    assert vault.request("GET", "sys/policies/acl/changing")["data"]["policy"] == "# bad\n"
    refused = vault_in.error(*restore, "--policy", "changing", "--apply")
    assert "sys/policies/acl/changing" in refused and "restore-policies.hcl" in refused
    written = vault_in.json(*restore, "--into", "root", "--apply", "--id", made)["written"]
    assert written == ["changing"]
    assert vault.request("GET", "sys/policies/acl/changing")["data"]["policy"] == "# good\n"
    assert "the export holds no policy 'absent'" in vault_in.error(*restore, "--policy", "absent", expect=2)
    assert "it holds no export" in vault_in.error(*restore, "--id", snapshot, expect=2)
    assert "connection nowhere" in vault_in.error(*restore, "--into", "nowhere", expect=2)
    vault.request("DELETE", "sys/policies/acl/changing")
