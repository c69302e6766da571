"""The export of a real server's policies and configuration, made with the shipped policy: complete, stable, no secret."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hvac
import hvac.adapters
import hvac.exceptions
import pytest

from lab.bao import OpenBao
from lab.ports import free_port
from recovery.errors import PreconditionError, VaultUnreachable
from recovery.manifest import TransitKey
from recovery.vault import export
from recovery.vault.diff import compare
from recovery.vault.tree import pack, unpack
from tests.support import REPOSITORY, new_folder

MARK = "MARKED-SECRET"
SHIPPED = REPOSITORY / "include" / "config" / "vault"
BACKUP = (SHIPPED / "backup.hcl").read_text()
TEXT = 'path "secret/data/app038/*" {\n  capabilities = ["read"]\n}\n'
ODD_NAMES = {
    "a b": "a%20b",
    "team/deploy": "team%2Fdeploy",
    "x%y": "x%25y",
    "ünï": "%C3%BCn%C3%AF",
    "q?x#y": "q%3Fx%23y",
    "a:b*+": "a%3Ab%2A%2B",
}
# What an export does not touch: the rest of the identity's work.
NOT_FOR_THE_EXPORT = {"sys/storage/raft/snapshot", "sys/storage/raft/configuration"} | {
    f"auth/token/{own}-self" for own in ("lookup", "renew", "revoke")
}
RULES = re.findall(r'^path "([^"]+)" \{', BACKUP, re.MULTILINE)


class AuditedBao(OpenBao):
    """A node whose audit devices can be made through the API."""

    def _config(self) -> dict[str, object]:
        return super()._config() | {"unsafe_allow_api_audit_creation": True, "allow_audit_log_prefixing": True}


@pytest.fixture(scope="module")
def node() -> Iterator[AuditedBao]:
    with new_folder() as folder, AuditedBao(folder / "vault") as started:
        fill(started, folder)
        yield started


def fill(node: OpenBao, folder: Path) -> None:
    """An installation of every kind, with a mark in each of its secrets."""
    write = node.request
    for mount, kind in {
        "secret": "kv",
        "flat": "kv",
        "transit": "transit",
        "database": "database",
        "pki": "pki",
        "rabbitmq": "rabbitmq",
    }.items():
        options = {"version": "2"} if mount == "secret" else {}
        write("POST", f"sys/mounts/{mount}", body={"type": kind, "options": options, "description": f"for {mount}"})
    for method in ("approle", "userpass", "cert", "kubernetes"):
        write("POST", f"sys/auth/{method}", body={"type": method})
    write(
        "PUT",
        "sys/audit/file",
        body={"type": "file", "options": {"file_path": str(folder / "audit.log"), "prefix": f"{MARK}-prefix"}},
    )
    write("POST", "secret/data/app038/mail", body={"data": {"password": f"{MARK}-kv2"}})
    write("PUT", f"flat/{MARK}-name", body={"password": f"{MARK}-kv1"})
    write("PUT", "flat/keys/mail", body={"password": f"{MARK}-kv1-keys"})
    write("POST", "transit/keys/app038", body={"exportable": True})
    write("POST", "transit/keys/app038/rotate")
    write("POST", "transit/keys/Odd_Key-1.x")
    write("POST", "transit/keys/app038/config", body={"min_decryption_version": 2})
    write(
        "POST",
        "database/config/app038",
        body={
            "plugin_name": "postgresql-database-plugin",
            "verify_connection": False,
            "allowed_roles": "*",
            "connection_url": "postgresql://{{username}}:{{password}}@127.0.0.1:1/app038",
            "username": f"{MARK}-user",
            "password": f"{MARK}-database",
        },
    )
    write(
        "POST",
        "database/roles/app038",
        body={"db_name": "app038", "creation_statements": f"CREATE ROLE x -- {MARK}-statement"},
    )
    write(
        "POST",
        "rabbitmq/config/connection",
        body={
            "connection_uri": "http://127.0.0.1:1",
            "username": "vault",
            "password": f"{MARK}-rabbitmq",
            "verify_connection": False,
        },
    )
    authority = write("POST", "pki/root/generate/internal", body={"common_name": "App038"})["data"]["certificate"]
    write("POST", "pki/roles/web", body={"allow_any_name": True})
    write("POST", "auth/approle/role/app038", body={"token_policies": "app038"})
    write("POST", "auth/approle/role/app038/custom-secret-id", body={"secret_id": f"{MARK}-secret-id"})
    write("POST", "auth/userpass/users/ops", body={"password": f"{MARK}-userpass"})
    write(
        "POST",
        "auth/kubernetes/config",
        body={
            "kubernetes_host": "https://127.0.0.1:1",
            "token_reviewer_jwt": f"{MARK}-jwt",
            "kubernetes_ca_cert": authority,
        },
    )
    write("POST", "auth/token/roles/batch", body={"orphan": True})
    for name in ODD_NAMES:
        policy(node, name, TEXT)
    policy(node, "App038", TEXT + "\n# no newline at its end: \t\r ü")
    write("PUT", "sys/policies/acl/recovery-backup", body={"policy": BACKUP})


@pytest.fixture(scope="module")
def backup(node: OpenBao) -> hvac.Client:
    """The backup identity: the shipped policy, and nothing else."""
    return client_of(node, token_of(node, "recovery-backup"))


@pytest.fixture
def team(node: OpenBao) -> Iterator[str]:
    """A child namespace with a policy and a transit key; and one in it."""
    name = "team"
    node.request("POST", f"sys/namespaces/{name}")
    node.request("POST", f"{name}/sys/mounts/transit", body={"type": "transit"})
    node.request("POST", f"{name}/transit/keys/orders")
    node.request("POST", f"{name}/sys/auth/approle", body={"type": "approle"})
    node.request("POST", f"{name}/auth/approle/role/worker", body={"token_policies": "deploy"})
    node.request("PUT", f"{name}/sys/policies/acl/deploy", body={"policy": TEXT})
    node.request("POST", f"{name}/sys/namespaces/inner")
    node.request("PUT", f"{name}/inner/sys/policies/acl/inner", body={"policy": TEXT})
    yield name
    remove_namespace(node, f"{name}/", "inner")
    remove_namespace(node, "", name)


def remove_namespace(node: OpenBao, parent: str, name: str) -> None:
    root = client_of(node, node.root_token)
    node.request("DELETE", f"{parent}sys/namespaces/{name}")
    deadline = time.monotonic() + 30
    while (root.list(f"{parent}sys/namespaces") or {"data": {"keys": []}})["data"]["keys"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def client_of(node: OpenBao, token: str) -> hvac.Client:
    return hvac.Client(url=node.address, token=token)


def policy(node: OpenBao, name: str, text: str) -> None:
    node.request("PUT", f"sys/policies/acl/{quote(name)}", body={"policy": text})


def token_of(node: OpenBao, *policies: str) -> str:
    body = {"policies": list(policies), "no_default_policy": True, "no_parent": True}
    return str(node.request("POST", "auth/token/create", body=body)["auth"]["client_token"])


def without(rule: str) -> str:
    """The shipped policy less one of its rules."""
    stanza = re.compile(rf'^path "{re.escape(rule)}" \{{\n.*?^\}}\n', re.MULTILINE | re.DOTALL)
    text, count = stanza.subn("", BACKUP)
    assert count == 1
    return text


def for_namespace(text: str, name: str) -> str:
    """What a shipped policy's comments say to add for a namespace, with its transit engine."""
    block = "".join(
        line[2:] + "\n"
        for line in text.splitlines()
        if re.match(r'# (path "team/[^"]*" \{|  capabilities = .*|\})$', line)
    )
    transit = 'path "team/transit/keys" {\n capabilities = ["list"]\n}\npath "team/transit/keys/+" {\n capabilities = ["read"]\n}\n'
    return (block + transit).replace('"team/', f'"{name}/')


