"""Whatever a repository has lived through: retention leaves every backup that stays whole, and never the last good one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery import housekeeping
from recovery.config import Retention
from recovery.errors import StoreUnreachable
from recovery.repository import holds, layout
from recovery.repository.catalog import Backup
from recovery.repository.leftovers import horizon
from recovery.repository.survey import cluster_of
from tests.history import CLUSTER, NAME, NOW, History, restorable

CLUSTERS = (CLUSTER, "9999")
COUNTS = st.none() | st.integers(1, 4)
PERIODS = st.integers(0, 3)
RULES = st.builds(
    Retention,
    window=st.none() | st.integers(0, 30).map(lambda days: timedelta(days=days)),
    fulls=COUNTS,
    dumps=COUNTS,
    daily=PERIODS,
    weekly=PERIODS,
    monthly=PERIODS,
    yearly=PERIODS,
)


@dataclass
class Lived:
    history: History
    backups: list[Backup] = field(default_factory=list)
    proven: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)


@st.composite
def lives(draw: st.DrawFn) -> Lived:
    """Forty days: chains on two clusters, LSNs that start anew, timelines in any order, workers with wrong clocks."""
    lived = Lived(History())
    history = lived.history
    newest: dict[str, Backup] = {}
    segment = dict.fromkeys(CLUSTERS, 100)
    days = 40.0
    while days > 0.1 and len(lived.backups) < 14:
        cluster = draw(st.sampled_from(CLUSTERS))
        timeline = draw(st.integers(1, 4))
        step = draw(st.integers(0, 3))
        if step and draw(st.booleans()):
            history.wal(
                range(segment[cluster], segment[cluster] + step), days + 0.05, cluster=cluster, timeline=timeline
            )
        segment[cluster] = max(segment[cluster] + step - draw(st.sampled_from([0, 0, 0, 20])), 1)
        kind = draw(st.sampled_from(["full", "incremental", "dump", "full" if cluster in newest else "dump"]))
        parent = newest.get(cluster)
        if kind == "incremental" and parent is None:
            kind = "full"
        skew = timedelta(hours=draw(st.sampled_from([0, 0, 0, -30, 30])))
        made = history.backup(
            kind,
            days,
            cluster=cluster,
            parent=parent if kind == "incremental" else None,
            timeline=timeline,
            segment=segment[cluster],
            included=draw(st.sampled_from([True, True, True, False])),
            skew=skew,
        )
        if made.folder in {each.folder for each in lived.backups}:
            break  # Two wrong clocks met in one second.
        lived.backups.append(made)
        if kind != "dump":
            newest[cluster] = made
        if draw(st.integers(0, 5)) == 0:
            history.prove(made, draw(st.sampled_from(["ok", "failed", "unknown"])))
        if draw(st.integers(0, 9)) == 0 and made.id not in lived.held:
            holds.place(history.store, NAME, made.id, reason="kept")
            lived.held.add(made.id)
        if draw(st.integers(0, 7)) == 0:
            history.store.locks[made.folder + layout.volume(0)] = NOW + timedelta(days=draw(st.integers(-2, 2)))
        days -= draw(st.floats(0.05, 6))
    _leave_remains(draw, history)
    return lived


def _leave_remains(draw: st.DrawFn, history: History) -> None:
    """Histories of timelines, true or not, and orphans."""
    for cluster in CLUSTERS:
        for timeline in range(2, 5):
            if draw(st.integers(0, 3)):
                left = {number: draw(st.integers(60, 140)) for number in range(1, timeline)}
                history.history(timeline, draw(st.floats(0, 40)), cluster=cluster, left=left)
    for number in range(draw(st.integers(0, 2))):
        folder = layout.backup_folder(NAME, CLUSTER, f"2026110{number + 1}T000000Z-full")
        history.put(folder + layout.volume(0), NOW - timedelta(days=draw(st.integers(0, 3))))


def apply(history: History, rules: Retention) -> housekeeping.Outcome:
    return housekeeping.apply(history.store, NAME, rules)[1]


def check(lived: Lived, rules: Retention, before: set[str]) -> None:
    history = lived.history
    left = {backup.folder: backup for backup in history.catalog().backups}
    assert set(left) == restorable(history.store)
    physical = [backup for backup in history.catalog().backups if backup.manifest.kind != "dump"]
    _check_the_last_good_ones(lived, set(left))
    for backup in physical:
        if not backup.manifest.wal or backup.manifest.wal.included:
            continue
        own = horizon([backup])
        assert own is not None
        needed = {key for key in before if _position(key, backup) == own.position}
        assert needed <= history.keys
    _check_continuous_wal(lived, rules, before, physical)


def _check_the_last_good_ones(lived: Lived, left: set[str]) -> None:
    made = sorted(lived.backups, key=lambda each: (each.id, each.folder))
    fulls = [each for each in made if each.manifest.kind == "full"]
    assert {each.folder for each in fulls[-1:]} <= left
    assert {each.folder for each in made if each.id in lived.held} <= left
    proven = housekeeping.read(lived.history.store, NAME).proven
    for physical in (True, False):
        good = [each for each in made if (each.manifest.kind != "dump") == physical and each.id in proven]
        assert {each.folder for each in good[-1:]} <= left


def _check_continuous_wal(lived: Lived, rules: Retention, before: set[str], left: list[Backup]) -> None:
    """From the backup that the window begins with on, the WAL of the cluster that lives now is all there."""
    every = [each for each in lived.backups if each.manifest.kind != "dump"]
    if not every:
        return
    living = cluster_of(max(every, key=lambda each: each.manifest.started_at).folder)
    own = sorted((each for each in every if cluster_of(each.folder) == living), key=lambda each: each.id)
    if rules.window is not None:
        begin = NOW - rules.window
        early = [each for each in own if each.manifest.finished_at <= begin][-1:]
        needed = early + [each for each in own if each.manifest.finished_at > begin]
        folders = {each.folder for each in left}
        assert {each.folder for each in needed} <= folders
        survey = housekeeping.read(lived.history.store, NAME)
        for timeline in {each.manifest.wal.end_timeline for each in needed[len(early) :] if each.manifest.wal}:
            ways = [each for each in own if each.manifest.finished_at <= begin and survey.leads_to(each, timeline)]
            assert {each.folder for each in ways[-1:]} <= folders
    else:
        needed = own[-1:]
    for backup in needed:
        start = horizon([backup])
        assert start is not None
        assert {key for key in before if _position(key, backup) >= start.position} <= lived.history.keys


def _position(key: str, backup: Backup) -> str:
    """Where the segment of this key lies in the WAL of the backup's cluster; nowhere if it is none of it."""
    root = backup.folder.partition("/backups/")[0] + "/wal/"
    return key.removeprefix(root)[17:33] if key.startswith(root) and key.endswith(".zst.age") else ""


