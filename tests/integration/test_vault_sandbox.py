"""A throwaway node: a snapshot goes in, the original shares open it, nothing gets out, and nothing is left of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import hvac
import psutil
import pytest

from lab.bao import OpenBao, binary
from recovery.errors import PreconditionError, RestoreError, ServerError
from recovery.manifest import Seal
from recovery.vault import apply
from recovery.vault.server import SandboxVault, find_binary
from tests.support import OWNER, REPOSITORY, new_folder

SEAL = Seal(type="shamir", shares=3, threshold=2)


@dataclass(frozen=True)
class Source:
    """A Vault that is gone: what is left is its snapshot and its shares."""

    snapshot: bytes
    shares: list[str]


@pytest.fixture(scope="module")
def source() -> Iterator[Source]:
    with new_folder() as folder, OpenBao(folder / "vault") as vault:
        client = hvac.Client(url=vault.address, token=vault.root_token)
        client.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
        client.secrets.kv.v2.create_or_update_secret("app038", {"password": "kept"})
        client.sys.enable_secrets_engine("database")
        snapshot = client.sys.take_raft_snapshot().content
        yield Source(snapshot, vault.shares)


def restored(node: SandboxVault, vault: Source, seal: Seal = SEAL) -> hvac.Client:
    client = node.initialise(seal)
    apply.restore(client, [vault.snapshot], force=True)
    apply.wait_applied(client)
    apply.unseal(client, vault.shares)
    apply.wait_active(client)
    return node.client(apply.generate_root(client, vault.shares))


class Odd(OpenBao):
    """A Vault with settings of its own."""

    settings: ClassVar[dict[str, Any]] = {}

    def _config(self) -> dict[str, object]:
        return super()._config() | self.settings


class WithAuditDevices(Odd):
    """Made through the API, as every HashiCorp Vault's and an older OpenBao's are."""

    settings: ClassVar[dict[str, Any]] = {"unsafe_allow_api_audit_creation": True}


class KeyService(Odd):
    """Unsealed by a key service: a file is the one service that needs no network."""

    def _make_ready(self) -> None:
        if not self.request("GET", "sys/init", token="")["initialized"]:
            made = self.request("PUT", "sys/init", token="", body={"recovery_shares": 3, "recovery_threshold": 2})
            self.root_token, self.shares = made["root_token"], made["recovery_keys_base64"]
        self.request("GET", "sys/health", token="")


@pytest.fixture
def node(folder: Path) -> Iterator[SandboxVault]:
    with SandboxVault(folder / "node", product="openbao", binary=binary()) as started:
        yield started


def test_a_snapshot_is_opened_by_the_original_shares_and_gives_back_its_secrets(
    source: Source, node: SandboxVault
) -> None:
    client = node.initialise(SEAL)
    with pytest.raises(apply.SealMismatch, match="the node's keys are not those that sealed this snapshot"):
        apply.restore(client, [source.snapshot], force=False)
    half = len(source.snapshot) // 2
    apply.restore(client, iter([source.snapshot[:half], source.snapshot[half:]]), force=True)
    apply.wait_applied(client)
    stranger = OTHER_SHARES[0]
    with pytest.raises(RestoreError, match="the shares given do not open this snapshot -> give the original") as told:
        apply.unseal(client, [stranger, source.shares[0]])
    assert stranger not in str(told.value) and source.shares[0] not in str(told.value)
    with pytest.raises(RestoreError, match="1 different shares were given, and this snapshot needs 2"):
        apply.unseal(client, [source.shares[0], source.shares[0]])
    apply.unseal(client, source.shares[1:])
    apply.wait_active(client)
    with pytest.raises(RestoreError, match="no root token can be made from the shares"):
        apply.generate_root(client, OTHER_SHARES)
    root = node.client(apply.generate_root(client, source.shares))
    found = root.secrets.kv.v2.read_secret_version("app038", raise_on_deleted_version=True)
    assert found["data"]["data"] == {"password": "kept"}
    # The trial: the node has the snapshot's keys now, and takes it without force.
    apply.restore(root, [source.snapshot], force=False)
    apply.wait_active(root)


# Of another Vault, with the same numbers.
OTHER_SHARES = [
    "gEw7YhiyUQk8bE3rfa2l2n3eYAqVVVHdEyQq8o0lcZ0i",
    "3pZ0y5dT4Wf4XoI1lA2bq8WcJ1a9ZQk0n5s6r7t8u9vw",
]


def test_a_snapshot_that_breaks_off_or_is_cut_is_refused_and_the_node_keeps_what_it_had(
    source: Source, node: SandboxVault
) -> None:
    client = node.initialise(SEAL)

    def breaks() -> Iterator[bytes]:
        yield source.snapshot[:1000]
        raise RestoreError("the store went away")

    with pytest.raises(RestoreError, match="the store went away"):
        apply.restore(client, breaks(), force=True)
    with pytest.raises(RestoreError, match="the node does not take the snapshot: Vault answers: "):
        apply.restore(client, [source.snapshot[:1000]], force=True)
    with pytest.raises(RestoreError, match="the node does not take the snapshot: Vault answers: "):
        apply.restore(client, [b"<html>no snapshot</html>"], force=True)
    assert client.is_authenticated()


def test_audit_devices_of_the_snapshot_neither_write_to_this_machine_nor_keep_it_from_serving(folder: Path) -> None:
    trail = folder / "trail" / "audit.log"
    with WithAuditDevices(folder / "vault") as vault, socket.create_server(("127.0.0.1", 0)) as collector:
        client = hvac.Client(url=vault.address, token=vault.root_token)
        options = {"address": f"127.0.0.1:{collector.getsockname()[1]}", "socket_type": "tcp"}
        client.sys.enable_audit_device("socket", path="remote", options=options)
        only_socket = Source(client.sys.take_raft_snapshot().content, vault.shares)
        client.sys.enable_audit_device("file", path="trail", options={"file_path": str(trail)})
        with_file = Source(client.sys.take_raft_snapshot().content, vault.shares)
    shutil.rmtree(trail.parent)
    for number, vault_ in enumerate([only_socket, with_file]):
        with SandboxVault(folder / f"node{number}", product="openbao", binary=binary()) as node:
            assert "remote/" in restored(node, vault_).sys.list_enabled_audit_devices()["data"]
    assert (folder / "node1").joinpath(*trail.parts[1:]).is_file()
    assert not trail.parent.exists()


@pytest.mark.slow
def test_a_long_upload_is_waited_for(source: Source, node: SandboxVault) -> None:
    def slow() -> Iterator[bytes]:
        yield source.snapshot[:1000]
        time.sleep(35)  # A listener's http_read_timeout is 30 s unless it is told otherwise.
        yield source.snapshot[1000:]

    client = node.initialise(SEAL)
    apply.restore(client, slow(), force=True)
    apply.wait_applied(client)


def test_a_node_that_a_key_service_unseals_is_waited_for_too(folder: Path) -> None:
    key = folder / "key"
    key.write_bytes(os.urandom(32))
    seal = {"seal": {"static": {"current_key_id": "1", "current_key": f"file://{key}"}}}
    (folder / "seal.json").write_text(json.dumps(seal))
    vault = KeyService(folder / "vault")
    vault.settings = seal
    with vault:
        client = hvac.Client(url=vault.address, token=vault.root_token)
        client.sys.enable_secrets_engine("kv", path="kept", options={"version": "1"})
        kept = Source(client.sys.take_raft_snapshot().content, vault.shares)
    with SandboxVault(
        folder / "node", product="openbao", binary=binary(), seal_config=folder / "seal.json", isolated=True
    ) as node:
        root = restored(node, kept, Seal(type="static", shares=3, threshold=2))
        assert "kept/" in root.sys.list_mounted_secrets_engines()["data"]


def test_a_restored_node_that_does_not_serve_is_told_with_its_log(
    source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "_ACTIVE_SECONDS", 0.5)
    with (
        pytest.raises(apply.NotServing, match=r"^http\+unix://sandbox: the restored node does not become active: .+"),
        SandboxVault(folder / "node", product="openbao", binary=binary()) as node,
    ):
        apply.wait_active(node.client())
    assert not _processes(folder)


def test_a_long_path_is_no_hindrance(folder: Path) -> None:
    deep = folder / ("a" * 90) / ("b" * 90)
    with SandboxVault(deep, product="openbao", binary=binary()) as node:
        assert node.client().seal_status["initialized"] is False


def test_a_node_reaches_nothing(node: SandboxVault) -> None:
    client = node.initialise(SEAL)
    client.sys.enable_secrets_engine("database")
    with socket.create_server(("127.0.0.1", 0)) as production:
        production.settimeout(0.5)
        port = production.getsockname()[1]
        with pytest.raises(hvac.exceptions.VaultError, match=r"refused|unreachable"):
            client.secrets.database.configure(
                name="live",
                plugin_name="postgresql-database-plugin",
                allowed_roles="*",
                connection_url=f"postgresql://vault:secret@127.0.0.1:{port}/postgres?connect_timeout=2",
                verify_connection=True,
            )
        with pytest.raises(TimeoutError):
            production.accept()


def test_an_open_node_is_for_hosts_that_keep_it_from_production(folder: Path) -> None:
    with SandboxVault(folder / "node", product="openbao", binary=binary(), isolated=False) as node:
        assert node.initialise(SEAL).is_authenticated()


def test_nothing_is_left_of_it(folder: Path) -> None:
    node = SandboxVault(folder / "node", product="openbao", binary=binary())
    before = set(Path("/tmp").iterdir())
    with node:
        assert _processes(folder)
        assert (folder / "node").stat().st_mode & 0o777 == 0o700
    assert not _processes(folder) and set(Path("/tmp").iterdir()) - before <= {folder}


@pytest.mark.parametrize("user", sorted({os.geteuid(), OWNER.uid if OWNER else os.geteuid()}))
def test_it_dies_with_whoever_started_it(folder: Path, user: int) -> None:
    """As root and as a normal user: the one needs no user namespace, the other does."""
    os.chown(folder, user, -1)
    program = f"""
        import sys, time
        from pathlib import Path
        from recovery.vault.server import SandboxVault
        with SandboxVault(Path({str(folder / "node")!r}), product="openbao", binary=Path({str(binary())!r})):
            print("up", flush=True)
            time.sleep(60)
    """
    starter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        text=True,
        user=user,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "include")},
    )
    assert starter.stdout is not None
    with starter.stdout:
        assert starter.stdout.readline() == "up\n"
    assert _processes(folder)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    deadline = time.monotonic() + 5
    while _processes(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _processes(folder)


def test_what_keeps_it_from_starting_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(PreconditionError, match="the program `bao` is not on PATH -> install it where drills run"):
        find_binary("openbao", None)
    monkeypatch.undo()
    with pytest.raises(
        PreconditionError, match=r"nothing: there is no program that can be run -> correct vault.NAME.b"
    ):
        find_binary("vault", folder / "nothing")
    with pytest.raises(PreconditionError, match=r"there is no program that can be run -> correct vault.NAME.b"):
        find_binary("vault", folder)
    script = folder / "bao"
    script.write_text("#!/bin/sh\nexec bao\n")
    script.chmod(0o755)
    with (
        pytest.raises(
            ServerError, match=r"bao is a script or needs libraries: name the program itself as vault.NAME.b"
        ),
        SandboxVault(folder / "script", product="openbao", binary=script),
    ):
        pass
    broken = folder / "broken.hcl"
    broken.write_text("seal {")
    with (
        pytest.raises(ServerError, match=r"the throwaway node did not start: .*rror"),
        SandboxVault(folder / "node", product="openbao", binary=binary(), seal_config=broken),
    ):
        pass
    assert not _processes(folder)


def test_without_namespaces_it_refuses_and_names_the_way_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir()
    unshare = folder / "bin" / "unshare"
    unshare.write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2\nexit 1\n")
    unshare.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    with (
        pytest.raises(PreconditionError, match=r"Operation not permitted.*set sandbox.network: open"),
        SandboxVault(folder / "node", product="openbao", binary=binary()),
    ):
        pass


def _processes(folder: Path) -> list[Any]:
    """The nodes that run with this folder as their working directory or their root directory."""
    nodes = [each for each in psutil.process_iter(["cmdline"]) if "-config=config.json" in (each.info["cmdline"] or [])]
    return [each for each in nodes if _is_in(folder, each.pid)]


def _is_in(folder: Path, pid: int) -> bool:
    try:
        return any(Path(f"/proc/{pid}/{name}").readlink().is_relative_to(folder) for name in ("cwd", "root"))
    except OSError:
        return False