def limited(node: OpenBao, text: str) -> hvac.Client:
    policy(node, "limited", text)
    return client_of(node, token_of(node, "limited"))


def collect(client: hvac.Client) -> export.Tree:
    return export.collect(client, product="openbao")


def document(tree: export.Tree, path: str) -> Any:
    return json.loads(tree[path])


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_the_shipped_policy_is_enough_for_the_whole_export(backup: hvac.Client) -> None:
    tree = collect(backup)
    assert list(tree) == sorted(tree)
    policies = {"default", "app038", "recovery-backup", *ODD_NAMES.values()}
    assert {path for path in tree if path.startswith("policies/")} - {"policies/limited.hcl"} == {
        f"policies/{name}.hcl" for name in policies
    }
    assert {path for path in tree if not path.startswith("policies/")} == {
        "audit.json",
        "auth.json",
        "mounts.json",
        "roles/auth/approle/names.json",
        "roles/auth/cert/names.json",
        "roles/auth/kubernetes/names.json",
        "roles/auth/token/names.json",
        "roles/auth/userpass/names.json",
        "roles/database/names.json",
        "roles/pki/names.json",
        "roles/rabbitmq/names.json",
        "roles/transit/names.json",
    }


def test_policies_are_exactly_as_they_are_stored(backup: hvac.Client) -> None:
    tree = collect(backup)
    assert tree["policies/app038.hcl"].decode() == TEXT + "\n# no newline at its end: \t\r ü"
    assert tree["policies/recovery-backup.hcl"].decode() == BACKUP
    for name in ODD_NAMES.values():
        assert tree[f"policies/{name}.hcl"].decode() == TEXT


