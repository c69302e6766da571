"""Snapshots that break on their way, and Vaults that die under it: what is not whole is never committed, and leaves nothing."""

from __future__ import annotations

import base64
import gzip
import http.server
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from lab.bao import OpenBao
from lab.bao_cluster import OpenBaoCluster
from lab.objectstore import SeaweedFS
from recovery.errors import VaultUnreachable
from recovery.vault import backup as backups
from recovery.vault import catalog
from tests.conftest import s3_repository
from tests.faults.test_interrupted import interrupt, open_uploads, staged, until
from tests.integration.test_vault_backup import BACKUP, keys, nothing_is_there, vault_site, with_token
from tests.proxy import Proxy
from tests.support import Site, new_folder, s3_connection
from tests.unit.test_vault_snapshot import members, snapshot

SNAPSHOT = (*BACKUP, "--type", "snapshot")
MB = 1_000_000

pytestmark = pytest.mark.faults


@dataclass
class Answer:
    """What a front sends for a snapshot: `length` is what its header promises, of which it sends the body and no more."""

    body: bytes
    status: int = 200
    length: int | None = None
    content_type: str = "application/gzip"


Change = Callable[[bytes], Answer]


class Front:
    """An HTTP server before an OpenBao: it passes everything on but snapshots, of which it sends what `change` makes."""

    def __init__(self, vault: OpenBao) -> None:
        self.change: Change = Answer
        self.asked = 0
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                passed = {name: text for name, text in self.headers.items() if name.startswith("X-Vault")}
                said = httpx.request(
                    *(self.command, vault.address + self.path), headers=passed, content=sent, trust_env=False
                )
                answer = Answer(said.content, said.status_code, content_type=said.headers.get("Content-Type", ""))
                if self.path == "/v1/sys/storage/raft/snapshot" and said.status_code == 200:
                    front.asked += 1
                    answer = front.change(said.content)
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
                self.end_headers()
                self.wfile.write(answer.body)
                self.close_connection = answer.length is not None

            do_GET = do_POST = do_PUT = do_LIST = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Front:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def load(vault: OpenBao, megabytes: int, *, token: str | None = None) -> None:
    """What does not compress: a snapshot of it takes a while."""
    vault.request("POST", "sys/mounts/ballast", body={"type": "kv", "options": {"version": "1"}}, token=token)
    for number in range(megabytes * 2):
        text = base64.b64encode(os.urandom(500_000)).decode()
        vault.request("POST", f"ballast/{number}", body={"text": text}, token=token)


@pytest.fixture(scope="module")
def heavy() -> Iterator[OpenBao]:
    with new_folder() as folder, OpenBao(folder / "vault") as started:
        load(started, 24)
        yield started


@pytest.fixture
def front(vault: OpenBao) -> Iterator[Front]:
    with Front(vault) as started:
        yield started


@pytest.fixture
def fronted(folder: Path, vault: OpenBao, front: Front) -> Site:
    return vault_site(folder, vault, port=front.port)


