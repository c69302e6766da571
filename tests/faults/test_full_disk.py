"""A disk that is too small, or fills in the middle of a restore: told as that, and the target is left empty."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from recovery.drill.postgres import drill
from recovery.errors import RestoreError
from recovery.postgres import restore
from recovery.repository.verify import Verdict
from tests.support import Site, may_mount, mounted

pytestmark = pytest.mark.faults
MIB = 1 << 20


def restore_arguments(site: Site, data: Path) -> tuple[object, ...]:
    return (
        *("restore", "postgres", "app038", "--to", "latest", "--pgdata", data),
        *("--tablespace", f"app038_archive={site.folder / 'archive'}"),
    )


needs_mount = pytest.mark.skipif(not may_mount(), reason="mounting a small file system takes root; see the test below")


@needs_mount
def test_a_disk_that_fills_in_the_middle_is_told_and_the_target_is_left_empty(site: Site) -> None:
    made = site.backup()
    places = restore.place_tablespaces(made.manifest, {}, below=site.folder / "spaces")
    with mounted(site.folder / "small", megabytes=128) as small:

        def fill(done: int, expected: int) -> None:
            with contextlib.suppress(OSError), (small / "somebody else's").open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(MIB))

        with pytest.raises(RestoreError) as caught:
            site.restore(made, small / "data", tablespaces=places, tick=fill)
        assert [path.name for path in small.iterdir() if path.name != "data"] == ["somebody else's"]
        assert list((small / "data").iterdir()) == []
    assert str(caught.value) == (
        f"{small / 'data'}: the disk is full -> free space, or choose another target; see `recovery plan`"
    )
    assert all(list(place.iterdir()) == [] for place in places.values())


@needs_mount
def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(site: Site) -> None:
    made = site.backup()
    with mounted(site.folder / "small", megabytes=8) as small:
        message = site.error(*restore_arguments(site, small / "data"))
        assert list((small / "data").iterdir()) == []
    assert made.manifest.stored_bytes < 8 * MIB
    assert "small/data: the restore needs 0." in message
    assert "GB and 0.01 GB are free -> free space, or name a directory on another disk" in message


@needs_mount
def test_a_drill_without_room_is_unknown_and_leaves_nothing(site: Site) -> None:
    made = site.backup()
    with mounted(site.folder / "small", megabytes=8) as small:
        site.document["sandbox"]["directory"] = str(small)
        found = drill(site.installation(), "app038", made)
        assert list(small.iterdir()) == []
    assert found.verdict is Verdict.UNKNOWN
    assert "GB are free" in found.checks[0].detail


@needs_mount
def test_a_full_repository_disk_fails_the_backup_and_leaves_nothing_of_it(site: Site) -> None:
    with mounted(site.folder / "small", megabytes=3) as small:
        site.document["repositories"]["main"] = {"directory": {"path": str(small / "repository")}}
        message = site.error("backup", "postgres", "app038", "--type", "full")
        assert "no space left on device -> check the disk and the directory's permissions" in message
        assert list((small / "repository" / ".uploads").iterdir()) == []
        assert site.json("list")["postgres"] == {"app038": {"windows": [], "backups": [], "problems": []}}


def test_a_file_that_cannot_grow_is_told_where_nothing_may_be_mounted(site: Site) -> None:
    """The limit of this process's files stands in for the full disk: another error number, the same way out."""
    site.backup()
    data = site.folder / "data"
    done = subprocess.run(
        ["prlimit", f"--fsize={MIB}", *site.argv(*restore_arguments(site, data))],
        env=site.environment,
        cwd=site.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {data}: ") and ": file too large -> " in line
    assert list(data.iterdir()) == []


def test_a_file_that_cannot_be_written_after_the_volumes_is_told_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = site.backup()
    places = restore.place_tablespaces(made.manifest, {}, below=site.folder / "spaces")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(restore, "_keep_server_manifest", full)
    with pytest.raises(RestoreError, match="the disk is full"):
        site.restore(made, site.folder / "data", tablespaces=places)
    assert list((site.folder / "data").iterdir()) == []
