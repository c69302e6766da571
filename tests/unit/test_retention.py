"""What stays and what goes, rule by rule: a pure plan from a repository, the rules and the store's clock."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from recovery import housekeeping
from recovery.config import Retention
from recovery.repository import layout
from recovery.repository.catalog import Backup
from recovery.repository.lease import Lease
from recovery.repository.retention import Plan
from tests.history import CLUSTER, NAME, NOW, History, days_ago

DAY = timedelta(days=1)


def plan(history: History, **rules: Any) -> Plan:
    return housekeeping.plan(history.store, NAME, Retention(**rules))


def reasons(made: Plan) -> dict[str, str]:
    """Why each backup stays, by its id."""
    return {decision.backup.id: decision.why for decision in made.decisions if decision.reasons}


def doomed(made: Plan) -> set[str]:
    return {backup.id for backup in made.doomed}


def ids(*backups: Backup) -> set[str]:
    return {backup.id for backup in backups}


def swept(made: Plan, what: str = "WAL") -> set[str]:
    return {info.key for sweep in made.sweeps if sweep.what == what for info in sweep.objects}


def test_without_a_rule_everything_stays_wal_too() -> None:
    history = History()
    for days in (400, 1):
        history.backup("full", days, segment=10)
        history.backup("dump", days - 0.1)
    history.wal(range(1, 20), 400)
    made = plan(history)
    assert doomed(made) == set() and swept(made) == set()
    assert set(reasons(made).values()) == {
        "no rule is set for base backups",
        "no rule is set for base backups; newest full; newest base backup",
        "no rule is set for dumps",
    }


def test_the_newest_fulls_stay_with_the_incrementals_on_them() -> None:
    history = History()
    old, middle, new = (history.backup("full", days) for days in (9, 6, 3))
    on_old = history.backup("incremental", 8, parent=old)
    on_middle = history.backup("incremental", 5, parent=middle)
    made = plan(history, fulls=2)
    assert doomed(made) == ids(old, on_old)
    assert reasons(made)[on_middle.id] == "fulls"
    assert reasons(made)[middle.id] == f"fulls; {on_middle.id} needs it"
    assert reasons(made)[new.id] == "fulls; newest full; newest base backup"


def test_dumps_and_base_backups_do_not_count_for_each_other() -> None:
    history = History()
    fulls = [history.backup("full", days) for days in (3, 2, 1)]
    dumps = [history.backup("dump", days - 0.5) for days in (3, 2, 1)]
    assert doomed(plan(history, fulls=1)) == ids(*fulls[:2])
    assert doomed(plan(history, dumps=2)) == ids(dumps[0])


def test_an_incremental_that_stays_keeps_its_whole_chain() -> None:
    history = History()
    full = history.backup("full", 10)
    first = history.backup("incremental", 9, parent=full)
    second = history.backup("incremental", 8, parent=first)
    history.backup("full", 7)
    # Of its day it is the newest, and the last day but one that has a base backup.
    made = plan(history, daily=2)
    assert doomed(made) == set()
    assert reasons(made)[full.id] == f"{second.id} needs it"
    assert reasons(made)[first.id] == f"{second.id} needs it"


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("daily", [0.2, 1.2, 3.2]), ("weekly", [0.2, 1.2, 9.2]), ("monthly", [0.2, 24.2, 60.2]), ("yearly", [0.2, 400.2])],
)
def test_of_each_period_that_has_a_backup_the_newest_stays(rule: str, kept: list[float]) -> None:
    """2026-11-23 is a Monday: 1.2 days before its noon is the Sunday of the week before."""
    history = History()
    made = {days: history.backup("full", days) for days in (400.2, 60.2, 24.2, 9.2, 3.4, 3.2, 1.2, 0.4, 0.2)}
    dumps = {days: history.backup("dump", days) for days in (0.35, 0.15)}
    found = plan(history, **{rule: 3})
    assert doomed(found) == ids(*(made[days] for days in made if days not in kept), dumps[0.35])
    assert rule in reasons(found)[dumps[0.15].id]


def test_weeks_are_those_of_the_iso_calendar_across_a_new_year() -> None:
    history = History()
    thursday, sunday = history.backup("full", 326), history.backup("full", 323)
    assert thursday.id.startswith("20260101") and sunday.id.startswith("20260104")
    december = history.backup("full", 328)
    monday = history.backup("full", 322)
    assert doomed(plan(history, weekly=5)) == ids(december, thursday)
    assert doomed(plan(history, weekly=1)) == ids(december, thursday, sunday)
    assert doomed(plan(history, yearly=2)) == ids(thursday, sunday)
    assert monday.id not in doomed(plan(history, weekly=1))


def test_a_window_keeps_the_backup_that_it_begins_with_all_later_ones_and_the_wal_from_there_on() -> None:
    history = History()
    older = history.backup("full", 10, segment=10)
    base = history.backup("full", 8, segment=20)
    inner = history.backup("full", 3, segment=30)
    before, after = history.wal(range(5, 20), 9), history.wal(range(20, 40), 2)
    made = plan(history, window=7 * DAY)
    assert doomed(made) == ids(older)
    assert {reasons(made)[each.id].partition(";")[0] for each in (base, inner)} == {"window"}
    assert swept(made) == set(before)
    assert not swept(made) & set(after)


@pytest.mark.parametrize("known", [True, False])
def test_after_a_recovery_to_an_earlier_moment_the_window_begins_with_a_backup_that_leads_on(known: bool) -> None:
    history = History()
    oldest = history.backup("full", 25, segment=50)
    before = history.backup("full", 20, segment=100)
    left = history.backup("full", 12, segment=200)  # The cluster was then recovered to where segment 150 begins.
    if known:
        history.history(2, 10, left={1: 150})
    history.backup("full", 5, segment=170, timeline=2)
    wal = [*history.wal(range(100, 201), 11), *history.wal(range(150, 180), 6, timeline=2)]
    made = plan(history, window=7 * DAY)
    assert doomed(made) == (ids(oldest) if known else set())
    assert {reasons(made)[each.id] for each in (before, left)} == {"window"}
    assert not swept(made) & set(wal)


def test_a_window_that_no_backup_is_older_than_keeps_all() -> None:
    history = History()
    history.backup("full", 5, segment=10)
    history.wal(range(10, 20), 4)
    made = plan(history, window=7 * DAY)
    assert doomed(made) == set() and swept(made) == set()


def test_a_backup_that_ended_inside_the_window_is_not_its_beginning() -> None:
    history = History()
    before = history.backup("full", 7.5)
    history.backup("full", 7 + 0.5 / 1440)  # It began before the window and ended half a minute into it.
    assert doomed(plan(history, window=7 * DAY)) == set()
    assert "window" in reasons(plan(history, window=7 * DAY))[before.id]


def test_an_older_point_that_another_rule_keeps_holds_no_wal_when_there_is_a_window() -> None:
    history = History()
    yearly = history.backup("full", 400, segment=1)
    history.backup("full", 8, segment=20)
    wal = history.wal(range(1, 20), 9)
    made = plan(history, window=7 * DAY, yearly=5)
    assert "yearly" in reasons(made)[yearly.id]
    assert swept(made) == set(wal)


def test_an_older_point_that_does_not_carry_its_own_wal_keeps_that() -> None:
    history = History()
    history.backup("full", 400, segment=5, included=False)
    history.backup("full", 8, segment=20)
    wal = history.wal(range(1, 20), 9)
    assert swept(plan(history, window=7 * DAY, yearly=5)) == set(wal) - {history.wal_key(5)}


def test_without_a_window_the_wal_stays_from_the_oldest_kept_base_backup_on() -> None:
    history = History()
    history.backup("full", 9, segment=10)
    history.backup("full", 5, segment=20)
    history.backup("full", 1, segment=30)
    wal = history.wal(range(1, 40), 10)
    assert swept(plan(history, fulls=2)) == set(wal[:19])


def test_wal_that_was_stored_after_the_oldest_kept_backup_began_stays_wherever_it_lies() -> None:
    """A recovery to an earlier moment: the cluster writes WAL from there again, and has no backup of it yet."""
    history = History()
    history.backup("full", 9, segment=100)
    history.backup("full", 5, segment=200)
    history.backup("full", 0.5, segment=300)
    history.wal(range(150, 200), 6)
    again = history.wal(range(50, 60), 1, timeline=2)
    made = plan(history, fulls=2)
    assert swept(made) == {history.wal_key(number) for number in range(150, 200)}
    assert not swept(made) & set(again)


def test_a_timeline_that_begins_anew_makes_nothing_older() -> None:
    history = History()
    old = history.backup("full", 9, timeline=5, segment=100)
    new = history.backup("full", 1, timeline=2, segment=50)
    made = plan(history, fulls=1)
    assert doomed(made) == ids(old)
    assert new.id in reasons(made)


def test_a_new_cluster_takes_over_from_the_old_one_when_it_reaches_back_far_enough() -> None:
    history = History()
    old = history.backup("full", 20, cluster="9999", segment=10)
    wal = history.wal(range(10, 15), 15, cluster="9999")
    history.history(2, 16, cluster="9999")
    history.backup("full", 5, segment=1)
    # The moments of a week ago are the old cluster's, which rested then.
    made = plan(history, window=7 * DAY)
    assert doomed(made) == set() and swept(made) == set()
    made = plan(history, window=3 * DAY)
    assert doomed(made) == ids(old)
    assert swept(made) == set(wal) and len(swept(made, "history")) == 1


def test_the_wal_of_a_cluster_that_has_no_backup_yet_stays() -> None:
    history = History()
    history.backup("full", 9, cluster="1111")
    history.wal(range(1, 5), 1, cluster="2222")
    for rules in ({"fulls": 1}, {"window": 7 * DAY}):
        assert swept(plan(history, **rules)) == set()


def test_histories_stay_as_long_as_a_later_timeline_has_anything() -> None:
    history = History()
    history.backup("full", 20, segment=10)
    dead, second, third = (history.history(number, days) for number, days in ((7, 15), (2, 18), (3, 12)))
    history.wal(range(1, 10), 21)
    history.backup("full", 10, segment=30, timeline=3)
    history.wal(range(30, 40), 5, timeline=3)
    coming = history.history(8, 1)
    made = plan(history, fulls=1)
    assert swept(made, "history") == {dead}
    assert {second, third, coming} <= history.keys


def test_pieces_go_once_their_segment_is_whole_and_they_are_old_enough() -> None:
    history = History()
    history.backup("full", 9, segment=1)
    history.wal(range(1, 4), 3)
    old, new, open_one = (history.wal_key(number, rest=".pieces/00000000-00001000.zst.age") for number in (2, 3, 4))
    history.put(old, days_ago(3))
    history.put(new, days_ago(0.1))
    history.put(open_one, days_ago(3))
    assert swept(plan(history), "pieces of whole segments") == {old}


def test_what_is_nothing_of_wals_is_left_alone() -> None:
    history = History()
    history.backup("full", 9, segment=10)
    folder = layout.wal_folder(NAME, CLUSTER)
    for key in ("00000001/notes.txt", "readme", "00000001/000000010000000000000001.partial"):
        history.put(folder + key, days_ago(30))
    assert plan(history, fulls=1).sweeps == ()


def test_the_last_proven_backup_stays_and_so_does_its_chain() -> None:
    history = History()
    full = history.backup("full", 9)
    proven = history.backup("incremental", 8, parent=full)
    failed = history.backup("full", 5)
    history.backup("full", 1)
    history.prove(full)
    history.prove(proven)
    history.prove(failed, "failed")
    made = plan(history, fulls=1)
    assert doomed(made) == ids(failed)
    assert reasons(made)[proven.id] == "last proven"
    assert reasons(made)[full.id] == f"{proven.id} needs it"


def test_evidence_of_another_system_or_that_is_damaged_proves_nothing() -> None:
    history = History()
    old = history.backup("full", 9)
    history.backup("full", 1)
    for number, data in enumerate(
        [b"{", b"[]", b'{"system": "b-app038", "verdict": "ok", "backup": "%s"}' % old.id.encode()]
    ):
        history.put(layout.evidence(NOW, f"x{number}-b-{NAME}-drill-{number}"), NOW, data)
    assert doomed(plan(history, fulls=1)) == ids(old)


def test_the_newest_full_stays_though_a_newer_incremental_stands_on_an_older_one() -> None:
    history = History()
    old = history.backup("full", 9)
    newest = history.backup("full", 8)
    on_old = history.backup("incremental", 1, parent=old)
    made = plan(history, daily=1)
    assert doomed(made) == set()
    assert reasons(made)[newest.id] == "newest full"
    assert reasons(made)[old.id] == f"{on_old.id} needs it"


def test_while_a_base_backup_is_made_what_it_may_stand_on_stays() -> None:
    history = History()
    old = history.backup("full", 9, cluster="9999")
    history.backup("full", 1)
    assert doomed(plan(history, fulls=1)) == ids(old)
    with Lease(history.store, kind="postgres", name=NAME, job="base"):
        assert reasons(plan(history, fulls=1))[old.id] == "a backup under way may stand on it"


def test_a_chain_with_a_gap_is_left_alone_and_reported_and_stands_in_for_no_other() -> None:
    history = History()
    full = history.backup("full", 9.2)
    parent = history.backup("incremental", 9.1, parent=full)
    broken = history.backup("incremental", 9, parent=parent)
    good = history.backup("full", 9.15)
    history.backup("full", 1)
    history.store.delete(parent.folder + layout.MANIFEST)
    made = plan(history, daily=2)
    assert doomed(made) == set()
    assert reasons(made)[broken.id] == "its chain is broken"
    assert reasons(made)[full.id] == f"{broken.id} needs it"
    assert reasons(made)[good.id] == "daily"
    assert list(made.problems) == [
        f"{broken.id}: its chain lacks a backup, so that it cannot be restored; it is left alone "
        "-> bring the missing one back, or remove its folder by hand"
    ]


def test_a_manifest_that_cannot_be_read_is_never_deleted_and_keeps_what_it_may_need() -> None:
    history = History()
    old = history.backup("full", 9, segment=10)
    unreadable = history.backup("incremental", 8, parent=old)
    later = history.backup("full", 5, segment=20)
    history.backup("full", 1, segment=30)
    history.wal(range(1, 30), 10)
    history.put(unreadable.folder + layout.MANIFEST, days_ago(8), b'{"format_version": 2}')
    made = plan(history, fulls=1)
    assert doomed(made) == ids(later)
    assert reasons(made)[old.id] == f"{unreadable.id} cannot be read, and may need it"
    assert swept(made) == set() and swept(made, "unfinished backup") == set()
    assert "the manifest has format version 2" in made.problems[0]


def test_a_hold_keeps_a_backup_its_chain_and_names_who_and_why() -> None:
    from recovery.repository import holds

    history = History()
    full = history.backup("full", 9)
    held = history.backup("incremental", 8, parent=full)
    history.backup("full", 1)
    holds.place(history.store, NAME, held.id, reason="audit 2026")
    made = plan(history, fulls=1)
    assert doomed(made) == set()
    assert reasons(made)[held.id].startswith("hold: audit 2026 (")
    holds.release(history.store, NAME, held.id, reason="audit closed")
    assert doomed(plan(history, fulls=1)) == ids(full, held)


def test_a_hold_that_cannot_be_read_still_holds() -> None:
    history = History()
    old = history.backup("full", 9)
    history.backup("full", 1)
    history.put(layout.hold(NAME, old.id), NOW, b"\x00")
    assert reasons(plan(history, fulls=1))[old.id] == "hold: the hold cannot be read"


def test_a_backup_of_which_one_object_is_locked_waits_and_so_does_its_chain() -> None:
    history = History()
    full = history.backup("full", 9)
    locked = history.backup("incremental", 8, parent=full)
    history.backup("full", 1)
    until = NOW + 3 * DAY
    history.store.locks[locked.folder + layout.volume(0)] = until
    made = plan(history, fulls=1)
    assert doomed(made) == set()
    waiting = {decision.backup.id: decision for decision in made.decisions if decision.locked_until}
    assert set(waiting) == ids(full, locked)
    assert {decision.locked_until for decision in waiting.values()} == {until}
    assert waiting[full.id].why == "no rule wants it; it can go from 2026-11-26 12:00:00 UTC on"


def test_locked_wal_waits_and_the_rest_goes() -> None:
    history = History()
    history.backup("full", 1, segment=10)
    wal = history.wal(range(1, 10), 9)
    history.store.locks[wal[3]] = NOW + DAY
    made = plan(history, fulls=1)
    (sweep,) = made.sweeps
    assert {info.key for info in sweep.objects} == set(wal) - {wal[3]}
    assert [info.key for info in sweep.locked] == [wal[3]] and sweep.locked_until == NOW + DAY


def test_orphans_are_swept_by_the_age_of_their_newest_object() -> None:
    history = History()
    for identifier, ages in (("20261101T000000Z-full", (9, 2)), ("20261102T000000Z-full", (9, 0.5)), ("notes", (9,))):
        for number, age in enumerate(ages):
            folder = layout.backup_folder(NAME, CLUSTER, identifier)
            history.put(folder + layout.volume(number), days_ago(age))
    made = plan(history)
    assert {sweep.where for sweep in made.sweeps} == {layout.backup_folder(NAME, CLUSTER, "20261101T000000Z-full")}
    assert len(swept(made, "unfinished backup")) == 2


@pytest.mark.parametrize(("job", "swept_kinds"), [("base", {"dump"}), ("dump", {"full", "incremental"})])
def test_what_a_live_lease_covers_is_no_orphan_however_old(job: str, swept_kinds: set[str]) -> None:
    history = History()
    for kind in ("full", "incremental", "dump"):
        identifier = layout.backup_id(days_ago(9), kind)
        history.put(layout.backup_folder(NAME, CLUSTER, identifier) + "volumes/00000.tar.zst.age", days_ago(8))
    with Lease(history.store, kind="postgres", name=NAME, job=job):
        kinds = {sweep.where.rstrip("/").rpartition("-")[2] for sweep in plan(history).sweeps}
    assert kinds == swept_kinds


def test_the_plan_is_one_document() -> None:
    history = History()
    old = history.backup("full", 9, segment=10)
    new = history.backup("full", 1, segment=20)
    history.wal(range(10, 12), 9)
    document = plan(history, fulls=1).document()
    size = len(old.manifest.encode()) + 6
    assert document["backups"][0] == {
        "id": old.id,
        "kind": "full",
        "system_identifier": CLUSTER,
        "recovery_point": "2026-11-14T12:01:00+00:00",
        "stored_bytes": size,
        "decision": "delete",
        "reasons": [],
        "locked_until": None,
    }
    assert [each["decision"] for each in document["backups"]] == ["delete", "keep"]
    assert document["backups"][1]["reasons"] == ["fulls", "newest full", "newest base backup"]
    assert document["swept"][0]["objects"] == 2 and document["freed_bytes"] == size + 12
    assert new.id == document["backups"][1]["id"]
