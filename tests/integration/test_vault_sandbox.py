"""A throwaway node: a snapshot goes in, the original shares open it, nothing gets out, and nothing is left of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
import psutil
import pytest

from lab.bao import OpenBao, binary
from recovery.errors import PreconditionError, RestoreError, ServerError
from recovery.manifest import Seal
from recovery.vault import apply
from recovery.vault.server import SandboxVault, find_binary
from tests.support import REPOSITORY, new_folder

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
    with node:
        assert _processes(folder)
        sockets = node.socket_folder
        assert sockets.stat().st_mode & 0o777 == 0o700
    assert not _processes(folder) and not sockets.exists()


def test_it_dies_with_whoever_started_it(folder: Path) -> None:
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
    """What runs with this folder in its arguments, but for whoever started it."""
    found = []
    for process in psutil.process_iter(["cmdline", "exe"]):
        arguments = process.info["cmdline"] or []
        if any(f"-config={folder}" in argument for argument in arguments):
            found.append(process)
    return found
