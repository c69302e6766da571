"""Restores of a Vault by the command, into real nodes: what comes back, what is refused, and what a failure leaves."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import os
import pty
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pyrage
import pytest

from lab.bao import OpenBao
from lab.bao_cluster import OpenBaoCluster
from lab.errors import LabError
from recovery.connections import Connection
from tests.faults.test_interrupted import interrupt, until
from tests.integration.test_secrets import CommandLines
from tests.integration.test_vault_backup import BACKUP, POLICY, damage, flip, keys, manifest_of, vault_site, with_token
from tests.proxy import Proxy
from tests.support import Site, new_folder

PLAN = ("plan", "vault", "app038")
RESTORE = ("restore", "vault", "app038")
SECRET = "marked-value-Kq47"
CHECKS = {"cluster": [], "mounts": [], "policies": [], "transit keys": [], "key counts": []}


class FreshBao(OpenBao):
    """A node that has been started, and not initialised."""

    def _make_ready(self) -> None:
        self.request("GET", "sys/init", token="")

    def initialised(self) -> bool:
        return bool(self.request("GET", "sys/init", token="")["initialized"])


@pytest.fixture
def fresh(folder: Path) -> Iterator[FreshBao]:
    with FreshBao(folder / "fresh", name="fresh") as started:
        yield started


@pytest.fixture(scope="module")
def used() -> Iterator[OpenBao]:
    """A node of another cluster, with something in it."""
    with new_folder() as folder, OpenBao(folder / "used", name="used") as started:
        started.write_policy("theirs", "# theirs\n")
        yield started


@pytest.fixture
def vault_in(folder: Path, vault: OpenBao) -> Site:
    vault.request("POST", "secret/data/app038/marked", body={"data": {"key": SECRET}})
    return vault_site(folder, vault)


def read_secret(vault: OpenBao, token: str) -> str:
    return str(vault.request("GET", "secret/data/app038/marked", token=token)["data"]["data"]["key"])


def blocked(site: Site, *arguments: object) -> list[str]:
    """What a plan says that blocks it, its exit status being 1."""
    found: list[str] = site.json(*PLAN, *arguments, expect=1)["blocked_by"]
    return found


# Into a fresh node.


def test_a_fresh_node_becomes_the_vault_that_was_backed_up(vault_in: Site, vault: OpenBao, fresh: FreshBao) -> None:
    made = vault_in.json(*BACKUP)
    vault.request("POST", "secret/data/app038/marked", body={"data": {"key": "written later"}})
    plan = vault_in.json(*PLAN, "--into", fresh.address)
    found = manifest_of(vault_in, made["id"])
    assert plan == {
        "backup": made["id"],
        "product": "openbao",
        "server_version": found["server"]["version"],
        "recovery_point": made["recovery_point"],
        "fetch_bytes": found["objects"][0]["stored_bytes"],
        "seal": {"type": "shamir", "shares": 3, "threshold": 2},
        "cluster_id": found["server"]["cluster_id"],
        "mounts": len(found["server"]["mounts"]),
        "policies": len(found["server"]["policies"]),
        "target": fresh.address,
        "replaces": "",
        "production": None,
        "blocked_by": [],
    }
    assert not fresh.initialised(), "a plan touches nothing"
    told = vault_in.run(*PLAN, "--into", fresh.address).stdout
    assert "seal            shamir: 2 of its 3 shares unseal it" in told
    assert "replaces        nothing: the node is fresh" in told and "blocked" not in told
    done = vault_in.json(*RESTORE, "--into", fresh.address)
    assert done == plan | {"checks": CHECKS, "unchecked": ""}
    assert read_secret(fresh, vault.root_token) == SECRET
    # It has the original shares, and no other ones.
    fresh.request("PUT", "sys/seal", token=vault.root_token)
    for share in vault.shares[1:]:
        fresh.request("PUT", "sys/unseal", token="", body={"key": share})
    assert not fresh.request("GET", "sys/seal-status", token="")["sealed"]


def test_an_older_snapshot_is_restored_with_shares_from_a_file(vault_in: Site, vault: OpenBao, fresh: FreshBao) -> None:
    old = vault_in.json(*BACKUP, "--type", "snapshot")["id"]
    vault.request("POST", "secret/data/app038/marked", body={"data": {"key": "written later"}})
    vault_in.json(*BACKUP)
    del vault_in.document["vault"]["app038"]["shares"]
    file = vault_in.folder / "shares.txt"
    file.write_text("# of the year's ceremony\n" + "\n".join(vault.shares[:2]) + "\n")
    done = vault_in.run(*RESTORE, "--into", fresh.address, "--id", old, "--shares", file)
    assert f"backup          {old} (openbao " in done.stderr
    first, *checks, last = done.stdout.splitlines()
    assert first == f"restored into {fresh.address}, and unsealed"
    assert checks == [f"  {name}: ok" for name in CHECKS]
    assert last.startswith("Its peers join it with `operator raft join`.")
    assert read_secret(fresh, vault.root_token) == SECRET
    assert not any(share in done.stdout + done.stderr for share in vault.shares)


def test_a_node_that_holds_less_than_the_manifest_says_fails_its_check(
    vault_in: Site, vault: OpenBao, fresh: FreshBao
) -> None:
    made = vault_in.json(*BACKUP, "--type", "snapshot")["id"]

    def promise_more(data: bytes) -> bytes:
        found = json.loads(data)
        found["server"]["policies"].append("zz-never-was")
        return json.dumps(found).encode()

    damage(vault_in, "manifest.json", promise_more)
    done = vault_in.json(*RESTORE, "--into", fresh.address, "--id", made, expect=1)
    assert done["checks"] == CHECKS | {"policies": ["the policy zz-never-was is missing in the restored Vault"]}
    assert read_secret(fresh, vault.root_token) == SECRET


# The shares.


@pytest.mark.parametrize(
    ("text", "told", "status"),
    [
        ("", "there is no share -> write one share a line", 2),
        ("# only a remark\n", "there is no share", 2),
        (None, "the shares cannot be read (No such file or directory) -> name a file", 2),
        ("ONE\n", "1 different shares were given, and this snapshot needs 2", 1),
        ("ONE,ONE\n", "1 different shares were given, and this snapshot needs 2", 1),
    ],
    ids=["empty", "remark", "missing", "too few", "twice the same"],
)
def test_shares_that_cannot_be_enough_are_refused_before_anything_is_touched(
    vault_in: Site, vault: OpenBao, fresh: FreshBao, text: str | None, told: str, status: int
) -> None:
    vault_in.run(*BACKUP)
    file = vault_in.folder / "shares.txt"
    if text is not None:
        file.write_text(text.replace("ONE", vault.shares[0]))
    message = vault_in.error(*RESTORE, "--into", fresh.address, "--shares", file, expect=status)
    assert told in message and vault.shares[0] not in message
    assert not fresh.initialised()


def test_without_shares_and_without_a_terminal_it_says_where_they_may_come_from(
    vault_in: Site, fresh: FreshBao
) -> None:
    vault_in.run(*BACKUP)
    del vault_in.document["vault"]["app038"]["shares"]
    assert vault_in.error(*RESTORE, "--into", fresh.address, expect=2) == (
        "error: the unseal shares are needed, 2 of 3"
        " -> give --shares FILE, configure vault.NAME.shares, or run this on a terminal"
    )
    vault_in.document["vault"]["app038"]["shares"] = "app038_shares"
    vault_in.add(Connection(id="app038_shares", type="generic"))
    assert "the connection holds no shares" in vault_in.error(*RESTORE, "--into", fresh.address, expect=2)
    vault_in.add(Connection(id="app038_shares", type="generic", extra={"path": str(vault_in.folder / "absent")}))
    assert "the shares cannot be read" in vault_in.error(*RESTORE, "--into", fresh.address, expect=2)
    assert not fresh.initialised()


def test_wrong_shares_leave_a_sealed_node_and_say_how_it_is_opened(
    vault_in: Site, vault: OpenBao, used: OpenBao, fresh: FreshBao
) -> None:
    vault_in.run(*BACKUP)
    vault_in.add(Connection(id="app038_shares", type="generic", password=",".join(used.shares)))
    message = vault_in.error(*RESTORE, "--into", fresh.address)
    assert "the shares given do not open this snapshot" in message
    assert "the snapshot is in the node, which stays sealed" in message, message
    assert not any(share in message for share in used.shares)
    # As the message says: the right ones open it.
    for share in vault.shares[:2]:
        fresh.request("PUT", "sys/unseal", token="", body={"key": share})
    until(lambda: fresh.request("GET", "sys/leader", token="").get("is_self"))
    assert read_secret(fresh, vault.root_token) == SECRET


def test_on_a_terminal_the_shares_are_asked_for_and_not_shown(vault_in: Site, vault: OpenBao, fresh: FreshBao) -> None:
    vault_in.run(*BACKUP)
    del vault_in.document["vault"]["app038"]["shares"]
    argv, environment = vault_in.argv(*RESTORE, "--into", fresh.address), vault_in.environment
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(argv[0], argv, environment)
    shown = ""
    for number, share in enumerate(vault.shares[:2], 1):
        while f"unseal share {number} of 2: " not in shown:
            shown += os.read(terminal, 4096).decode()
        os.write(terminal, f"{share}\n".encode())
    with contextlib.suppress(OSError):  # As it ends, the terminal does.
        while piece := os.read(terminal, 4096):
            shown += piece.decode()
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert "key counts" in shown and "failed" not in shown
    assert not any(share in shown for share in vault.shares)
    assert read_secret(fresh, vault.root_token) == SECRET


def test_an_interrupted_restore_says_what_it_leaves(vault_in: Site, fresh: FreshBao) -> None:
    vault_in.run(*BACKUP)
    with Proxy(fresh.port) as proxy:
        proxy.bytes_per_second = 20_000
        process = vault_in.start(*RESTORE, "--into", proxy.endpoint)
        until(fresh.initialised)
        status, lines = interrupt(process)
    left = "the node is initialised with keys that nobody has: empty its storage before the next try"
    assert (status, lines[-1]) == (130, f"error: interrupted -> {left}")


# What is not a fresh node.


def test_production_is_restored_into_only_by_its_name_in_full(vault_in: Site, vault: OpenBao) -> None:
    vault_in.run(*BACKUP)
    vault_in.add(replace(vault_in.connections["app038_vault"], id="root", **with_token(vault, vault.root_token)))
    told = "this is production: give --production app038 if it is meant"
    for into in (vault.address, f"http://localhost:{vault.port}", f"http://LOCALHOST:{vault.port}/", "root"):
        for more in ((), ("--replace",), ("--production", "app03"), ("--production", "")):
            assert told in vault_in.error(*RESTORE, "--into", into, *more), (into, more)
        assert told in blocked(vault_in, "--into", into)
    plan = vault_in.json(*PLAN, "--into", vault.address, "--production", "app038")
    assert plan["production"] == "app038" and plan["replaces"].startswith("all of cluster ")
    # An address alone brings no token, and a node in use wants one.
    assert "there is no token" in vault_in.error(*RESTORE, "--into", vault.address, "--production", "app038", expect=2)
    vault.request("POST", "secret/data/app038/marked", body={"data": {"key": "lost"}})
    done = vault_in.json(*RESTORE, "--into", "root", "--production", "app038")
    assert done["checks"] == CHECKS and done["unchecked"] == ""
    assert read_secret(vault, vault.root_token) == SECRET


def test_a_sealed_production_node_is_known_by_any_name_of_its_host(folder: Path) -> None:
    """It does not say which cluster it is of."""
    with OpenBao(folder / "vault") as vault:
        site = vault_site(folder, vault, **with_token(vault, vault.root_token))
        site.run(*BACKUP)
        vault.request("PUT", "sys/seal")
        for into in (vault.address, f"http://127.1:{vault.port}"):
            assert blocked(site, "--into", into, "--replace") == [
                "this is production: give --production app038 if it is meant"
            ]


def test_a_node_in_use_is_replaced_only_when_that_is_said(vault_in: Site, vault: OpenBao, used: OpenBao) -> None:
    vault_in.run(*BACKUP)
    vault_in.add(replace(vault_in.connections["app038_vault"], id="used", **with_token(used, used.root_token)))
    told = "the node is in use: give --replace if all that it holds is to be lost"
    cluster = used.request("GET", "sys/seal-status", token="")["cluster_id"]
    for into in (used.address, "used"):
        assert told in vault_in.error(*RESTORE, "--into", into)
        assert told in vault_in.error(*RESTORE, "--into", into, "--production", "app038")
        assert blocked(vault_in, "--into", into) == [told]
    assert used.request("GET", "sys/policies/acl/theirs")["data"]["policy"] == "# theirs\n"
    plan = vault_in.json(*PLAN, "--into", "used", "--replace")
    assert plan["replaces"].startswith(f"all of cluster {cluster} (version ") and plan["blocked_by"] == []
    assert "there is no token" in vault_in.error(*RESTORE, "--into", used.address, "--replace", expect=2)
    vault_in.add(replace(vault_in.connections["used"], id="nobody", password="s.no-token"))
    refused = vault_in.error(*RESTORE, "--into", "nobody", "--replace")
    assert "Vault refuses" in refused and "s.no-token" not in refused
    done = vault_in.json(*RESTORE, "--into", "used", "--replace")
    assert done["checks"] == CHECKS
    assert read_secret(used, vault.root_token) == SECRET
    with pytest.raises(LabError, match="404"):
        used.request("GET", "sys/policies/acl/theirs", token=vault.root_token)


def test_a_cluster_is_restored_at_its_active_node_and_every_node_of_it_is_production(
    folder: Path, vault_cluster: OpenBaoCluster
) -> None:
    leader, (standby, _) = vault_cluster.leader(), vault_cluster.standbys()
    site = vault_site(folder, leader, **with_token(leader, vault_cluster.root_token))
    leader.write_policy("kept", "# kept\n", token=vault_cluster.root_token)
    site.run(*BACKUP)
    leader.request("DELETE", "sys/policies/acl/kept", token=vault_cluster.root_token)
    production = "this is production: give --production app038 if it is meant"
    passive = f"the node is a standby: name the active one, {leader.address}"
    assert blocked(site, "--into", standby.address, "--replace") == [production, passive]
    token = with_token(standby, vault_cluster.root_token)
    site.add(replace(site.connections["app038_vault"], id="standby", **token))
    assert passive in site.error(*RESTORE, "--into", "standby", "--production", "app038")
    done = site.json(*RESTORE, "--into", "app038_vault", "--production", "app038")
    assert done["checks"] == CHECKS
    found = vault_cluster.wait_for_leader().request("GET", "sys/policies/acl/kept", token=vault_cluster.root_token)
    assert found["data"]["policy"] == "# kept\n"


# The backup's own identity.


def test_the_backup_identity_backs_up_and_restores_nothing(vault_in: Site, vault: OpenBao, fresh: FreshBao) -> None:
    vault.write_policy("exactly", POLICY)
    token = vault.create_token(["exactly"])
    vault_in.add(replace(vault_in.connections["app038_vault"], **with_token(vault, token)))
    for kind in ("full", "snapshot", "policies"):
        vault_in.run(*BACKUP, "--type", kind)
    marked = read_secret(vault, vault.root_token)
    message = vault_in.error(*RESTORE, "--into", "app038_vault", "--production", "app038")
    assert "Vault refuses" in message and "sys/storage/raft/snapshot-force" in message
    assert "denied" in message
    assert read_secret(vault, vault.root_token) == marked
    with pytest.raises(LabError, match="403"):
        vault.request("GET", "secret/data/app038/marked", token=token)


# What cannot be restored into.


def test_a_node_older_than_the_snapshot_is_blocked(vault_in: Site, fresh: FreshBao) -> None:
    vault_in.run(*BACKUP)

    def from_the_future(data: bytes) -> bytes:
        found = json.loads(data)
        major, minor, patch = found["server"]["version"].split(".")
        found["server"]["version"] = f"{major}.{int(minor) + 1}.{patch}"
        return json.dumps(found).encode()

    damage(vault_in, "manifest.json", from_the_future)
    (told,) = blocked(vault_in, "--into", fresh.address)
    assert told.startswith("the node runs 2.") and told.endswith(": upgrade the node")
    assert told in vault_in.error(*RESTORE, "--into", fresh.address)
    assert told in vault_in.run(*PLAN, "--into", fresh.address, expect=1).stdout
    assert not fresh.initialised()


@contextmanager
def web_server(status: int, content: bytes, content_type: str = "text/html") -> Iterator[str]:
    """The address of a server that gives every request the same answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_HEAD = do_LIST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