@pytest.fixture
def short_election(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a minute for a node that does not come back."""
    monkeypatch.setattr(backups, "_ELECTION_SECONDS", 0.3)
    monkeypatch.setattr(backups, "_ELECTION_POLL_SECONDS", 0.1)


def flip(data: bytes, at: float) -> bytes:
    changed = bytearray(data)
    changed[int(len(data) * at)] ^= 1
    return bytes(changed)


PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>" + b"x" * 5000 + b"</body></html>"
WHOLE = members()

# What is sent as if it were whole: refused at once, without a second try.
WRONG: dict[str, tuple[Change, str]] = {
    "empty": (lambda data: Answer(b""), "Raft snapshot: nothing came: the stream is empty"),
    "page": (lambda data: Answer(PAGE, content_type="text/html"), "this is no snapshot but text: '<!DOCTYPE html>"),
    "json": (lambda data: Answer(b'{"errors":[]}'), "this is no snapshot but text: '{"),
    "two bytes": (lambda data: Answer(data[:2]), "Raft snapshot: "),
    "a half": (lambda data: Answer(data[: len(data) // 2]), "Raft snapshot: "),
    "all but one byte": (lambda data: Answer(data[:-1]), "it ends early"),
    "one byte more": (lambda data: Answer(data + b"\0"), "Raft snapshot: "),
    "twice": (lambda data: Answer(data + data), "Raft snapshot: "),
    "not sealed": (
        lambda data: Answer(snapshot(WHOLE[:3])),
        "SHA256SUMS.sealed is missing: the server's seal could not sign it",
    ),
    "sealed with nothing": (
        lambda data: Answer(snapshot([*WHOLE[:3], ("SHA256SUMS.sealed", b"")])),
        "hashicorp/vault issue 13130",
    ),
    "no tar": (lambda data: Answer(gzip.compress(b"hello" * 500)), "a tar header is damaged"),
    "flipped early": (lambda data: Answer(flip(data, 0.1)), "Raft snapshot: "),
    "flipped in the middle": (lambda data: Answer(flip(data, 0.5)), "Raft snapshot: "),
    "flipped late": (lambda data: Answer(flip(data, 0.999)), "Raft snapshot: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_whole_snapshot_fails_in_one_line_and_leaves_nothing(fronted: Site, front: Front, case: str) -> None:
    front.change, told = WRONG[case]
    message = fronted.error(*SNAPSHOT)
    assert told in message and " -> " in message, message
    assert front.asked == 1
    nothing_is_there(fronted)
    # Nothing is in the way of the next one, and a full backup ends as this one did.
    assert fronted.error(*BACKUP).startswith(message[:40])
    nothing_is_there(fronted)
    front.change = Answer
    fronted.run(*SNAPSHOT)


# What breaks off, and so may be tried again.
BROKEN: dict[str, Change] = {
    "before the first byte": lambda data: Answer(b"", length=len(data)),
    "after a byte": lambda data: Answer(data[:1], length=len(data)),
    "in the middle": lambda data: Answer(data[: len(data) // 2], length=len(data)),
    "before the last byte": lambda data: Answer(data[:-1], length=len(data)),
    "a gateway's error": lambda data: Answer(b"<html>bad gateway</html>", status=502, content_type="text/html"),
    "sealed": lambda data: Answer(b'{"errors":["Vault is sealed"]}', status=503, content_type="application/json"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_stream_that_breaks_off_again_and_again_is_given_up_and_leaves_nothing(
    fronted: Site, front: Front, short_election: None, case: str
) -> None:
    front.change = BROKEN[case]
    message = fronted.error(*SNAPSHOT)
    assert f"http://127.0.0.1:{front.port}: " in message and " -> " in message
    nothing_is_there(fronted)


@pytest.mark.parametrize("case", BROKEN)
def test_a_stream_that_breaks_off_once_gives_one_backup(
    fronted: Site, front: Front, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(backups, "_ELECTION_POLL_SECONDS", 0.1)
    front.change = lambda data: BROKEN[case](data) if front.asked == 1 else Answer(data)
    made = fronted.json(*BACKUP)
    assert front.asked == 2
    assert [backup["id"] for backup in fronted.json("list")["vault"]["app038"]["backups"]] == [made["id"]]
    assert all(f"/{made['id']}/" in key for key in keys(fronted)), "nothing is left of the first try"
    fronted.run("verify", made["id"], "--level", "opens")


@pytest.mark.parametrize("cut", [30_000, 60_000, 100_000])
def test_a_connection_that_is_cut_leaves_nothing(folder: Path, vault: OpenBao, short_election: None, cut: int) -> None:
    with Proxy(vault.port) as proxy:
        site = vault_site(folder, vault, port=proxy.port)
        proxy.cut_answers_after, proxy.cuts_left = cut, 1000
        message = site.error(*SNAPSHOT)
        assert " -> " in message and proxy.cuts > 0
        nothing_is_there(site)
        proxy.cuts_left = 0
        site.run("verify", site.json(*SNAPSHOT)["id"], "--level", "opens")


def test_a_cut_stream_leaves_no_upload_in_s3(
    folder: Path, heavy: OpenBao, objects: SeaweedFS, short_election: None
) -> None:
    with Proxy(heavy.port) as proxy:
        token = with_token(heavy, heavy.root_token) | {"port": proxy.port}
        site = vault_site(folder, heavy, repository=s3_repository(), **token)
        site.add(s3_connection(objects))
        proxy.cut_answers_after, proxy.cuts_left = 20 * MB, 1000
        assert "the snapshot broke off" in site.error(*SNAPSHOT)
        assert proxy.cuts >= 1
    assert open_uploads(site, objects) == [] and keys(site) == []


# Whoever takes it is stopped.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_backup_leaves_nothing(folder: Path, heavy: OpenBao, number: signal.Signals) -> None:
    with Proxy(heavy.port) as proxy:
        proxy.bytes_per_second = 4 * MB
        site = vault_site(folder, heavy, **with_token(heavy, heavy.root_token) | {"port": proxy.port})
        process = site.start(*BACKUP)
        until(lambda: staged(site))
        assert interrupt(process, number) == (130, ["error: interrupted -> nothing was committed; run it again"])
        nothing_is_there(site)
        proxy.bytes_per_second = None
        site.run(*SNAPSHOT)  # The lease went with it.


def test_an_interrupted_backup_leaves_no_upload_in_s3(folder: Path, heavy: OpenBao, objects: SeaweedFS) -> None:
    with Proxy(heavy.port) as proxy:
        proxy.bytes_per_second = 6 * MB
        token = with_token(heavy, heavy.root_token) | {"port": proxy.port}
        site = vault_site(folder, heavy, repository=s3_repository(), **token)
        site.add(s3_connection(objects))
        process = site.start(*BACKUP)
        until(lambda: open_uploads(site, objects))
        assert interrupt(process) == (130, ["error: interrupted -> nothing was committed; run it again"])
    assert open_uploads(site, objects) == [] and keys(site) == []


def test_a_killed_backup_commits_nothing_and_the_next_one_waits_for_its_lease_only(
    folder: Path, heavy: OpenBao
) -> None:
    with Proxy(heavy.port) as proxy:
        proxy.bytes_per_second = 4 * MB
        site = vault_site(folder, heavy, **with_token(heavy, heavy.root_token) | {"port": proxy.port})
        process = site.start(*BACKUP)
        until(lambda: staged(site))
        interrupt(process, signal.SIGKILL)
        assert keys(site) == []
        assert site.json("list")["vault"] == {"app038": {"backups": [], "problems": []}}
        message = site.error(*SNAPSHOT)
        assert "vault app038, snapshot is being written by " in message and f":{process.pid}:" in message
        (lease,) = (site.folder / "repository" / "leases").rglob("*.json")
        an_hour_ago = time.time() - 3600
        os.utime(lease, (an_hour_ago, an_hour_ago))
        proxy.bytes_per_second = None
        made = site.json(*SNAPSHOT)
        site.run("verify", made["id"], "--level", "opens")


def test_of_two_backups_at_once_one_is_made(folder: Path, heavy: OpenBao) -> None:
    with Proxy(heavy.port) as proxy:
        proxy.bytes_per_second = 8 * MB
        site = vault_site(folder, heavy, **with_token(heavy, heavy.root_token) | {"port": proxy.port})
        process = site.start(*SNAPSHOT)
        until(lambda: staged(site))
        message = site.error(*BACKUP)
        assert "vault app038, snapshot is being written by " in message and f":{process.pid}:" in message
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    (listed,) = site.json("list")["vault"]["app038"]["backups"]
    assert listed["kind"] == "snapshot"


# The Vault that is asked.


@pytest.fixture(scope="module")
def loaded(vault_cluster: OpenBaoCluster) -> OpenBaoCluster:
    leader = vault_cluster.leader()
    load(leader, 20, token=vault_cluster.root_token)
    return vault_cluster


def cluster_site(folder: Path, cluster: OpenBaoCluster, nodes: list[OpenBao]) -> Site:
    host = ",".join(f"{node.host}:{node.port}" for node in nodes)
    token = {"host": host, "port": None, "login": "", "password": cluster.root_token, "extra": {}}
    return vault_site(folder, cluster.nodes[0], **token)


def test_asked_at_a_standby_the_leader_is_backed_up(folder: Path, vault_cluster: OpenBaoCluster) -> None:
    leader, (standby, _) = vault_cluster.wait_for_leader(), vault_cluster.standbys()
    site = cluster_site(folder, vault_cluster, [standby])
    for kind in ("full", "snapshot", "policies"):
        site.run(*BACKUP, "--type", kind)
    for backup in catalog.read(site.installation().store("main"), "app038").backups:
        assert backup.manifest.server.address == leader.address
    site.run("verify", "--level", "opens")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["snapshot", "full"])
def test_a_leader_that_is_killed_while_its_snapshot_streams_is_passed_over(
    folder: Path, loaded: OpenBaoCluster, kind: backups.Kind
) -> None:
    victim = loaded.wait_for_leader()
    site = cluster_site(folder, loaded, loaded.nodes)
    killed_after = []

    def kill(what: str, done: int, expected: int | None) -> None:
        if what == "snapshot" and not killed_after:
            killed_after.append(done)
            victim.kill()

    try:
        made = backups.take(site.installation().vault_source("app038"), kind, progress=kill)
    finally:
        victim.start()
    assert 0 < killed_after[0] < 2 * MB < made.object("snapshot").stored_bytes
    assert made.manifest.server.address != victim.address
    (listed,) = site.json("list")["vault"]["app038"]["backups"]
    assert listed["id"] == made.id
    assert all(key.startswith(made.folder) for key in keys(site)), "nothing is left of the first try"
    site.run("verify", made.id, "--level", "opens")


def test_a_vault_that_dies_alone_fails_the_backup_and_leaves_nothing(folder: Path, short_election: None) -> None:
    with OpenBao(folder / "vault") as vault:
        load(vault, 10)
        site = vault_site(folder, vault, **with_token(vault, vault.root_token))
        source = site.installation().vault_source("app038")
        with pytest.raises(VaultUnreachable) as caught:
            backups.take(source, "snapshot", progress=lambda what, done, expected: vault.kill())
        assert f"127.0.0.1:{vault.port}" in str(caught.value)
        nothing_is_there(site)


def test_a_store_that_dies_under_way_fails_the_backup_in_one_line(
    folder: Path, heavy: OpenBao, objects: SeaweedFS
) -> None:
    with Proxy(objects.port) as proxy, Proxy(heavy.port) as before:
        before.bytes_per_second = 8 * MB
        token = with_token(heavy, heavy.root_token) | {"port": before.port}
        site = vault_site(folder, heavy, repository=s3_repository(), **token)
        site.add(s3_connection(objects, endpoint=proxy.endpoint))
        process = site.start(*SNAPSHOT)
        until(lambda: open_uploads(site, objects))
        proxy.refuse = True
        proxy.break_connections()
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 1
        assert len([line for line in errors.splitlines() if line.startswith("error: ")]) == 1, errors
        assert "Traceback" not in errors
        proxy.refuse = False
        assert keys(site) == []
