"""manifest.json: canonical, read back the same, and refused when it is newer, damaged, or points outside its folder."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery.errors import FormatError
from recovery.manifest import FORMAT_VERSION, Maker, Manifest, Server, StoredObject, Tablespace, Wal, decode

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def example(**changes: Any) -> Manifest:
    server = Server(
        system_identifier="7301",
        version="17.10",
        version_number=170010,
        data_checksums=True,
        wal_log_hints=False,
        block_bytes=8192,
        wal_segment_bytes=16 << 20,
        in_recovery=False,
        libc_version="2.36",
        icu_version=None,
        superuser="postgres",
        preload=[],
        tablespaces=[Tablespace(oid=16385, name="archive", path="/srv/archive", bytes=10)],
        databases=[],
    )
    fields: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "id": "20261123T020000Z-full",
        "kind": "full",
        "product": "postgresql",
        "system": "app038",
        "started_at": datetime(2026, 11, 23, 2, tzinfo=UTC),
        "finished_at": datetime(2026, 11, 23, 2, 1, tzinfo=UTC),
        "server": server,
        "wal": Wal(start_lsn="0/2000028", start_timeline=1, end_lsn="0/2000120", end_timeline=1, included=True),
        "recipients": ["age1example"],
        "maker": Maker(program="recovery", version="0.1.0", host="worker"),
        "timings_seconds": {"copy": 1.5},
        "objects": [item(), item(key="backup_manifest.zst", role="backup_manifest", encrypted=False)],
    }
    return Manifest(**(fields | changes))


def item(**changes: Any) -> StoredObject:
    fields: dict[str, Any] = {
        "key": "volumes/00000.tar.zst.age",
        "role": "volume",
        "compression": "zstd",
        "encrypted": True,
        "stored_bytes": 100,
        "stored_sha256": "00" * 32,
        "sealed_bytes": 300,
        "sealed_hash": "xxh3-128:00",
    }
    return StoredObject(**(fields | changes))


def document(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(example().encode())
    return found | changes


def refused(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        decode(data, where="store/manifest.json")
    return str(caught.value)


def test_it_reads_back_the_same() -> None:
    assert decode(example().encode(), where="m") == example()


def test_it_is_canonical_json() -> None:
    data = example(notes=["ünïcode"]).encode()
    assert data.endswith(b"}\n") and data.count(b"\n") == 1
    assert "ünïcode".encode() in data
    canonical = json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    assert data == canonical.encode()


@given(notes=st.lists(TEXT, max_size=3), system=TEXT, timings=st.dictionaries(TEXT, st.floats(0, 1e9), max_size=3))
@settings(max_examples=50)
def test_the_same_backup_is_always_the_same_bytes(notes: list[str], system: str, timings: dict[str, float]) -> None:
    once = example(notes=notes, system=system, timings_seconds=timings)
    assert decode(once.encode(), where="m").encode() == once.encode()


def test_sums_and_the_recovery_point_follow_from_it() -> None:
    full, dump = example(), example(kind="dump")
    assert (full.stored_bytes, full.source_bytes) == (200, 300)
    assert full.recovery_point == full.finished_at
    assert dump.recovery_point == dump.started_at


def test_a_newer_format_is_refused_by_number_and_not_guessed_at() -> None:
    assert refused(json.dumps(document(format_version=2, objects="in another shape")).encode()) == (
        "store/manifest.json: the manifest has format version 2, and this program reads up to 1 "
        "-> use the version of recovery that wrote it, or a newer one"
    )


def test_keys_that_a_later_minor_change_adds_are_ignored() -> None:
    assert decode(json.dumps(document(colour="blue")).encode(), where="m") == example()


@pytest.mark.parametrize("data", [b"", b"\x00\xff", b"[]", b"null", b"{}", b'"text"', example().encode()[:-40]])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    assert refused(data) == "store/manifest.json: this is not a manifest -> the object is damaged: use another backup"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"objects": "none"}, "objects"),
        ({"id": "../../elsewhere"}, "id"),
        ({"started_at": "2026-11-23T02:00:00"}, "started_at"),
        ({"kind": "copy"}, "kind"),
        ({"server": {}}, "server.system_identifier"),
    ],
)
def test_a_manifest_that_is_not_valid_is_refused_with_the_place(change: dict[str, Any], path: str) -> None:
    assert f"the manifest is not valid at {path}" in refused(json.dumps(document(**change)).encode())


@pytest.mark.parametrize(
    "key", ["/etc/passwd", "../manifest.json", "volumes/../../x", "volumes//x", "", ".", "volumes/."]
)
def test_an_object_outside_the_backups_folder_is_refused(key: str) -> None:
    objects = [item().model_dump() | {"key": key}]
    assert "an object's key must stay below the backup's folder" in refused(
        json.dumps(document(objects=objects)).encode()
    )


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail_in_another_way(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode(data, where="m")


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=200)
def test_a_flipped_byte_never_fails_in_another_way(position: int, value: int) -> None:
    data = bytearray(example().encode())
    data[position % len(data)] = value
    with contextlib.suppress(FormatError):
        decode(bytes(data), where="m")
