"""The trust engine: an incremental only on what is whole and of the same history; whatever else there is, a full backup."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from recovery.manifest import Wal
from recovery.postgres import trust
from recovery.postgres.trust import Decision, State, unbroken_from
from recovery.postgres.wal.positions import format_lsn, parse_lsn
from recovery.repository import layout
from recovery.repository.catalog import Backup
from tests.unit.test_manifest import example

CLUSTER, OTHER = "7301", "7302"
KEYS = ["age1example"]
BEGAN = datetime(2026, 11, 23, tzinfo=UTC)
NOW = State(
    system_identifier=CLUSTER,
    version_number=170010,
    timeline=1,
    data_checksums=True,
    wal_log_hints=False,
    summarize_wal=True,
    summarized_from=parse_lsn("0/1000028"),
)


def backup(number: int, kind: str, *, before: Backup | None = None, cluster: str = CLUSTER, **changes: Any) -> Backup:
    """The backup of hour `number`, on the one before it where it is an incremental."""
    identifier = layout.backup_id(BEGAN + timedelta(hours=number), kind)
    server = example().server.model_copy(
        update={"system_identifier": cluster}
        | {key: changes.pop(key) for key in ("version_number", "data_checksums", "wal_log_hints") if key in changes}
    )
    timeline = changes.pop("timeline", 1)
    lsn = format_lsn((number + 2) << 24 | 0x28)
    wal = Wal(start_lsn=lsn, start_timeline=timeline, end_lsn=lsn, end_timeline=timeline, included=True)
    chain = [*before.manifest.chain, before.id] if before else []
    fields = {"id": identifier, "kind": kind, "server": server, "chain": chain, "parent": before and before.id}
    return Backup(
        example(**(fields | {"wal": None if kind == "dump" else wal} | changes)),
        layout.backup_folder("app038", cluster, identifier),
    )


def decide(backups: list[Backup], state: State = NOW, **options: Any) -> Decision:
    return trust.decide(backups, state, **({"recipients": KEYS, "max_chain": 12} | options))


FULL = backup(0, "full")
FIRST = backup(1, "incremental", before=FULL)
SECOND = backup(2, "incremental", before=FIRST)


def test_the_parent_is_the_newest_full_or_incremental() -> None:
    assert decide([FULL]).parent == FULL
    found = decide([FULL, FIRST, SECOND, backup(3, "dump")])
    assert found.parent == SECOND
    assert found.reason == f"it builds on {SECOND.id}, as incremental 3 of at most 12 on one full backup"
    assert decide([FULL, FIRST, SECOND, newer := backup(4, "full")]).parent == newer


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"version_number": 150013}, "PostgreSQL 15 has no incremental backups; 17 has"),
        ({"summarize_wal": False}, "summarize_wal is off"),
        ({"data_checksums": False}, "data checksums and wal_log_hints are both off"),
        ({"system_identifier": OTHER}, f"is not that of {FIRST.id}: it is another cluster"),
        ({"timeline": 2}, f"the server is on timeline 2, and {FIRST.id} was on 1"),
        ({"version_number": 170011}, f"the server's version changed since {FIRST.id}, which was taken from 17.10"),
        ({"data_checksums": False, "wal_log_hints": True}, f"data checksums were switched off since {FIRST.id}"),
        ({"summarized_from": None}, f"WAL summaries do not reach back to {FIRST.id}"),
        ({"summarized_from": parse_lsn("0/3000029")}, f"WAL summaries do not reach back to {FIRST.id}"),
    ],
)
def test_a_server_that_cannot_be_trusted_gets_a_full_backup(state: dict[str, Any], reason: str) -> None:
    found = decide([FULL, FIRST], replace(NOW, **state))
    assert found.parent is None and reason in found.reason
    assert decide([FULL, FIRST], replace(NOW, summarized_from=parse_lsn("0/3000028"))).parent == FIRST


def test_a_chain_that_cannot_be_trusted_gets_a_full_backup() -> None:
    assert "there is no full backup yet" in decide([backup(0, "dump")]).reason
    assert f"{SECOND.id} needs {FULL.id}, which cannot be read" in decide([FIRST, SECOND]).reason
    assert f"{SECOND.id} needs {FIRST.id}, which cannot be read" in decide([FULL, SECOND]).reason
    # The same id under another cluster is another backup.
    elsewhere = backup(1, "incremental", before=backup(0, "full", cluster=OTHER), cluster=OTHER)
    assert f"needs {FIRST.id}" in decide([FULL, elsewhere, SECOND]).reason
    assert "2 incrementals build on one full backup already" in decide([FULL, FIRST, SECOND], max_chain=2).reason
    assert decide([FULL, FIRST, SECOND], max_chain=3).parent == SECOND


def test_hints_that_were_not_logged_when_the_parent_was_taken_are_not_trusted_later() -> None:
    parent = backup(0, "full", data_checksums=False, wal_log_hints=False)
    now = replace(NOW, data_checksums=False, wal_log_hints=True)
    assert "wal_log_hints was off when" in decide([parent], now).reason
    assert decide([backup(0, "full", data_checksums=False, wal_log_hints=True)], now).parent is not None


def test_a_key_that_cannot_open_the_whole_chain_gets_a_full_backup() -> None:
    found = decide([FULL, FIRST], recipients=[*KEYS, "age1new"])
    assert f"{FULL.id}, {FIRST.id} cannot be opened with every key" in found.reason
    both = backup(0, "full", recipients=[*KEYS, "age1old"])
    assert decide([both]).parent == both


def test_a_full_backup_that_was_requested_is_taken_and_the_request_told() -> None:
    request = json.dumps({"reason": "WAL is missing"}).encode()
    assert decide([FULL], requested=request).reason == "a full backup was requested: WAL is missing"
    assert decide([FULL], requested=b"damaged").parent is None


def test_summaries_count_from_their_last_gap_on() -> None:
    assert unbroken_from([]) is None
    assert unbroken_from([(1, 5), (5, 9), (9, 12)]) == 1
    assert unbroken_from([(9, 12), (1, 5), (6, 9)]) == 6
    assert unbroken_from([(1, 12), (5, 9)]) == 1


# Over histories that a catalog could hold.

KINDS = st.lists(st.sampled_from(["full", "incremental", "incremental", "incremental", "dump"]), max_size=12)
CLUSTERS, TIMELINES = st.sampled_from([CLUSTER, OTHER]), st.integers(1, 2)


def timeline_of(each: Backup) -> int | None:
    return each.manifest.wal.end_timeline if each.manifest.wal else None


@st.composite
def histories(draw: st.DrawFn) -> list[Backup]:
    """Backups as runs would have made them, on clusters and timelines that change; some were lost later."""
    made: list[Backup] = []
    cluster, timeline = CLUSTER, 1
    for number, kind in enumerate(draw(KINDS)):
        cluster = draw(CLUSTERS) if draw(st.integers(0, 5)) == 0 else cluster
        timeline = draw(TIMELINES) if draw(st.integers(0, 5)) == 0 else timeline
        last = next((each for each in reversed(made) if each.manifest.kind != "dump" and cluster in each.folder), None)
        follows = kind == "incremental" and last is not None and timeline_of(last) == timeline
        made.append(
            backup(
                number,
                "full" if kind == "incremental" and not follows else kind,
                before=last if follows else None,
                cluster=cluster,
                timeline=timeline,
            )
        )
    lost = draw(st.sets(st.integers(0, 11), max_size=2))
    return [each for number, each in enumerate(made) if number not in lost]


STATES = st.builds(
    State,
    system_identifier=CLUSTERS,
    version_number=st.sampled_from([150013, 170010, 170010, 170010, 170011]),
    timeline=TIMELINES,
    data_checksums=st.sampled_from([True, True, True, False]),
    wal_log_hints=st.booleans(),
    summarize_wal=st.sampled_from([True, True, True, False]),
    summarized_from=st.sampled_from([None, 1, 1, 1, 8 << 24]),
)


@given(histories(), STATES, st.integers(1, 12))
def test_a_parent_is_always_whole_and_of_the_server_s_own_history(
    backups: list[Backup], state: State, max_chain: int
) -> None:
    found = decide(backups, state, max_chain=max_chain)
    assert found.reason
    if found.parent is None:
        return
    parent = found.parent.manifest
    there = {each.id: each.manifest for each in backups if state.system_identifier in each.folder}
    assert found.parent in backups and parent.kind in ("full", "incremental")
    assert all(member in there for member in parent.chain)
    assert ([*parent.chain, parent.id])[0].endswith("-full")
    assert len(parent.chain) < max_chain
    assert parent.wal is not None and parent.wal.end_timeline == state.timeline
    assert state.summarized_from is not None and state.summarized_from <= parse_lsn(parent.wal.start_lsn)
    was = parent.server
    assert (was.system_identifier, was.version_number, was.data_checksums) == (
        *(state.system_identifier, state.version_number, state.data_checksums),
    )
    assert state.summarize_wal and (state.data_checksums or (state.wal_log_hints and was.wal_log_hints))
    newest = max(each.id for each in backups if each.manifest.kind != "dump" and state.system_identifier in each.folder)
    assert parent.id == newest


@given(histories())
def test_an_unchanged_server_with_an_unbroken_chain_gets_an_incremental(backups: list[Backup]) -> None:
    physical = [each for each in backups if each.manifest.kind != "dump"]
    assume(physical)
    newest = physical[-1].manifest
    there = {each.id for each in physical if newest.server.system_identifier in each.folder}
    assume(set(newest.chain) <= there and newest.wal is not None)
    assert newest.wal is not None
    state = replace(
        NOW, system_identifier=newest.server.system_identifier, timeline=newest.wal.end_timeline, summarized_from=1
    )
    assert decide(backups, state, max_chain=100).parent == physical[-1]
