"""The unpacker writes below its target and nowhere else."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from recovery.errors import IntegrityError, RestoreError
from recovery.postgres.unpack import Unpacker


def make_tar(name: str, *, kind: bytes = tarfile.REGTYPE, content: bytes = b"evil") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.type = kind
        info.size = len(content) if kind == tarfile.REGTYPE else 0
        info.linkname = "/etc" if kind == tarfile.SYMTYPE else ""
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def unpack(target: Path, data: bytes) -> None:
    unpacker = Unpacker(target, owner=None)
    try:
        unpacker.write(data)
        unpacker.finish()
    finally:
        unpacker.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def below(path: Path) -> set[str]:
    return {entry.relative_to(path).as_posix() for entry in path.rglob("*")}


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/tmp/x", "a/..", "..", "base/../../../x"])
def test_a_member_that_leaves_the_target_is_refused_and_nothing_of_it_is_written(
    tmp_path: Path, target: Path, name: str, kind: bytes
) -> None:
    with pytest.raises(IntegrityError, match="would be written outside the target") as caught:
        unpack(target, make_tar(name, kind=kind))
    assert "do not trust this backup" in str(caught.value)
    assert below(tmp_path) == {"target"}


def test_links_of_the_archive_are_not_made(target: Path) -> None:
    unpack(target, make_tar("pg_tblspc/16385", kind=tarfile.SYMTYPE))
    assert below(target) == set()


@pytest.mark.parametrize("name", ["link/x", "link/there/x", "link/deep/x"])
def test_a_link_in_the_target_is_not_followed(tmp_path: Path, target: Path, name: str) -> None:
    (tmp_path / "outside" / "there").mkdir(parents=True)
    (target / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(IntegrityError, match="through a link"):
        unpack(target, make_tar(name))
    assert below(tmp_path / "outside") == {"there"}


def test_a_link_in_place_of_a_file_is_not_written_through(tmp_path: Path, target: Path) -> None:
    (tmp_path / "outside").write_text("kept")
    (target / "file").symlink_to(tmp_path / "outside")
    with pytest.raises(RestoreError, match="appears twice"):
        unpack(target, make_tar("file"))
    assert (tmp_path / "outside").read_text() == "kept"


def test_a_member_that_appears_twice_is_refused(target: Path) -> None:
    unpack(target, make_tar("file", content=b"first"))
    with pytest.raises(RestoreError, match="file appears twice"):
        unpack(target, make_tar("file", content=b"second"))
    assert (target / "file").read_bytes() == b"first"


def test_files_are_readable_by_their_owner_alone(target: Path) -> None:
    unpack(target, make_tar("base/1/1259", content=b"rows"))
    assert (target / "base/1/1259").stat().st_mode & 0o777 == 0o600
    assert (target / "base").stat().st_mode & 0o777 == 0o700
    assert (target / "base/1/1259").read_bytes() == b"rows"


def test_empty_folders_are_made(target: Path) -> None:
    unpack(target, make_tar("pg_notify", kind=tarfile.DIRTYPE))
    assert (target / "pg_notify").is_dir()
