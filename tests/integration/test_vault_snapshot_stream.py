"""The snapshot verifier against what a real OpenBao sends."""

from __future__ import annotations

from dataclasses import dataclass

import hvac
import pytest

from lab.bao import OpenBao
from tests.unit.test_vault_snapshot import check_flips, contents_of, cuts, refusal, verify

ENTRIES = 300


@dataclass(frozen=True)
class Real:
    """A snapshot as the server sent it, and what the server says of itself."""

    data: bytes
    mounts: dict[str, str]
    node: str
    index: int


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    with OpenBao(tmp_path_factory.mktemp("snapshot") / "vault") as server:
        client = hvac.Client(url=server.address, token=server.root_token)
        client.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
        client.sys.enable_secrets_engine("transit")
        client.sys.enable_auth_method("approle")
        client.secrets.transit.create_key("app038")
        client.auth.approle.create_or_update_approle("backup")
        for number in range(ENTRIES):
            client.secrets.kv.v2.create_or_update_secret(f"payroll/{number}", {"amount": "1" * number})
        index = client.sys.read_leader_status()["raft_applied_index"]
        mounts = client.sys.list_mounted_secrets_engines()["data"]
        methods = client.sys.list_auth_methods()["data"]
        with client.sys.take_raft_snapshot() as answer:
            data = answer.content
        uuids = {path: values["uuid"] for path, values in (mounts | methods).items()}
        return Real(data, uuids, server.name, index)


def test_a_real_snapshot_is_whole(real: Real) -> None:
    facts = verify(real.data)
    assert facts.index >= real.index
    assert facts.term > 0
    assert (facts.version, facts.snapshot_id, facts.servers) == (1, "bolt-snapshot", (real.node,))
    assert facts.state_bytes == len(dict(contents_of(real.data))["state.bin"])
    assert set(facts.keys) == {"auth", "core", "logical", "sys"}
    # A version and its metadata for each entry.
    assert 2 * ENTRIES <= facts.mount_keys[real.mounts["secret/"]] <= 2 * ENTRIES + 20
    assert facts.mount_keys[real.mounts["transit/"]] == 2
    assert facts.mount_keys[real.mounts["approle/"]] >= 1
    assert set(facts.mount_keys) <= set(real.mounts.values())


def test_its_pieces_may_have_any_size(real: Real) -> None:
    whole = verify(real.data)
    for size in (1, 511, 4096, 65_537):
        assert verify(real.data, sizes=[size] * (len(real.data) // size)) == whole


def test_every_cut_of_a_real_snapshot_is_refused(real: Real) -> None:
    for length in cuts(real.data):
        refusal(real.data[:length])
    for _, content in contents_of(real.data):
        if (at := real.data.find(content[-40:])) >= 0:
            for length in range(at, at + 45):
                refusal(real.data[:length])


def test_every_flipped_bit_of_a_real_snapshot_is_refused(real: Real) -> None:
    assert check_flips(real.data, count=500, seed=3) >= 490