PAGE = b"<html><head><title>Not here</title></head>\n<body>" + b"<p>Nothing of that name.</p>" * 40 + b"</body></html>"


@pytest.mark.parametrize(
    ("status", "content"),
    [(404, PAGE), (200, PAGE), (200, b"[]"), (200, b"{}"), (404, b'{"errors":[]}'), (500, b"")],
    ids=["404", "page", "list", "object", "json 404", "500"],
)
def test_an_address_that_is_no_vault_is_one_short_line(vault_in: Site, status: int, content: bytes) -> None:
    vault_in.run(*BACKUP, "--type", "snapshot")
    with web_server(status, content) as address:
        for call in (PLAN, RESTORE):
            message = vault_in.error(*call, "--into", address)
            assert address in message and len(message) < 300, message


@pytest.mark.parametrize(
    ("into", "told", "status"),
    [
        ("http://127.0.0.1:1", "no answer (", 1),
        ("http://no-such-host.invalid:8200", "no answer (", 1),
        ("http://", "its host is not one", 2),
        ("ftp://127.0.0.1", "its host is not one", 2),
        ("http://127.0.0.1:port", "its host is not one", 2),
        ("http://127.0.0.1:8200,http://127.0.0.1:8201", "a restore goes into one node -> name one address", 2),
        ("nowhere", "connection nowhere: the connection is not defined", 2),
        ("127.0.0.1:8200", "connection 127.0.0.1:8200: the connection is not defined", 2),
    ],
)
def test_an_address_that_does_not_answer_or_is_none(vault_in: Site, into: str, told: str, status: int) -> None:
    vault_in.run(*BACKUP, "--type", "snapshot")
    for call in (PLAN, RESTORE):
        assert told in vault_in.error(*call, "--into", into, expect=status)