def test_mounts_methods_and_audit_devices_have_their_stable_fields(node: OpenBao, backup: hvac.Client) -> None:
    node.request("POST", "sys/auth/approle/tune", body={"max_lease_ttl": "4h", "listing_visibility": "hidden"})
    tree = collect(backup)
    mounts = document(tree, "mounts.json")
    assert {"cubbyhole/", "database/", "flat/", "identity/", "pki/", "rabbitmq/", "secret/", "sys/", "transit/"} == set(
        mounts
    )
    live = node.request("GET", "sys/mounts")["data"]["secret/"]
    assert mounts["secret/"] == {
        "type": "kv",
        "description": "for secret",
        "uuid": live["uuid"],
        "accessor": live["accessor"],
        "local": False,
        "seal_wrap": False,
        "external_entropy_access": False,
        "plugin_version": "",
        "options": {"version": "2"},
        "config": {"default_lease_ttl": 0, "force_no_cache": False, "max_lease_ttl": 0},
    }
    assert document(tree, "auth.json")["approle/"]["config"] == {
        "default_lease_ttl": 0,
        "force_no_cache": False,
        "listing_visibility": "hidden",
        "max_lease_ttl": 4 * 3600,
        "token_type": "default-service",
    }
    options = document(tree, "audit.json")["file/"]["options"]
    assert options == {"file_path": options["file_path"], "prefix": "(left out)"}


def test_roles_are_there_by_name_and_transit_keys_with_their_versions(backup: hvac.Client) -> None:
    tree = collect(backup)
    assert {path: document(tree, path) for path in tree if re.match("roles/(auth|database|pki)", path)} == {
        "roles/auth/approle/names.json": {"role": ["app038"]},
        "roles/auth/cert/names.json": {"certs": []},
        "roles/auth/kubernetes/names.json": {"role": []},
        "roles/auth/token/names.json": {"roles": ["batch"]},
        "roles/auth/userpass/names.json": {"users": ["ops"]},
        "roles/database/names.json": {"roles": ["app038"], "static-roles": []},
        "roles/pki/names.json": {"roles": ["web"]},
    }
    keys = document(tree, "roles/transit/names.json")["keys"]
    assert set(keys) == {"app038", "Odd_Key-1.x"}
    assert keys["app038"]["latest_version"] == keys["app038"]["min_decryption_version"] == 2
    assert (keys["app038"]["type"], keys["app038"]["exportable"], keys["app038"]["deletion_allowed"]) == (
        "aes256-gcm96",
        True,
        False,
    )
    assert keys["Odd_Key-1.x"]["exportable"] is False


def test_transit_keys_are_named_with_their_mount(backup: hvac.Client) -> None:
    assert export.transit_keys(backup) == {
        "transit/Odd_Key-1.x": TransitKey(latest_version=1, min_decryption_version=1),
        "transit/app038": TransitKey(latest_version=2, min_decryption_version=2),
    }


def test_json_is_written_for_people_and_for_diff(backup: hvac.Client) -> None:
    for path, content in collect(backup).items():
        if path.endswith(".json"):
            found = json.loads(content)
            assert content.decode() == json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_an_unchanged_server_gives_the_same_bytes_again(node: OpenBao, backup: hvac.Client) -> None:
    first = collect(backup)
    node.request("POST", "auth/userpass/login/ops", token="", body={"password": f"{MARK}-userpass"})
    node.request("POST", "auth/approle/role/app038/secret-id")
    node.request("POST", "secret/data/app038/other", body={"data": {"a": "b"}})
    node.request("POST", "transit/encrypt/app038", body={"plaintext": "eA=="})
    token_of(node, "default")
    assert pack(collect(backup)) == pack(first)
    assert unpack(pack(first)) == first


