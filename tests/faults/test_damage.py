"""A repository that rots, or that somebody has changed: found, told by name, and never restored from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from recovery.repository.catalog import Backup
from recovery.repository.store import ObjectStore
from tests.conftest import directory_repository, s3_repository
from tests.forge import forge, with_member
from tests.support import Site, make_site, new_folder, s3_connection


@dataclass
class Rot:
    """An installation whose objects a test damages; afterwards they are as they were."""

    site: Site
    full: Backup
    dump: Backup

    @property
    def store(self) -> ObjectStore:
        return self.site.store()

    def key(self, backup: Backup, role: str) -> str:
        return backup.objects(role)[-1].key


@pytest.fixture(scope="module")
def kept_in_directory(server: PostgresServer) -> Iterator[Rot]:
    with new_folder() as folder:
        site = make_site(folder, server, repository=directory_repository(folder))
        yield Rot(site, site.backup("full"), site.backup("dump"))


@pytest.fixture(scope="module")
def kept_in_s3(server: PostgresServer, objects: SeaweedFS) -> Iterator[Rot]:
    with new_folder() as folder:
        site = make_site(folder, server, repository=s3_repository(bucket="plain", locked=False))
        site.add(s3_connection(objects))
        yield Rot(site, site.backup("full"), site.backup("dump"))


@pytest.fixture
def rot(request: pytest.FixtureRequest) -> Iterator[Rot]:
    """In a directory, or where a test is `in_every_store`, in S3 as well."""
    kept: Rot = request.getfixturevalue(f"kept_in_{getattr(request, 'param', 'directory')}")
    before = {key: kept.store.get(key) for key in kept.site.keys()}
    yield kept
    for key in set(kept.site.keys()) - before.keys():
        kept.store.delete(key)
    for key, data in before.items():
        if key not in kept.site.keys() or kept.store.get(key) != data:
            kept.store.put(key, data)


in_every_store = pytest.mark.parametrize("rot", ["directory", "s3"], indirect=True)


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def change(rot: Rot, key: str, how: Callable[[bytes], bytes]) -> None:
    rot.store.put(key, how(rot.store.get(key)))


def verify(rot: Rot, backup: Backup, level: str, *, expect: int = 1) -> tuple[str, list[str]]:
    """The verdict, and each finding as 'verdict: problem'."""
    (report,) = rot.site.json("verify", backup.id, "--level", level, expect=expect)
    return report["verdict"], [f"{finding['verdict']}: {finding['problem']}" for finding in report["findings"]]


def restore_fails(rot: Rot, backup: Backup) -> str:
    """The line that a restore prints; its target is left empty."""
    data, archive = rot.site.folder / "data", rot.site.folder / "archive"
    message = rot.site.error(
        *("restore", "postgres", "app038", "--to", backup.id, "--pgdata", data),
        *("--tablespace", f"app038_archive={archive}"),
    )
    for folder in (data, archive):
        assert not folder.exists() or list(folder.iterdir()) == []
    return message


@in_every_store
@pytest.mark.parametrize("role", ["volume", "backup_manifest"])
def test_a_flipped_bit_is_found_by_checksum_and_stops_a_restore(rot: Rot, role: str) -> None:
    key = rot.key(rot.full, role)
    change(rot, key, flip)
    assert verify(rot, rot.full, "exists", expect=0) == ("ok", [])
    verdict, (finding,) = verify(rot, rot.full, "checksum")
    assert verdict == "failed"
    assert f"/{key}: the object's SHA-256 differs from what was written" in finding
    assert verify(rot, rot.full, "opens")[0] == "failed"
    assert f"/{key}: the object's SHA-256 differs" in restore_fails(rot, rot.full)


@in_every_store
def test_a_truncated_object_is_found_by_its_size_alone(rot: Rot) -> None:
    key = rot.key(rot.full, "volume")
    change(rot, key, truncate)
    for level in ("exists", "checksum", "opens"):
        verdict, (finding,) = verify(rot, rot.full, level)
        assert verdict == "failed" and f"/{key}: the object has " in finding and "bytes, and " in finding
    assert "bytes, and " in restore_fails(rot, rot.full)


@in_every_store
@pytest.mark.parametrize("role", ["volume", "backup_manifest"])
def test_a_missing_object_is_named(rot: Rot, role: str) -> None:
    key = rot.key(rot.full, role)
    rot.store.delete(key)
    for level in ("exists", "checksum"):
        verdict, (finding,) = verify(rot, rot.full, level)
        assert verdict == "failed" and f"/{key}: the object is not there" in finding
    assert "the object is not there" in restore_fails(rot, rot.full)


def test_every_damaged_object_is_named_in_one_report(rot: Rot) -> None:
    first, second = rot.full.objects("volume")
    change(rot, first.key, flip)
    rot.store.delete(second.key)
    verdict, findings = verify(rot, rot.full, "checksum")
    assert verdict == "failed" and len(findings) == 2


@in_every_store
def test_a_damaged_dump_is_never_loaded(rot: Rot, staging: PostgresServer) -> None:
    from tests.support import postgres_connection

    key = next(item.key for item in rot.dump.objects("dump") if "app038_reporting" in item.key)
    change(rot, key, flip)
    rot.site.add(postgres_connection(staging, "staging", user="postgres"))
    arguments = ("restore", "postgres", "app038", "--to", rot.dump.id, "--into", "staging")
    message = rot.site.error(*arguments, "--database", "app038_reporting")
    assert f"/{key}: the object's SHA-256 differs" in message and "app038_reporting was dropped again" in message
    names = staging.execute("SELECT datname FROM pg_database WHERE NOT datistemplate")
    assert names == [("postgres",)]


# Sealed right, and wrong inside: what only opening finds.


@pytest.mark.parametrize("share", [0.4, 0.97])
def test_a_dump_that_ended_early_is_refused_by_opening_it(rot: Rot, share: float) -> None:
    """`pg_restore --list` would pass it: the table of contents is at its beginning."""
    short = forge(rot.site, rot.dump, role="dump", change=lambda data: data[: int(len(data) * share)])
    assert verify(rot, short, "checksum", expect=0) == ("ok", [])
    verdict, (finding,) = verify(rot, short, "opens")
    assert verdict == "failed" and "pg_restore cannot read the dump: " in finding


def test_a_volume_that_ends_early_is_refused_by_opening_it(rot: Rot) -> None:
    short = forge(rot.site, rot.full, change=lambda data: data[: len(data) // 2])
    assert verify(rot, short, "checksum", expect=0) == ("ok", [])
    verdict, (finding,) = verify(rot, short, "opens")
    assert verdict == "failed" and "the tar ends before its end-of-archive block" in finding
    assert "the tar ends before its end-of-archive block" in restore_fails(rot, short)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/recovery-test-escaped", "base/../../escaped"])
def test_a_member_that_escapes_the_target_is_refused(rot: Rot, name: str) -> None:
    """Somebody with the public key can seal a backup; what it may write is decided here."""
    message = restore_fails(rot, forge(rot.site, rot.full, change=with_member(name)))
    assert f"the archive has a member that would be written outside the target: {name!r}" in message
    assert "do not trust this backup; find out who wrote it" in message
    assert not (rot.site.folder / "escaped").exists() and not Path("/tmp/recovery-test-escaped").exists()


def test_a_member_that_goes_through_a_tablespaces_link_is_refused(rot: Rot) -> None:
    oid = rot.full.manifest.server.tablespaces[0].oid
    message = restore_fails(rot, forge(rot.site, rot.full, change=with_member(f"pg_tblspc/{oid}/escaped")))
    assert "would be written through a link" in message


# Manifests.


@in_every_store
def test_a_manifest_of_a_newer_format_is_a_problem_of_the_catalog_and_hides_no_other(rot: Rot) -> None:
    key = rot.full.folder + "manifest.json"
    newer = json.loads(rot.store.get(key)) | {"format_version": 2}
    rot.store.put(key, json.dumps(newer).encode())
    listed = rot.site.json("list", expect=1)["postgres"]["app038"]
    assert [backup["id"] for backup in listed["backups"]] == [rot.dump.id]
    (problem,) = listed["problems"]
    assert f"/{key}: the manifest has format version 2, and this program reads up to 1 -> use the version" in problem
    assert "format version 2" in rot.site.error("verify", rot.full.id)
    assert "format version 2" in restore_fails(rot, rot.full)


def test_a_damaged_manifest_is_told_and_a_backup_is_still_taken(rot: Rot) -> None:
    change(rot, rot.full.folder + "manifest.json", truncate)
    assert "this is not a manifest -> the object is damaged" in restore_fails(rot, rot.full)
    done = rot.site.run("list", expect=1)
    assert "damaged: " in done.stdout
    assert rot.site.json("backup", "postgres", "app038", "--type", "full")["id"] > rot.full.id


def test_a_manifest_that_was_copied_into_another_backups_folder_is_refused(rot: Rot) -> None:
    other = rot.full.folder.replace("-full/", "-dump/")
    rot.store.put(other + "manifest.json", rot.store.get(rot.full.folder + "manifest.json"))
    (problem,) = rot.site.json("list", expect=1)["postgres"]["app038"]["problems"]
    assert f"the manifest in this folder names another backup, {rot.full.id}" in problem


def test_what_no_manifest_names_does_not_exist(rot: Rot) -> None:
    rot.store.delete(rot.full.folder + "manifest.json")
    assert [backup["id"] for backup in rot.site.json("list")["postgres"]["app038"]["backups"]] == [rot.dump.id]
    assert "no backup has this id" in rot.site.error("verify", rot.full.id, expect=2)