def test_a_certificate_that_is_not_there_is_named(vault_in: Site, fresh: FreshBao) -> None:
    vault_in.run(*BACKUP, "--type", "snapshot")
    absent = vault_in.folder / "absent.pem"
    message = vault_in.error(*PLAN, "--into", fresh.address, "--ca-cert", absent, expect=2)
    assert f"{absent}: the CA certificate is not there" in message


# What cannot be restored.


def test_backups_that_cannot_be_restored_are_named_before_anything_is_touched(vault_in: Site, fresh: FreshBao) -> None:
    into = ("--into", fresh.address)
    assert "there is no snapshot of this Vault yet" in vault_in.error(*RESTORE, *into, expect=2)
    policies = vault_in.json(*BACKUP, "--type", "policies")["id"]
    assert "there is no snapshot of this Vault yet" in vault_in.error(*RESTORE, *into, expect=2)
    assert "it holds no snapshot" in vault_in.error(*RESTORE, *into, "--id", policies, expect=2)
    assert "it holds no snapshot" in vault_in.error(*PLAN, *into, "--id", policies, expect=2)
    made = vault_in.json(*BACKUP, "--type", "snapshot")["id"]
    unknown = vault_in.error(*RESTORE, *into, "--id", "20200101T000000Z-full", expect=2)
    assert "no backup of this Vault has this id" in unknown and made in unknown
    assert "app83" in vault_in.error("restore", "vault", "app83", *into, expect=2)
    assert "app83" in vault_in.error("plan", "vault", "app83", *into, expect=2)
    del vault_in.document["encryption"]["identity"]
    assert "no identity is configured here" in vault_in.error(*RESTORE, *into, expect=2)
    assert not fresh.initialised()