# --- no secrets -------------------------------------------------------------------------------------------------------


def test_no_secret_of_the_server_is_in_it(node: OpenBao, backup: hvac.Client) -> None:
    private = node.request("POST", "pki/root/generate/exported", body={"common_name": "App038"})["data"]["private_key"]
    exported = node.request("GET", "transit/export/encryption-key/app038")["data"]["keys"]["2"]
    wrapped = node.request("POST", "auth/approle/role/app038/secret-id")["data"]["secret_id"]
    secrets = [MARK, node.root_token, *node.shares, str(backup.token), exported, wrapped, *private.splitlines()[1:-1]]
    for path, content in collect(backup).items():
        for secret in secrets:
            assert secret not in content.decode(), path
            assert secret not in path


class Forging(hvac.adapters.JSONAdapter):
    """A server of a later version: each object of its answers has a secret field more, some known ones hold objects."""

    forged = 0

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        answer = super().request(method, url, *args, **kwargs)
        if isinstance(answer, dict):
            self._forge(answer["data"])
        return answer

    def _forge(self, values: dict[str, Any]) -> None:
        inner = [value for value in values.values() if isinstance(value, dict)]
        for value in inner:
            self._forge(value)
        if not values or len(inner) < len(values):
            Forging.forged += 1
            values["client_secret"] = values["address"] = f"{MARK}-forged"
            values["user_lockout_config"] = {"lockout_threshold": 5, "password": f"{MARK}-nested"}
            if "description" in values:
                values["description"] = {"text": f"{MARK}-object"}
            if "passthrough_request_headers" in values:
                values["passthrough_request_headers"] = [{"Authorization": f"{MARK}-in-a-list"}]


def test_a_field_that_a_later_server_adds_is_not_taken(node: OpenBao, backup: hvac.Client) -> None:
    Forging.forged = 0
    tree = collect(hvac.Client(url=node.address, token=backup.token, adapter=Forging))
    assert Forging.forged > 50
    assert set(tree) == set(collect(backup))
    for path, content in tree.items():
        assert MARK not in content.decode(), path
    assert document(tree, "audit.json")["file/"]["options"]["address"] == "(left out)"
    assert document(tree, "mounts.json")["secret/"]["config"]["user_lockout_config"] == {"lockout_threshold": 5}


# --- its diff ---------------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[tuple[str, str, dict[str, Any]], dict[str, str]]] = {
    "a policy is made": (("PUT", "sys/policies/acl/new", {"policy": TEXT}), {"policies/new.hcl": "added"}),
    "a policy is changed": (("PUT", "sys/policies/acl/new", {"policy": TEXT + TEXT}), {"policies/new.hcl": "changed"}),
    "a policy is deleted": (("DELETE", "sys/policies/acl/new", {}), {"policies/new.hcl": "removed"}),
    "a mount is tuned": (("POST", "sys/mounts/pki/tune", {"max_lease_ttl": "87600h"}), {"mounts.json": "changed"}),
    "a KV engine is mounted": (("POST", "sys/mounts/more", {"type": "kv"}), {"mounts.json": "changed"}),
    "an engine with roles is mounted": (
        ("POST", "sys/mounts/ssh", {"type": "ssh"}),
        {"mounts.json": "changed", "roles/ssh/names.json": "added"},
    ),
    "an engine is unmounted": (
        ("DELETE", "sys/mounts/ssh", {}),
        {"mounts.json": "changed", "roles/ssh/names.json": "removed"},
    ),
    "a method is tuned": (("POST", "sys/auth/userpass/tune", {"description": "people"}), {"auth.json": "changed"}),
    "a role is made": (
        ("POST", "auth/approle/role/second", {"token_ttl": "1h"}),
        {"roles/auth/approle/names.json": "changed"},
    ),
    "a database role is made": (
        ("POST", "database/roles/reports", {"db_name": "app038", "creation_statements": "x"}),
        {"roles/database/names.json": "changed"},
    ),
    "a transit key is rotated": (
        ("POST", "transit/keys/Odd_Key-1.x/rotate", {}),
        {"roles/transit/names.json": "changed"},
    ),
    "an audit device is made": (
        ("PUT", "sys/audit/second", {"type": "file", "options": {"file_path": "discard"}}),
        {"audit.json": "changed"},
    ),
    "an audit device is gone": (("DELETE", "sys/audit/second", {}), {"audit.json": "changed"}),
}


