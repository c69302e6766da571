"""One contract for every store: S3 with Object Lock, S3 without, a directory, and the fake that other tests use."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyrage
import pytest

from lab.objectstore import SeaweedFS
from recovery.config import S3Repository
from recovery.errors import LeaseError, ObjectExists, ObjectMissing
from recovery.repository.directory import DirectoryStore
from recovery.repository.in_memory import seal_bytes
from recovery.repository.lease import Lease
from recovery.repository.s3 import S3Store, make_client
from recovery.repository.sealing import check_stored, unseal_bytes
from recovery.repository.store import ObjectStore, put_once
from tests.conftest import s3_repository
from tests.memory import MemoryStore
from tests.support import s3_connection

KINDS = ["s3-locked", "s3-plain", "directory", "memory"]
MIB = 1 << 20


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "directory":
        yield DirectoryStore(tmp_path)
    elif request.param == "memory":
        fake = MemoryStore()
        fake.clock = datetime.now(UTC)
        yield fake
    else:
        bucket = request.param.removeprefix("s3-")
        objects: SeaweedFS = request.getfixturevalue("objects")
        settings = S3Repository.model_validate(s3_repository(bucket=bucket, locked=bucket == "locked")["s3"])
        with contextlib.closing(make_client(s3_connection(objects))) as client:
            yield S3Store(client, settings)


def write(store: ObjectStore, key: str, parts: list[bytes]) -> None:
    upload = store.upload(key, size_limit=1 << 30)
    for part in parts:
        upload.write_part(part)
    upload.complete()


def read(store: ObjectStore, key: str) -> bytes:
    reader = store.open(key)
    try:
        pieces = []
        while piece := reader.read(100_000):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        reader.close()


def test_the_store_can_do_what_is_asked_of_it(store: ObjectStore) -> None:
    store.check()


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000])
def test_what_is_put_is_got(store: ObjectStore, data: bytes) -> None:
    store.put("a/b.json", data)
    assert store.get("a/b.json") == data
    assert read(store, "a/b.json") == data
    assert store.head("a/b.json").size == len(data)


def test_what_is_uploaded_in_parts_is_read_as_a_stream(store: ObjectStore) -> None:
    part = store.upload("probe", size_limit=1 << 30)
    parts = [b"1" * part.part_size, b"2" * part.part_size, b"the end"]
    part.abort()
    write(store, "big", parts)
    assert read(store, "big") == b"".join(parts)
    assert [info.key for info in store.scan("")] == ["big"]


@pytest.mark.parametrize("parts", [[], [b""], [b"one"]])
def test_an_upload_of_one_part_or_none_is_an_object_too(store: ObjectStore, parts: list[bytes]) -> None:
    write(store, "small", parts)
    assert store.get("small") == b"".join(parts)


def test_an_aborted_upload_leaves_nothing_and_may_be_aborted_again(store: ObjectStore) -> None:
    upload = store.upload("gone", size_limit=1 << 30)
    upload.write_part(b"1" * upload.part_size)
    upload.write_part(b"2" * upload.part_size)
    upload.abort()
    upload.abort()
    assert list(store.scan("")) == []
    with pytest.raises(ObjectMissing):
        store.get("gone")


def test_an_upload_is_invisible_until_it_is_complete(store: ObjectStore) -> None:
    upload = store.upload("later", size_limit=1 << 30)
    upload.write_part(b"1" * upload.part_size)
    assert list(store.scan("")) == []
    upload.complete()
    assert [info.key for info in store.scan("")] == ["later"]


def test_a_conditional_put_refuses_a_second_writer(store: ObjectStore) -> None:
    store.put("manifest.json", b"first", only_if_absent=True)
    with pytest.raises(ObjectExists, match="an object of this name exists already"):
        store.put("manifest.json", b"second", only_if_absent=True)
    assert store.get("manifest.json") == b"first"


def test_the_same_bytes_again_are_success_and_others_are_refused(store: ObjectStore) -> None:
    put_once(store, "manifest.json", b"first")
    put_once(store, "manifest.json", b"first")
    with pytest.raises(ObjectExists):
        put_once(store, "manifest.json", b"second")
    assert store.get("manifest.json") == b"first"


def test_of_many_writers_at_once_one_wins(store: ObjectStore) -> None:
    together = threading.Barrier(8)

    def put(number: int) -> bool:
        together.wait()
        try:
            store.put("manifest.json", b"%d" % number, only_if_absent=True)
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(8) as writers:
        won = list(writers.map(put, range(8)))
    assert sum(won) == 1
    assert store.get("manifest.json") == b"%d" % won.index(True)


def test_a_missing_object_is_told_by_every_call(store: ObjectStore) -> None:
    for call in (store.get, store.head, lambda key: store.open(key).read()):
        with pytest.raises(ObjectMissing) as caught:
            call("not/there")
        assert "not/there: the object is not there" in str(caught.value)


def test_scan_and_folders_see_one_prefix_in_order(store: ObjectStore) -> None:
    for key in ("b/2", "b/1/x", "b/10/x", "a/1", "bb/1"):
        store.put(key, key.encode())
    assert [info.key for info in store.scan("b/")] == ["b/1/x", "b/10/x", "b/2"]
    assert [info.key for info in store.scan("b")] == ["b/1/x", "b/10/x", "b/2", "bb/1"]
    assert {info.key: info.size for info in store.scan("")}["b/10/x"] == 6
    assert store.folders("") == ["a", "b", "bb"]
    assert store.folders("b/") == ["1", "10"]
    assert store.folders("nowhere/") == []


def test_keys_may_hold_what_a_database_may_be_called(store: ObjectStore) -> None:
    key = "dumps/o%27dd%20%22base%22%2F%251.pgdump.age"
    write(store, key, [b"dump"])
    assert read(store, key) == b"dump"
    assert [info.key for info in store.scan("dumps/")] == [key]


def test_what_carries_no_lock_is_deleted_for_good(store: ObjectStore) -> None:
    store.put("lease", b"1", locked=False)
    store.put("lease", b"2", locked=False)
    store.delete("lease")
    store.delete("lease")
    assert list(store.scan("")) == []
    store.put("lease", b"3", only_if_absent=True, locked=False)
    assert store.get("lease") == b"3"


def test_deleting_one_object_spares_the_ones_whose_names_begin_like_it(store: ObjectStore) -> None:
    store.put("lease", b"1", locked=False)
    store.put("lease2", b"2", locked=False)
    store.delete("lease")
    assert [info.key for info in store.scan("")] == ["lease2"]


def test_the_stores_clock_and_an_objects_age_agree(store: ObjectStore) -> None:
    store.put("now", b"")
    assert abs(store.now() - store.head("now").modified) < timedelta(seconds=5)
    assert abs(next(iter(store.scan("now"))).modified - store.head("now").modified) < timedelta(seconds=2)


def test_sealed_objects_live_in_every_store(store: ObjectStore) -> None:
    identity = pyrage.x25519.Identity.generate()
    sealed = seal_bytes(store, "sealed", b"content" * 100_000, recipients=[identity.to_public()])
    check_stored(store, sealed)
    assert unseal_bytes(store, sealed, identities=[identity]) == b"content" * 100_000


def test_leases_are_kept_in_every_store(store: ObjectStore) -> None:
    with Lease(store, kind="postgres", name="app038", job="full") as held:
        held.check()
        with pytest.raises(LeaseError), Lease(store, kind="postgres", name="app038", job="full"):
            pass
    with Lease(store, kind="postgres", name="app038", job="full"):
        pass
    assert len(list(store.scan("leases/"))) == 1


def test_an_object_that_is_deleted_during_a_scan_is_no_error(store: ObjectStore) -> None:
    for number in range(3):
        store.put(f"leases/{number}", b"", locked=False)
    scanning = iter(store.scan("leases/"))
    assert next(scanning).key == "leases/0"
    store.delete("leases/1")
    assert [info.key for info in scanning][-1] == "leases/2"


def test_metadata_stays_with_an_object_and_goes_with_it(store: ObjectStore) -> None:
    store.put("wal/segment", b"x", only_if_absent=True, metadata={"sealed-hash": "abc"})
    assert store.head("wal/segment").metadata == {"sealed-hash": "abc"}
    with pytest.raises(ObjectExists):
        store.put("wal/segment", b"y", only_if_absent=True, metadata={"sealed-hash": "def"})
    assert store.head("wal/segment").metadata == {"sealed-hash": "abc"}
    assert [info.key for info in store.scan("")] == ["wal/segment"] and store.folders("") == ["wal"]
    store.put("other", b"x")
    assert store.head("other").metadata == {}


def test_an_upload_that_was_left_open_is_found_and_aborted(store: ObjectStore) -> None:
    upload = store.upload("postgres/app038/big", size_limit=1 << 30)
    for number in range(2):
        upload.write_part(bytes([number]) * upload.part_size)
    (found,) = store.unfinished("postgres/app038/")
    assert found.key == "postgres/app038/big" or found.key.startswith(".uploads/")
    assert abs(store.now() - found.begun) < timedelta(seconds=10)
    found.abort()
    found.abort()
    assert store.unfinished("postgres/app038/") == []
    upload.abort()


def test_an_upload_that_ended_is_not_found(store: ObjectStore) -> None:
    assert store.unfinished("") == []
    write(store, "done", [b"x" * 8 * MIB, b"y"])
    assert store.unfinished("") == []


def test_the_end_of_an_objects_lock_is_known(store: ObjectStore, request: pytest.FixtureRequest) -> None:
    store.put("kept", b"x")
    store.put("passing", b"x", locked=False)
    assert store.head("passing").locked_until is None
    until = store.head("kept").locked_until
    if request.node.callspec.params["store"] == "s3-locked":
        assert until is not None and abs(until - store.now() - timedelta(days=1)) < timedelta(minutes=1)
    else:
        assert until is None


def test_a_directory_whose_last_object_is_deleted_is_no_folder_any_more(tmp_path: Path) -> None:
    """AWS does the same. SeaweedFS goes on listing an emptied folder, and nothing here relies on it."""
    store = DirectoryStore(tmp_path)
    store.put("a/b/1", b"x", metadata={"kept": "too"})
    store.put("a/c/1", b"x")
    store.delete("a/b/1")
    assert store.folders("a/") == ["c"]
    store.put("a/b/2", b"x")
    assert store.folders("a/") == ["b", "c"]


def test_writers_and_deleters_of_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)

    def work(number: int) -> None:
        for turn in range(100):
            key = f"wal/pieces/{number}-{turn}"
            store.put(key, b"x", only_if_absent=bool(turn % 2))
            assert store.get(key) == b"x"
            assert key in {info.key for info in store.scan("wal/")}
            store.delete(key)

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(work, range(4)))
    assert list(store.scan("")) == [] and store.folders("") == []
