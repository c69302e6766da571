"""Policies of an export go into a running server again: planned first, read back, and never half-said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import hvac
import hvac.adapters
import pytest
import requests

from lab.bao import OpenBao
from lab.errors import LabError
from recovery.errors import ConfigurationError, PreconditionError, VaultError, VaultUnreachable
from recovery.vault import export, policies
from recovery.vault.tree import Tree
from tests.support import REPOSITORY, new_folder

SHIPPED = REPOSITORY / "include" / "config" / "vault"
TEXT = 'path "secret/data/app038/*" {\n  capabilities = ["read"]\n}\n'
OTHER = 'path "secret/data/app038/*" {\n  capabilities = ["read", "update"]\n}\n'


@pytest.fixture(scope="module")
def node() -> Iterator[OpenBao]:
    with new_folder() as folder, OpenBao(folder / "vault") as started:
        for name in ("restore-policies", "backup"):
            write(started, f"shipped-{name}", (SHIPPED / f"{name}.hcl").read_text())
        yield started


@pytest.fixture
def root(node: OpenBao) -> hvac.Client:
    return hvac.Client(url=node.address, token=node.root_token)


@pytest.fixture
def restorer(node: OpenBao) -> hvac.Client:
    """The identity that the shipped policy describes, and nothing else."""
    return client_of(node, "shipped-restore-policies")


def client_of(node: OpenBao, name: str) -> hvac.Client:
    body = {"policies": [name], "no_default_policy": True, "no_parent": True}
    token = node.request("POST", "auth/token/create", body=body)["auth"]["client_token"]
    return hvac.Client(url=node.address, token=token)


def write(node: OpenBao, name: str, text: str, **settings: Any) -> None:
    node.request("PUT", f"sys/policies/acl/{quote(name)}", body={"policy": text, **settings})


def live(node: OpenBao, name: str) -> dict[str, Any]:
    found: dict[str, Any] = node.request("GET", f"sys/policies/acl/{quote(name)}")["data"]
    return found


def remove(node: OpenBao, *names: str) -> None:
    for name in names:
        node.request("DELETE", f"sys/policies/acl/{quote(name)}")


def tree_of(**texts: str) -> Tree:
    return {f"policies/{name}.hcl": text.encode() for name, text in texts.items()}


def test_the_plan_says_what_would_be_made_replaced_and_left_and_changes_nothing(
    node: OpenBao, restorer: hvac.Client
) -> None:
    remove(node, "absent")
    write(node, "drifted", OTHER)
    write(node, "kept", TEXT)
    changes = policies.plan(tree_of(drifted=TEXT, kept=TEXT, absent="# x\n"), restorer, None)
    assert [(change.name, change.action, change.diff) for change in changes] == [
        ("absent", "create", ("@@ -0,0 +1 @@", "+# x")),
        (
            "drifted",
            "replace",
            (
                "@@ -1,3 +1,3 @@",
                ' path "secret/data/app038/*" {',
                '-  capabilities = ["read", "update"]',
                '+  capabilities = ["read"]',
                " }",
            ),
        ),
        ("kept", "unchanged", ()),
    ]
    assert live(node, "drifted")["policy"] == OTHER
    with pytest.raises(LabError, match="404"):
        live(node, "absent")


def test_applying_makes_and_replaces_and_leaves_what_is_as_it_should_be(node: OpenBao, restorer: hvac.Client) -> None:
    remove(node, "absent")
    write(node, "drifted", OTHER)
    write(node, "kept", TEXT)
    write(node, "another", OTHER)
    before = {name: live(node, name) for name in ("kept", "another")}
    tree = tree_of(drifted=TEXT, kept=TEXT, absent="# no newline at the end")
    assert policies.apply(restorer, policies.plan(tree, restorer, None)) == ["absent", "drifted"]
    assert live(node, "absent")["policy"] == "# no newline at the end"
    assert live(node, "drifted")["policy"] == TEXT
    assert {name: live(node, name) for name in before} == before
    assert {change.action for change in policies.plan(tree, restorer, None)} == {"unchanged"}
    assert policies.apply(restorer, policies.plan(tree, restorer, None)) == []


def test_an_export_brings_every_policy_back(node: OpenBao, root: hvac.Client) -> None:
    names = ["a b", "team/deploy", "x%y", "ünï", "q?x#y", "a:b*+"]
    for name in names:
        write(node, name, f"# {name}\n{TEXT}")
    tree = export.collect(root, product="openbao")
    remove(node, *names[:3])
    for name in names[3:]:
        write(node, name, OTHER)
    assert sorted(policies.apply(root, policies.plan(tree, root, None))) == sorted(names)
    assert export.collect(root, product="openbao") == tree
    remove(node, *names)


def test_only_the_chosen_policies_are_planned_once_and_in_order(node: OpenBao, restorer: hvac.Client) -> None:
    tree = tree_of(**{"a": TEXT, "b": TEXT, "team%2Fdeploy": TEXT})
    chosen = policies.plan(tree, restorer, ["Team/Deploy", "a", "a", "policies/a.hcl"])
    assert [change.name for change in chosen] == ["a", "team/deploy"]


def test_a_policy_that_the_export_does_not_hold_is_named_with_those_it_does(restorer: hvac.Client) -> None:
    tree = tree_of(app038=TEXT, **{"a%20b": TEXT}) | {"namespaces/team/policies/x.hcl": b"#", "mounts.json": b"{}"}
    with pytest.raises(ConfigurationError) as caught:
        policies.plan(tree, restorer, ["app038", "app39"])
    assert str(caught.value) == (
        "policies: the export holds no policy 'app39' -> use one of: namespaces/team/policies/x.hcl, a b, app038"
    )
    with pytest.raises(ConfigurationError, match="use one of: none"):
        policies.plan({}, restorer, ["x"])


@pytest.mark.parametrize("names", [["root"], None])
def test_root_is_refused_before_anything_is_asked(names: list[str] | None) -> None:
    nobody = hvac.Client(url="http://127.0.0.1:1", token="x")
    with pytest.raises(ConfigurationError) as caught:
        policies.plan(tree_of(root="#"), nobody, names)
    assert str(caught.value) == (
        "policies: the policy 'root' is built into every server and cannot be written"
        " -> leave it out: an export does not hold it either"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('path "x" {', "failed to parse policy: At 1:12: object expected closing RBRACE got: EOF"),
        ('path "x" { capabilities = ["fly"] }', "invalid capability"),
        ("", "'policy' parameter not supplied or empty"),
    ],
)
def test_a_text_that_the_server_refuses_ends_the_work_and_says_how_far_it_came(
    node: OpenBao, restorer: hvac.Client, text: str, said: str
) -> None:
    remove(node, "p1", "p2", "p3")
    changes = policies.plan(tree_of(p1=TEXT, p2=text, p3=TEXT), restorer, None)
    with pytest.raises(VaultError) as caught:
        policies.apply(restorer, changes)
    line = str(caught.value)
    assert line.startswith(f"{node.address}: the policy 'p2' was not applied: Vault answers: ")
    assert said in line
    assert line.endswith("; written: p1; not written: p2, p3")
    assert live(node, "p1")["policy"] == TEXT
    for name in ("p2", "p3"):
        with pytest.raises(LabError, match="404"):
            live(node, name)


def test_an_identity_that_may_only_read_plans_and_does_not_write(node: OpenBao) -> None:
    remove(node, "p1")
    reader = client_of(node, "shipped-backup")
    changes = policies.plan(tree_of(p1=TEXT), reader, None)
    with pytest.raises(PreconditionError) as caught:
        policies.apply(reader, changes)
    assert str(caught.value) == (
        f"{node.address}: the policy 'p1' was not applied: the token may not create and update sys/policies/acl/p1;"
        " written: none; not written: p1 -> give its role the policy include/config/vault/restore-policies.hcl; it must"
        ' hold: path "sys/policies/acl/*" { capabilities = ["create", "update"] }'
    )


def test_an_identity_without_any_right_cannot_even_plan(node: OpenBao) -> None:
    write(node, "self-only", 'path "auth/token/lookup-self" { capabilities = ["read"] }')
    with pytest.raises(PreconditionError, match="the token may not read sys/policies/acl/p1 -> give its role"):
        policies.plan(tree_of(p1=TEXT), client_of(node, "self-only"), None)


def test_the_restoring_identity_writes_policies_and_does_nothing_else(node: OpenBao, restorer: hvac.Client) -> None:
    write(node, "p1", TEXT)
    for method, path in (
        ("delete", "sys/policies/acl/p1"),
        ("get", "sys/mounts"),
        ("get", "sys/storage/raft/snapshot"),
        ("post", "auth/token/create"),
    ):
        with pytest.raises(hvac.exceptions.Forbidden):
            restorer.adapter.request(method, f"/v1/{path}")
    restorer.auth.token.renew_self()
    restorer.auth.token.revoke_self()


def test_a_policy_that_was_changed_after_the_plan_is_not_overwritten(node: OpenBao, restorer: hvac.Client) -> None:
    write(node, "p1", OTHER)
    remove(node, "p2")
    tree = tree_of(p1=TEXT, p2=TEXT)
    for name in ("p1", "p2"):
        changes = policies.plan(tree, restorer, [name])
        write(node, name, "# someone else's")
        with pytest.raises(PreconditionError) as caught:
            policies.apply(restorer, changes)
        assert str(caught.value) == (
            f"{node.address}: the policy '{name}' was not applied: it was changed on the server after the plan was"
            f" made; written: none; not written: {name} -> plan again"
        )
        assert live(node, name)["policy"] == "# someone else's"


def test_a_replaced_policy_keeps_its_settings_on_the_server(node: OpenBao, restorer: hvac.Client) -> None:
    """OpenBao resets what a write does not name: a policy that was to end would stay for ever."""
    remove(node, "p1")
    write(node, "p1", OTHER, ttl="10h", cas=-1, cas_required=True, allow_wildcards_in_identity_templates=True)
    before = live(node, "p1")
    assert policies.apply(restorer, policies.plan(tree_of(p1=TEXT), restorer, None)) == ["p1"]
    after = live(node, "p1")
    changed = {"policy", "version", "modified"}
    assert before["expiration"]
    assert {name: before[name] for name in before.keys() - changed} == {
        name: after[name] for name in after.keys() - changed
    }
    assert (after["policy"], after["version"]) == (TEXT, before["version"] + 1)


def test_a_policy_of_a_namespace_is_chosen_by_its_file(node: OpenBao, root: hvac.Client) -> None:
    node.request("POST", "sys/namespaces/team")
    node.request("POST", "team/sys/namespaces/inner")
    for place, name in (("team/", "deploy"), ("team/inner/", "in/ner"), ("", "deploy")):
        node.request("PUT", f"{place}sys/policies/acl/{name}", body={"policy": TEXT})
    tree = export.collect(root, product="openbao")
    file, inner = "namespaces/team/policies/deploy.hcl", "namespaces/team/namespaces/inner/policies/in%2Fner.hcl"
    node.request("PUT", "team/sys/policies/acl/deploy", body={"policy": OTHER})
    node.request("DELETE", "team/inner/sys/policies/acl/in/ner")
    write(node, "deploy", OTHER)

    changes = policies.plan(tree, root, [file, inner])
    assert [(change.name, change.action) for change in changes] == [(inner, "create"), (file, "replace")]
    assert policies.apply(root, changes) == [inner, file]
    assert live(node, "deploy")["policy"] == OTHER
    assert [change.name for change in policies.plan(tree, root, None) if change.action != "unchanged"] == ["deploy"]

    block = (SHIPPED / "restore-policies.hcl").read_text().split("called `team`")[1]
    text = "\n".join(line.removeprefix("# ") for line in block.splitlines()[2:])
    write(node, "team-restore", text + '\npath "auth/token/lookup-self" { capabilities = ["read"] }')
    node.request("PUT", "team/sys/policies/acl/deploy", body={"policy": OTHER})
    limited = client_of(node, "team-restore")
    assert policies.apply(limited, policies.plan(tree, limited, [file])) == [file]


def test_a_namespace_that_is_not_there_is_said(root: hvac.Client) -> None:
    changes = policies.plan({"namespaces/gone/policies/x.hcl": TEXT.encode()}, root, None)
    with pytest.raises(PreconditionError) as caught:
        policies.apply(root, changes)
    assert "the policy 'namespaces/gone/policies/x.hcl' was not applied: there is no namespace gone;" in str(
        caught.value
    )


def test_a_server_that_went_away_is_unreachable_and_what_was_written_is_said(restorer: hvac.Client) -> None:
    changes = policies.plan(tree_of(gone=TEXT), restorer, None)
    with pytest.raises(
        VaultUnreachable, match=r"the policy 'gone' was not applied: .*; written: none; not written: gone"
    ):
        policies.apply(hvac.Client(url="http://127.0.0.1:1", token="x"), changes)


class LostAnswer(hvac.adapters.JSONAdapter):
    """The write arrives, and its answer does not."""

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        answer = super().request(method, url, *args, **kwargs)
        if method == "put":
            raise requests.exceptions.ReadTimeout("read timed out")
        return answer


class Overwritten(hvac.adapters.JSONAdapter):
    """Someone else writes right after each write."""

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        answer = super().request(method, url, *args, **kwargs)
        if method == "put":
            super().request(method, url, json={"policy": OTHER})
        return answer


@pytest.mark.parametrize(
    ("adapter", "kind", "what", "live_text"),
    [
        (LostAnswer, VaultUnreachable, "no answer (read timed out)", TEXT),
        (Overwritten, VaultError, "it does not read back as it was written", OTHER),
    ],
)
def test_a_write_of_which_nothing_is_known_is_not_said_to_be_undone(
    node: OpenBao, adapter: type[hvac.adapters.Adapter], kind: type[VaultError], what: str, live_text: str
) -> None:
    remove(node, "p1", "p2")
    client = hvac.Client(url=node.address, token=node.root_token, adapter=adapter)
    with pytest.raises(kind) as caught:
        policies.apply(client, policies.plan(tree_of(p1=TEXT, p2=TEXT), client, None))
    assert caught.value.what == f"the policy 'p1' may have been written: {what}; written: none; not written: p2"
    assert live(node, "p1")["policy"] == live_text