def test_a_newest_backup_that_cannot_be_read_is_never_passed_over_in_silence(vault_in: Site, fresh: FreshBao) -> None:
    good, bad = (vault_in.json(*BACKUP, "--type", "snapshot")["id"] for _ in range(2))
    path = vault_in.folder / "repository" / "vault" / "app038" / "snapshots" / bad / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    for call in (PLAN, RESTORE):
        message = vault_in.error(*call, "--into", fresh.address)
        assert bad in message and "this is not a manifest" in message
    assert not fresh.initialised()
    vault_in.run(*PLAN, "--into", fresh.address, "--id", good)


def test_a_snapshot_that_is_not_there_or_not_for_this_identity_leaves_the_node_untouched(
    vault_in: Site, fresh: FreshBao
) -> None:
    vault_in.run(*BACKUP, "--type", "snapshot")
    stranger = vault_in.folder / "stranger.txt"
    stranger.write_text(str(pyrage.x25519.Identity.generate()))
    message = vault_in.error(*RESTORE, "--into", fresh.address, "--identity", stranger)
    assert "no identity given here opens this object" in message
    damage(vault_in, "snapshot.snap.zst.age", lambda data: None)
    assert "the object is not there" in vault_in.error(*RESTORE, "--into", fresh.address)
    assert not fresh.initialised()