def test_each_change_of_the_server_is_in_the_diff_and_nothing_else(node: OpenBao, backup: hvac.Client) -> None:
    before = collect(backup)
    for what, ((method, path, body), expected) in CHANGES.items():
        node.request(method, path, body=body or None)
        after = collect(backup)
        assert {change.path: change.kind for change in compare(before, after)} == expected, what
        before = after


def test_the_diff_of_a_rotation_shows_the_version(node: OpenBao, backup: hvac.Client) -> None:
    node.request("POST", "transit/keys/diffed")
    before = collect(backup)
    node.request("POST", "transit/keys/diffed/rotate")
    (change,) = compare(before, collect(backup))
    assert [line for line in change.lines if line[0] in "+-"] == [
        '-      "latest_version": 1,',
        '+      "latest_version": 2,',
    ]
    client_of(node, node.root_token).secrets.transit.update_key_configuration("diffed", deletion_allowed=True)
    node.request("DELETE", "transit/keys/diffed")


# --- what the shipped policies allow ----------------------------------------------------------------------------------


def test_the_shipped_policy_takes_a_snapshot_and_looks_after_its_own_token(node: OpenBao) -> None:
    client = client_of(node, token_of(node, "recovery-backup"))
    assert client.sys.take_raft_snapshot().content[:2] == b"\x1f\x8b"
    assert client.sys.read_raft_config()["data"]["config"]["servers"]
    assert client.auth.token.lookup_self()["data"]["policies"] == ["recovery-backup"]
    client.auth.token.renew_self()
    client.auth.token.revoke_self()
    with pytest.raises(hvac.exceptions.Forbidden):
        client.auth.token.lookup_self()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("put", "sys/policies/acl/app038", {"policy": TEXT}),
        ("put", "sys/policies/acl/recovery-backup", {"policy": 'path "*" { capabilities = ["read"] }'}),
        ("delete", "sys/policies/acl/app038", None),
        ("get", "secret/data/app038/mail", None),
        ("list", "secret/metadata", None),
        ("get", f"flat/{MARK}-name", None),
        ("get", "flat/keys/mail", None),
        ("list", "flat", None),
        ("post", "sys/storage/raft/snapshot", None),
        ("post", "sys/storage/raft/snapshot-force", None),
        ("post", "sys/mounts/more2", {"type": "kv"}),
        ("post", "sys/mounts/secret/tune", {"description": "x"}),
        ("delete", "sys/mounts/secret", None),
        ("delete", "sys/auth/approle", None),
        ("delete", "sys/audit/file", None),
        ("put", "sys/audit/more", {"type": "file", "options": {"file_path": "discard"}}),
        ("post", "sys/namespaces/more", None),
        ("get", "auth/approle/role/app038", None),
        ("get", "auth/approle/role/app038/role-id", None),
        ("post", "auth/approle/role/app038/secret-id", None),
        ("get", "auth/userpass/users/ops", None),
        ("get", "auth/kubernetes/config", None),
        ("get", "database/config/app038", None),
        ("get", "database/roles/app038", None),
        ("get", "database/creds/app038", None),
        ("get", "transit/export/encryption-key/app038", None),
        ("get", "transit/backup/app038", None),
        ("post", "transit/encrypt/app038", {"plaintext": "eA=="}),
        ("post", "transit/decrypt/app038", {"ciphertext": "vault:v2:eA=="}),
        ("post", "transit/keys/app038/rotate", None),
        ("post", "transit/keys/app038/config", {"deletion_allowed": True}),
        ("delete", "transit/keys/app038", None),
        ("post", "auth/token/create", {"policies": ["recovery-backup"]}),
        ("post", "sys/seal", None),
        ("put", "sys/rotate", None),
    ],
)
def test_the_shipped_policy_allows_nothing_else(backup: hvac.Client, method: str, path: str, body: Any) -> None:
    with pytest.raises(hvac.exceptions.Forbidden):
        backup.adapter.request(method, f"/v1/{path}", **({"json": body} if body else {}))


