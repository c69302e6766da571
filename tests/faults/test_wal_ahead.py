"""Spools of `recovery wal fetch` that are others', in use, half written or full: no recovery fails for want of a cache."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.objectstore import SeaweedFS
from tests.ahead import Fetching
from tests.proxy import Proxy
from tests.support import may_mount, mounted, s3_connection
from tests.wal import until

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("signals")]

needs_mount = pytest.mark.skipif(not may_mount(), reason="mounting a small file system takes root")


# A spool that cannot be used.


def others(folder: Path) -> None:
    os.chown(folder, 4711, 4711)


def readable(folder: Path) -> None:
    folder.chmod(0o750)


def link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def dangling(folder: Path) -> None:
    folder.rmdir()
    folder.symlink_to(folder.with_name("nowhere"))


def plain_file(folder: Path) -> None:
    folder.rmdir()
    folder.touch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(
            others,
            "this directory is not the caller's alone, and nothing is fetched ahead -> remove it, or name another",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away takes root"),
        ),
        (readable, "this directory is not the caller's alone, and nothing is fetched ahead -> remove it, or name"),
        (link, "nothing is fetched ahead (Not a directory) -> the recovery goes on, one segment at a time; --spool"),
        (dangling, "nothing is fetched ahead (Not a directory) -> the recovery goes on"),
        (plain_file, "nothing is fetched ahead (Not a directory) -> the recovery goes on"),
    ],
)
def test_a_spool_that_is_not_the_callers_alone_is_left_alone_and_the_file_is_fetched(
    fetching: Fetching, spoil: Callable[[Path], None], message: str
) -> None:
    names = fetching.switched.names(1)
    fetching("00000002.history")
    fetching(names[-1], "--ahead", "2")
    (fetching.parent / names[1]).touch()
    spool = fetching.spool
    spoil(spool)
    warning = fetching(names[0])
    assert warning.startswith(f"warning: {spool}: {message}") and len(warning.splitlines()) == 1
    assert [each for each in fetching.parent.rglob("*") if each.is_file() and each.stat().st_size] == []


def test_a_place_that_is_not_there_is_told_and_fails_nothing(fetching: Fetching) -> None:
    warning = fetching(fetching.switched.names(1)[0], "--spool", fetching.parent / "nowhere")
    assert "nothing is fetched ahead (No such file or directory) -> the recovery goes on" in warning


def test_a_second_call_at_once_goes_without(fetching: Fetching) -> None:
    names = fetching.switched.names(1)
    fetching(names[0])
    handle = os.open(fetching.spool, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        assert "nothing is fetched ahead (another call uses it) -> the recovery goes on" in fetching(names[1])
        assert fetching.held() == names[1:8]
    finally:
        os.close(handle)
    assert fetching(names[1]) == ""


def test_a_call_that_is_killed_under_way_leaves_nothing_that_harms(fetching: Fetching, objects: SeaweedFS) -> None:
    names, site = fetching.switched.names(1), fetching.switched.site
    held = threading.Event()

    def stop_at_the_fourth(data: bytes) -> bytes:
        if names[3].encode() in data:
            held.wait(60)
        return data

    straight = site.connections["recovery_s3"]
    with Proxy(objects.port) as proxy:
        proxy.change_request = stop_at_the_fourth
        site.add(s3_connection(objects, endpoint=proxy.endpoint))
        process = subprocess.Popen(
            site.argv(*fetching.arguments(names[0])), env=site.environment, cwd=fetching.switched.pgdata
        )
        try:
            until(lambda: list(fetching.parent.glob(f"recovery-wal-*/{names[2]}")))
        finally:
            process.kill()
            process.wait()
            held.set()
    site.add(straight)
    (fetching.spool / f".{names[3]}").write_bytes(b"begun")
    for place in (1, 2, 3, 4):
        assert fetching(names[place]) == ""
    assert all(not name.startswith(".") for name in fetching.held())


# Disks.


@needs_mount
def test_a_spool_on_a_full_disk_takes_what_fits_and_fails_no_call(fetching: Fetching) -> None:
    names = fetching.switched.names(1)
    with mounted(fetching.parent / "small", megabytes=40) as small:
        small.chmod(0o755)
        warning = fetching(names[0], "--spool", small)
        assert f"nothing is fetched ahead ({os.strerror(errno.ENOSPC)}) -> the recovery goes on" in warning
        (spool,) = small.iterdir()
        held = sorted(each.name for each in spool.iterdir())
        assert len(held) == 2 and set(held) <= set(names[1:8])
        # From one file system to another.
        for name in held:
            fetching(name, "--spool", small, "--ahead", "2")
        fetching("00000002.history", "--spool", small)
        assert list(small.iterdir()) == []


@needs_mount
def test_room_that_the_spool_takes_is_given_back_to_the_file_that_is_asked_for(fetching: Fetching) -> None:
    old, new = fetching.switched.names(1), fetching.switched.names(2)
    with mounted(fetching.parent / "small", megabytes=40) as small:
        small.chmod(0o755)
        run = fetching.switched.site.run
        for name in (old[0], new[0]):
            arguments = ("wal", "fetch", "app038", name, small / "wanted", "--spool", small, "--ahead", "3")
            done = run(*arguments, directory=fetching.switched.pgdata)
            assert (small / "wanted").read_bytes() == fetching.switched.content(name)
            if name == old[0]:
                assert "No space left on device" in done.stderr
                (small / "wanted").rename(small / "in the way")