@pytest.mark.parametrize("change", [flip, lambda data: data[: len(data) // 2]], ids=["flipped", "cut"])
def test_a_damaged_snapshot_is_refused_and_what_is_left_is_said(
    vault_in: Site, fresh: FreshBao, change: Callable[[bytes], bytes]
) -> None:
    vault_in.run(*BACKUP, "--type", "snapshot")
    damage(vault_in, "snapshot.snap.zst.age", change)
    message = vault_in.error(*RESTORE, "--into", fresh.address)
    assert "snapshot.snap.zst.age" in message, message
    left = "the node is initialised with keys that nobody has: empty its storage before the next try"
    assert fresh.initialised() == message.endswith(left), message


def test_a_node_that_cannot_be_compared_is_unknown_and_not_ok(vault_in: Site, vault: OpenBao, fresh: FreshBao) -> None:
    """The restored server does not know the secret id that the installation has now: it was made later."""
    vault_in.run(*BACKUP, "--type", "snapshot")
    body = {"secret_id": "marked-newer-secret-id"}
    vault.request("POST", "auth/approle/role/recovery-backup/custom-secret-id", body=body)
    vault_in.add(replace(vault_in.connections["app038_vault"], password=body["secret_id"]))
    done = vault_in.run(*RESTORE, "--into", fresh.address, expect=1)
    assert done.stdout.startswith(f"restored into {fresh.address}, and unsealed\n")
    assert "unknown: the restored node could not be compared with the manifest: " in done.stdout
    assert body["secret_id"] not in done.stdout + done.stderr
    assert read_secret(fresh, vault.root_token) == SECRET


# Secrets.


class Processes(CommandLines):
    """Samples the command line and the environment of every process below this one."""

    def run(self) -> None:
        while not self._stop_now.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace").split("\0")
                    environment = Path(f"/proc/{process.pid}/environ").read_text(errors="replace").split("\0")
                    if "recovery" in command:
                        # The command itself is given its connections there. What it starts is not.
                        environment = [item for item in environment if not item.startswith("AIRFLOW_CONN_")]
                    self.seen.add(" ".join(command + environment))


def test_no_secret_of_a_vault_appears_anywhere_in_a_whole_run(vault_in: Site, vault: OpenBao, fresh: FreshBao) -> None:
    file = vault_in.folder / "shares.txt"
    file.write_text("\n".join(vault.shares))
    vault_in.add(replace(vault_in.connections["app038_vault"], id="root", **with_token(vault, vault.root_token)))
    calls: list[tuple[object, ...]] = [
        ("config", "check"),
        (*BACKUP, "--verbose"),
        (*BACKUP, "--type", "snapshot", "--json"),
        ("list",),
        ("list", "--json"),
        ("verify", "--level", "opens"),
        ("vault", "diff", "app038", "--json"),
        ("vault", "export", "app038", "--output", vault_in.folder / "tree"),
        ("restore", "vault-policies", "app038", "--into", "root", "--apply"),
        (*PLAN, "--into", fresh.address),
        ("drill", "app038"),
        ("drill", "app038", "--json"),
        (*RESTORE, "--into", fresh.address, "--shares", file, "--verbose"),
    ]
    outputs: dict[str, str] = {}
    with Processes() as seen:
        for call in calls:
            done = vault_in.run_alone(*call)
            assert done.returncode == 0, (call, done.stdout, done.stderr)
            outputs[f"output of {' '.join(map(str, call))}"] = done.stdout + done.stderr
    ran = "\n".join(seen.seen)
    assert "recovery drill app038" in ran and "server -config=config.json" in ran, "the sampling saw too little"
    outputs["processes"] = ran
    store = vault_in.installation().store("main")
    outputs |= {f"object {key}": store.get(key).decode("latin-1") for key in keys(vault_in)}
    outputs |= {
        f"file {path}": path.read_text(errors="replace")
        for path in (vault_in.folder / "tree").rglob("*")
        if path.is_file()
    }
    assert any(key.endswith("manifest.json") for key in outputs) and any("evidence/" in key for key in outputs)
    secrets = {SECRET, vault.root_token, vault.passwords["recovery-backup"], *vault.shares, str(vault_in.identity)}
    for secret in secrets:
        assert [where for where, text in outputs.items() if secret in text] == []


@pytest.mark.parametrize("call", [BACKUP, ("verify",), ("vault", "diff", "app038"), RESTORE, PLAN])
def test_no_secret_of_a_vault_appears_when_things_go_wrong_with_a_trace_asked_for(
    vault_in: Site, vault: OpenBao, used: OpenBao, fresh: FreshBao, call: tuple[str, ...]
) -> None:
    vault_in.run(*BACKUP)
    damage(vault_in, "snapshot.snap.zst.age", flip)
    known = vault_in.connections
    wrong = {"secret id": "marked-wrong-Secret-id", "share": used.shares[0]}
    vault_in.add(replace(known["app038_vault"], password=wrong["secret id"]))
    vault_in.add(Connection(id="app038_shares", type="generic", password=",".join([wrong["share"], vault.shares[1]])))
    vault_in.add(replace(known["app038_vault"], id="root", **with_token(vault, vault.root_token)))
    more = ("--into", "root") if call in (RESTORE, PLAN) else ()
    done = vault_in.run_alone(*call, *more, "--verbose")
    assert done.returncode != 0
    for secret in (*wrong.values(), vault.root_token, *vault.shares, SECRET, str(vault_in.identity)):
        assert secret not in done.stdout + done.stderr


def test_no_secret_of_a_vault_is_logged(
    vault_in: Site, vault: OpenBao, fresh: FreshBao, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        vault_in.run(*BACKUP)
        vault_in.run(*RESTORE, "--into", fresh.address)
    assert "127.0.0.1" in caplog.text, "urllib3 was heard"
    for secret in (SECRET, vault.root_token, vault.passwords["recovery-backup"], *vault.shares):
        assert secret not in caplog.text