@given(lives(), RULES)
@settings(max_examples=150, deadline=None)
def test_what_stays_is_whole_and_the_last_good_ones_stay(lived: Lived, rules: Retention) -> None:
    before = lived.history.keys
    outcome = apply(lived.history, rules)
    assert outcome.failures == [] and outcome.kept_back == []
    check(lived, rules, before)


@given(lives(), RULES)
@settings(max_examples=60, deadline=None)
def test_a_second_run_finds_nothing_to_do(lived: Lived, rules: Retention) -> None:
    apply(lived.history, rules)
    keys = lived.history.keys
    outcome = apply(lived.history, rules)
    assert (outcome.backups, outcome.objects) == ([], 0)
    assert lived.history.keys == keys


@given(lives(), RULES)
@settings(max_examples=60, deadline=None)
def test_the_plan_names_exactly_what_goes(lived: Lived, rules: Retention) -> None:
    history = lived.history
    made = housekeeping.plan(history.store, NAME, rules)
    before = history.keys
    named = set(made.keys(housekeeping.read(history.store, NAME)))
    applied, outcome = housekeeping.apply(history.store, NAME, rules)
    assert applied.document() == made.document()
    assert before - history.keys == named
    assert outcome.bytes == made.freed_bytes


@given(lives(), RULES, st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_an_interruption_at_any_deletion_leaves_whole_backups_and_orphans(
    lived: Lived, rules: Retention, deletions: int
) -> None:
    history, before = lived.history, lived.history.keys
    left = [deletions]

    def cut(operation: str, key: str) -> None:
        if operation == "delete" and not key.startswith("leases/"):
            left[0] -= 1
            if left[0] < 0:
                raise StoreUnreachable("no answer")

    history.store.before = cut
    with contextlib.suppress(StoreUnreachable):
        apply(history, rules)
    history.store.before = lambda operation, key: None
    check(lived, rules, before)
    after = apply(history, rules)
    assert after.failures == []
    check(lived, rules, before)


def test_the_histories_are_worth_testing() -> None:
    """Some are deleted from, some hold incrementals and both clusters: a generator that made nothing would prove nothing."""
    seen: dict[str, int] = {"deleted": 0, "incremental": 0, "both": 0, "wal": 0}

    @given(lives(), RULES)
    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    def look(lived: Lived, rules: Retention) -> None:
        made = housekeeping.plan(lived.history.store, NAME, rules)
        seen["deleted"] += bool(made.doomed)
        seen["incremental"] += any(each.manifest.kind == "incremental" for each in lived.backups)
        seen["both"] += len({cluster_of(each.folder) for each in lived.backups}) == 2
        seen["wal"] += any(sweep.what == "WAL" for sweep in made.sweeps)

    look()
    assert all(count >= 5 for count in seen.values()), seen


@pytest.mark.parametrize("field", ["fulls", "dumps"])
def test_none_is_no_number_to_keep(field: str) -> None:
    rules: dict[str, Any] = {field: 0}
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Retention(**rules)