def test_the_canary_s_policy_encrypts_with_its_own_key_and_decrypts_with_none(node: OpenBao) -> None:
    node.request("POST", "transit/keys/recovery-canary")
    client = limited(node, (SHIPPED / "canary.hcl").read_text())
    text = client.secrets.transit.encrypt_data(name="recovery-canary", plaintext="eA==")["data"]["ciphertext"]
    assert client.secrets.transit.read_key(name="recovery-canary")["data"]["latest_version"] == 1
    for refused in (
        lambda: client.secrets.transit.decrypt_data(name="recovery-canary", ciphertext=text),
        lambda: client.secrets.transit.rotate_key(name="recovery-canary"),
        lambda: client.secrets.transit.encrypt_data(name="app038", plaintext="eA=="),
        lambda: client.secrets.transit.encrypt_data(name="another", plaintext="eA=="),
    ):
        with pytest.raises(hvac.exceptions.Forbidden):
            refused()


# --- rights that are missing ------------------------------------------------------------------------------------------

# OpenBao ships no method with groups: LDAP is a plugin of its own.
EXPORT_RULES = [rule for rule in RULES if rule not in NOT_FOR_THE_EXPORT and rule != "auth/+/groups"]


def test_every_rule_of_the_shipped_policy_is_known_here() -> None:
    assert len(EXPORT_RULES) == 14
    assert set(RULES) >= NOT_FOR_THE_EXPORT


@pytest.mark.parametrize("rule", EXPORT_RULES)
def test_a_right_that_is_missing_is_named_with_its_path(node: OpenBao, rule: str) -> None:
    client = limited(node, without(rule))
    with pytest.raises(PreconditionError) as caught:
        collect(client)
    what = re.fullmatch(r"the token may not (read and sudo|read|list) (\S.*)", caught.value.what)
    assert what is not None
    assert re.fullmatch(re.escape(rule).replace(r"\+", "[^/]+").replace(r"\*", ".+"), what[2])
    needs = ", ".join(f'"{name}"' for name in what[1].split(" and "))
    assert caught.value.where == node.address
    assert caught.value.remedy == (
        "`bao policy write` the policy include/config/vault/backup.hcl for its role;"
        f' it must hold: path "{rule}" {{ capabilities = [{needs}] }}'
    )
    assert caught.value.remedy.split("it must hold: ")[1] in " ".join(BACKUP.split())


def test_audit_devices_need_sudo_beside_read(node: OpenBao) -> None:
    client = limited(node, BACKUP.replace('["read", "sudo"]', '["read"]'))
    with pytest.raises(PreconditionError, match="the token may not read and sudo sys/audit -> "):
        collect(client)


def test_the_rule_that_an_error_gives_is_the_one_that_helps(node: OpenBao) -> None:
    """A mount of two segments, which the shipped policy does not reach."""
    node.request("POST", "sys/mounts/deep/ssh", body={"type": "ssh"})
    node.request("POST", "sys/auth/deep/approle", body={"type": "approle"})
    node.request("POST", "sys/mounts/deep/keys", body={"type": "transit"})
    node.request("POST", "deep/keys/keys/one")
    try:
        text, given = BACKUP, []
        while True:
            try:
                tree = collect(limited(node, text))
                break
            except PreconditionError as problem:
                given.append(problem.remedy.split("it must hold: ")[1])
                text += given[-1].replace("{ ", "{\n").replace(" }", "\n}") + "\n"
                assert len(given) < 8
        assert sorted(given) == [
            'path "+/+/roles" { capabilities = ["list"] }',
            'path "auth/+/+/role" { capabilities = ["list"] }',
            'path "deep/keys/keys" { capabilities = ["list"] }',
            'path "deep/keys/keys/+" { capabilities = ["read"] }',
        ]
        assert document(tree, "roles/deep/keys/names.json")["keys"]["one"]["latest_version"] == 1
        assert document(tree, "roles/auth/deep/approle/names.json") == {"role": []}
        assert set(export.transit_keys(limited(node, text))) >= {"deep/keys/one", "transit/app038"}
    finally:
        for path in ("sys/mounts/deep/ssh", "sys/auth/deep/approle", "sys/mounts/deep/keys"):
            node.request("DELETE", path)


@pytest.mark.parametrize("rule", ["transit/keys", "transit/keys/+", "sys/mounts", "sys/namespaces"])
def test_transit_keys_that_may_not_be_seen_are_an_error(node: OpenBao, rule: str) -> None:
    client = limited(node, without(rule))
    with pytest.raises(PreconditionError, match=r"the token may not (list|read) .* -> give its role the policy"):
        export.transit_keys(client)


