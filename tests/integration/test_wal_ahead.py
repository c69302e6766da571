"""`recovery wal fetch` ahead of the server: what the spool holds and gives, and recoveries that go through it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.objectstore import SeaweedFS
from lab.ports import LOOPBACK, free_port
from lab.postgres import PostgresServer
from lab.users import make_directory, service_user
from recovery.postgres.wal import ahead
from recovery.postgres.wal.positions import Segment, parse_lsn
from tests.ahead import AFTER, BEFORE, SIZE, Fetching, Switched
from tests.proxy import Proxy
from tests.support import s3_connection, server_contents
from tests.wal import configure, restore_command, until

pytestmark = pytest.mark.usefixtures("signals")


def no_store(fetching: Fetching, objects: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nobody answers, and that is noticed at once."""
    from botocore.config import Config

    from recovery.cli import _wal
    from recovery.repository import s3

    config = s3.client_config().merge(Config(retries={"mode": "standard", "total_max_attempts": 1}))
    monkeypatch.setattr(s3, "client_config", lambda: config)
    monkeypatch.setattr(_wal, "_PATIENCE_SECONDS", 0.0)
    fetching.switched.site.add(s3_connection(objects, endpoint=f"http://{LOOPBACK}:{free_port()}"))


@contextmanager
def damaged(switched: Switched, file: str) -> Iterator[str]:
    """A stored segment with one byte changed; its key."""
    segment = Segment.parse(file, SIZE)
    assert segment is not None
    store, key = switched.archive.store, switched.archive.segment_key(segment)
    data, metadata = store.get(key), store.head(key).metadata
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]), metadata=metadata)
    try:
        yield key
    finally:
        store.put(key, data, metadata=metadata)


# What is fetched.


def test_the_next_segments_are_fetched_with_the_one_that_is_asked_for(fetching: Fetching) -> None:
    names = fetching.switched.names(1)
    assert len(names) >= BEFORE
    assert fetching(names[0]) == ""
    assert fetching.held() == names[1:8]
    assert fetching.spool.stat().st_mode & 0o777 == 0o700
    for each in fetching.spool.iterdir():
        assert each.stat().st_mode & 0o777 == 0o600
        assert each.read_bytes() == fetching.switched.content(each.name)