@pytest.mark.parametrize("token", ["s.made-up", ""])
def test_a_token_that_is_not_valid_is_not_taken_for_a_missing_right(node: OpenBao, token: str) -> None:
    with pytest.raises(PreconditionError) as caught:
        collect(client_of(node, token))
    assert str(caught.value) == (
        f"{node.address}: the token is not valid, or may not even look itself up"
        " -> correct the connection's secret; a valid token needs read on auth/token/lookup-self"
    )


def test_a_server_that_does_not_answer_is_unreachable() -> None:
    with pytest.raises(VaultUnreachable, match="no answer"):
        collect(hvac.Client(url=f"http://127.0.0.1:{free_port()}", token="x"))


# --- namespaces -------------------------------------------------------------------------------------------------------


def test_a_namespace_without_rights_for_it_is_an_error(backup: hvac.Client, team: str) -> None:
    with pytest.raises(PreconditionError, match=rf"the token may not list {team}/sys/"):
        collect(backup)


def test_the_comments_of_the_shipped_policy_say_what_a_namespace_needs(
    node: OpenBao, backup: hvac.Client, team: str
) -> None:
    inner = f"{team}/inner"
    client = limited(node, BACKUP + for_namespace(BACKUP, team) + for_namespace(BACKUP, inner))
    tree = collect(client)
    own = {path: content for path, content in tree.items() if path.startswith("namespaces/")}
    assert set(own) == {
        "namespaces/team/auth.json",
        "namespaces/team/mounts.json",
        "namespaces/team/namespace.json",
        "namespaces/team/policies/default.hcl",
        "namespaces/team/policies/deploy.hcl",
        "namespaces/team/roles/auth/approle/names.json",
        "namespaces/team/roles/auth/token/names.json",
        "namespaces/team/roles/transit/names.json",
        "namespaces/team/namespaces/inner/auth.json",
        "namespaces/team/namespaces/inner/mounts.json",
        "namespaces/team/namespaces/inner/namespace.json",
        "namespaces/team/namespaces/inner/policies/default.hcl",
        "namespaces/team/namespaces/inner/policies/inner.hcl",
        "namespaces/team/namespaces/inner/roles/auth/token/names.json",
    }
    assert tree["namespaces/team/policies/deploy.hcl"].decode() == TEXT
    assert document(tree, "namespaces/team/roles/auth/approle/names.json") == {"role": ["worker"]}
    assert document(tree, "namespaces/team/namespace.json")["locked"] is False
    assert set(export.transit_keys(client)) >= {"transit/app038", "team/transit/orders"}
    assert pack(collect(client)) == pack(tree)


def test_a_locked_namespace_does_not_keep_the_rest_from_being_exported(node: OpenBao, team: str) -> None:
    client = limited(node, BACKUP + for_namespace(BACKUP, team) + for_namespace(BACKUP, f"{team}/inner"))
    before = collect(client)
    key = node.request("PUT", f"{team}/sys/namespaces/api-lock/lock")["data"]["unlock_key"]
    try:
        changes = {change.path: change.kind for change in compare(before, collect(client))}
        assert set(export.transit_keys(client)) >= {"transit/app038"}
    finally:
        node.request("PUT", f"{team}/sys/namespaces/api-lock/unlock", body={"unlock_key": key})
    assert changes.pop("namespaces/team/namespace.json") == "changed"
    assert set(changes.values()) == {"removed"}
    assert all(path.startswith("namespaces/team/") for path in changes)


def test_an_identity_of_a_namespace_exports_that_namespace_without_the_server_s_audit_devices(
    node: OpenBao, team: str
) -> None:
    client = hvac.Client(url=node.address, token=node.root_token, namespace=team)
    tree = collect(client)
    assert "policies/deploy.hcl" in tree
    assert "namespaces/inner/policies/inner.hcl" in tree
    assert "audit.json" not in tree


# --- the shipped file itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["backup.hcl", "restore-policies.hcl", "canary.hcl"])
def test_a_shipped_policy_denies_by_default_and_has_no_wide_rule(name: str) -> None:
    text = (SHIPPED / name).read_text()
    rules = re.findall(r'^#? ?path "([^"]+)"', text, re.MULTILINE)
    assert rules
    for rule in rules:
        assert "*" not in rule or rule.endswith("sys/policies/acl/*")
    assert "deny" not in text