def test_what_is_at_hand_needs_no_store_and_leaves_the_spool(
    fetching: Fetching, objects: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = fetching.switched.names(1)
    fetching(names[0], "--ahead", "4")
    with monkeypatch.context() as patch:
        content = {name: fetching.switched.content(name) for name in names[1:5]}
        patch.setattr(fetching.switched, "content", content.__getitem__)
        no_store(fetching, objects, patch)
        for place in (1, 2, 3):
            # Not even the last one, after which no other can be fetched.
            assert fetching(names[place], "--ahead", "4") == ""
            assert fetching.held() == names[place + 1 : 4]
        assert "no answer from" in fetching(names[4], "--ahead", "4", expect=126)


def test_with_the_last_one_that_is_at_hand_the_next_are_fetched(fetching: Fetching) -> None:
    names = fetching.switched.names(1)
    for place, held in ((0, names[1:3]), (1, names[2:3]), (2, names[3:5])):
        fetching(names[place], "--ahead", "3")
        assert fetching.held() == held


def test_one_ahead_is_none_and_needs_no_spool(fetching: Fetching) -> None:
    assert fetching(fetching.switched.names(1)[0], "--ahead", "1") == ""
    assert list(fetching.parent.glob("recovery-wal-*")) == []


@pytest.mark.parametrize("number", ["0", "129", "many"])
def test_a_number_that_is_none_is_a_wrong_call_that_stops_recovery(fetching: Fetching, number: str) -> None:
    done = fetching.switched.site.run_alone(*fetching.arguments(fetching.switched.names(1)[0], "--ahead", number))
    assert done.returncode == 126 and "Invalid value for '--ahead'" in done.stderr


def test_the_end_of_wal_ends_it_and_the_open_segment_is_never_kept(fetching: Fetching) -> None:
    names, current = fetching.switched.names(2), fetching.switched.open_segment
    assert fetching(names[-3]) == ""
    assert fetching.held() == names[-2:]
    for name in (names[-2], names[-1], current):
        assert fetching(name) == ""
    assert fetching.held() == []
    newest = Segment.parse(current, SIZE)
    assert newest is not None
    assert fetching(newest.next().name(SIZE), expect=1) == ""


def test_a_history_is_not_kept_and_ends_the_use_of_the_spool(fetching: Fetching) -> None:
    fetching(fetching.switched.names(1)[0])
    assert fetching.held()
    assert fetching("00000002.history") == ""
    assert list(fetching.parent.glob("recovery-wal-*")) == []
    assert fetching("00000003.history", expect=1) == ""


def test_a_damaged_one_fails_no_call_but_its_own(fetching: Fetching) -> None:
    names = fetching.switched.names(1)
    with damaged(fetching.switched, names[2]) as key:
        assert fetching(names[0]) == ""
        assert names[2] not in fetching.held()
        assert fetching(names[1]) == ""
        message = fetching(names[2], expect=126)
        assert key in message and "the object cannot be decrypted" in message
    assert fetching(names[2]) == ""


def test_a_store_that_falls_silent_delays_a_call_and_does_not_fail_it(
    fetching: Fetching, objects: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = fetching.switched.names(1)
    monkeypatch.setattr(ahead, "_SILENCE_SECONDS", 1.0)
    released = threading.Event()

    def only_the_first(data: bytes) -> bytes:
        if any(name.encode() in data for name in names[3:]):
            released.wait(30)
        return data

    content = {names[0]: fetching.switched.content(names[0])}
    monkeypatch.setattr(fetching.switched, "content", content.__getitem__)
    with Proxy(objects.port) as proxy:
        proxy.change_request = only_the_first
        fetching.switched.site.add(s3_connection(objects, endpoint=proxy.endpoint))
        began = time.monotonic()
        try:
            assert fetching(names[0]) == ""
            assert 1 <= time.monotonic() - began < 20
        finally:
            released.set()
    assert fetching.held() == names[1:3]


# What is kept.


def test_another_timeline_and_what_is_behind_goes_when_something_else_is_found(fetching: Fetching) -> None:
    old, new = fetching.switched.names(1), fetching.switched.names(2)
    fetching(old[0])
    # The server tries the new timeline first where both may have a segment: that alone says nothing.
    fetching(f"00000002{old[1][8:]}", expect=1)
    assert fetching.held() == old[1:8]
    fetching(old[3])
    assert fetching.held() == old[4:8]
    fetching(new[0], "--ahead", "3")
    assert fetching.held() == new[1:3]
    # Back, as when a recovery begins: the checkpoint's segment first, then that of its redo position.
    fetching(old[1])
    assert fetching.held() == old[2:9]


def test_what_a_killed_call_has_left_is_swept(fetching: Fetching) -> None:
    names = fetching.switched.names(1)
    fetching(names[0])
    (fetching.spool / f".{names[9]}").write_bytes(b"begun")
    fetching(names[1])
    assert fetching.held() == names[2:8]


@pytest.mark.parametrize("change", ["short", "empty", "other_place", "other_cluster", "long", "link"])
def test_a_kept_segment_that_is_not_whole_or_not_the_one_is_fetched_again(fetching: Fetching, change: str) -> None:
    names = fetching.switched.names(1)
    fetching(names[0])
    kept = fetching.spool / names[1]
    data = kept.read_bytes()
    spoiled = {
        "short": data[: SIZE // 2],
        "empty": b"",
        "long": data + bytes(8192),
        "other_place": (fetching.spool / names[2]).read_bytes(),
        "other_cluster": data[:24] + bytes(8) + data[32:],
    }
    if change == "link":
        (fetching.parent / "elsewhere").write_bytes(data)
        kept.unlink()
        kept.symlink_to(fetching.parent / "elsewhere")
    else:
        kept.write_bytes(spoiled[change])
    assert fetching(names[1]) == ""
    assert not fetching.path.is_symlink() and fetching.held() == names[2:8]


# Recoveries.


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["recovery.signal", "standby.signal"])
def test_a_server_recovers_over_a_timeline_switch_with_what_was_fetched_ahead(
    switched: Switched, folder: Path, signal: str
) -> None:
    target, seen = folder / "pgdata", folder / "seen"
    places = make_directory(folder / "spools", user=service_user())
    command = restore_command(
        *(switched.site, folder, "--spool", places), first=f'echo "$1:" $(ls {places}/*) >> {places}/../seen'
    )
    seen.touch()
    seen.chmod(0o666)
    switched.site.run("restore", "postgres", "app038", "--to", switched.backup, "--pgdata", target)
    (target / "recovery.signal").rename(target / signal)
    configure(target, restore_command=command, recovery_target_timeline="latest")
    with PostgresServer(target, name="recovered", passwords=switched.server.passwords) as recovered:
        if signal == "standby.signal":
            replayed = "SELECT pg_last_wal_replay_lsn()"
            until(lambda: parse_lsn(recovered.execute(replayed)[0][0]) >= switched.end, seconds=90)
            recovered.execute("SELECT pg_promote()")
        until(lambda: not recovered.execute("SELECT pg_is_in_recovery()")[0][0], seconds=90)
        assert tables(recovered) == tables(switched.server)
        assert recovered.execute("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)") == [("00000003",)]
        log = recovered.log.read_text()
    asked = {line.partition(":")[0]: line.partition(":")[2].split() for line in seen.read_text().splitlines()}
    for name in (*switched.names(1)[2:-1], *switched.names(2)):
        assert f'restored log file "{name}" from archive' in log
    at_hand = [name for name in asked if name in asked[name]]
    assert len(at_hand) >= (BEFORE + AFTER) // 2
    assert "warning" not in log
    # Whoever asks for a history is at an end.
    assert list(places.iterdir()) == []


def tables(server: PostgresServer) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """Without sequences: WAL has their values up to 32 ahead (sequence.c, SEQ_LOG_VALS)."""
    return {name: found for name, found in server_contents(server).items() if not name[-1].endswith("_seq")}
