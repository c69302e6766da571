"""Deleting: the manifest first, nothing that came to be needed meanwhile, and what the store refuses stops nothing else."""

from __future__ import annotations

from datetime import timedelta

import pytest

from recovery import housekeeping
from recovery.config import Retention
from recovery.errors import LeaseError, StoreError
from recovery.housekeeping import Outcome
from recovery.repository import holds, layout
from recovery.repository.catalog import Backup
from recovery.repository.lease import Lease
from recovery.repository.store import Unfinished
from tests.history import CLUSTER, NAME, NOW, History, days_ago, restorable

ONE = Retention(fulls=1)


def apply(history: History, rules: Retention = ONE) -> Outcome:
    return housekeeping.apply(history.store, NAME, rules)[1]


def deletions(history: History) -> list[str]:
    """The keys that are deleted from now on, in order; leases are left out."""
    seen: list[str] = []

    def note(operation: str, key: str) -> None:
        if operation == "delete" and not key.startswith("leases/"):
            seen.append(key)

    history.store.before = note
    return seen


def chain(history: History) -> tuple[Backup, Backup, Backup]:
    """An old full with an incremental on it, and a new full."""
    full = history.backup("full", 9)
    return full, history.backup("incremental", 8, parent=full), history.backup("full", 1)


def test_manifests_go_first_and_of_a_chain_the_youngest() -> None:
    history = History()
    full, on_full, _ = chain(history)
    seen = deletions(history)
    outcome = apply(history)
    assert seen[:2] == [on_full.folder + layout.MANIFEST, full.folder + layout.MANIFEST]
    assert outcome.backups == [on_full.id, full.id] and outcome.objects == 4
    assert str(outcome) == f"2 backups, 4 objects, {outcome.bytes / 1e6:.1f} MB deleted"
    assert not any(key.startswith((full.folder, on_full.folder)) for key in history.keys)


def test_nothing_but_the_plan_is_deleted() -> None:
    history = History()
    _, _, new = chain(history)
    history.put("postgres/other/7301/backups/20200101T000000Z-full/volumes/00000.tar.zst.age", days_ago(900))
    history.put("postgres/app038b/7301/backups/20200101T000000Z-full/volumes/00000.tar.zst.age", days_ago(900))
    apply(history)
    assert {key.partition("/backups/")[0] for key in history.keys} == {new.folder.partition("/backups/")[0]}
    assert sum(key.startswith(("postgres/other/", "postgres/app038b/")) for key in history.store.objects) == 2


def test_only_one_at_a_time_deletes() -> None:
    history = History()
    chain(history)
    held = Lease(history.store, kind="postgres", name=NAME, job="retention")
    with held, pytest.raises(LeaseError, match="postgres app038, retention is being written by"):
        apply(history)
    assert apply(history).backups


def meanwhile(history: History, act) -> None:  # type: ignore[no-untyped-def]
    """Run `act` when the plan is made and its locks are asked for: what follows must see what it did."""

    def once(operation: str, key: str) -> None:
        if operation == "head":
            history.store.before = lambda operation, key: None
            act()

    history.store.before = once


def test_an_incremental_that_is_committed_meanwhile_keeps_its_parent_and_the_chain() -> None:
    history = History()
    full, on_full, _ = chain(history)
    made: list[Backup] = []
    meanwhile(history, lambda: made.append(history.backup("incremental", 0, parent=on_full)))
    outcome = apply(history)
    assert outcome.backups == [] and sorted(outcome.kept_back) == sorted([full.id, on_full.id])
    assert made[0].folder in restorable(history.store)


def test_a_backup_that_is_held_meanwhile_stays_with_its_chain() -> None:
    history = History()
    full, on_full, _ = chain(history)
    meanwhile(history, lambda: holds.place(history.store, NAME, on_full.id, reason="wait"))
    assert sorted(apply(history).kept_back) == sorted([full.id, on_full.id])
    assert len(restorable(history.store)) == 3


def test_an_orphan_that_is_committed_meanwhile_is_one_no_more() -> None:
    history = History()
    chain(history)
    late = history.backup("dump", 5)
    data = history.store.get(late.folder + layout.MANIFEST)
    history.store.delete(late.folder + layout.MANIFEST)
    meanwhile(history, lambda: history.store.put(late.folder + layout.MANIFEST, data))
    apply(history)
    assert late.folder in restorable(history.store)


def test_a_manifest_that_the_store_does_not_give_up_keeps_its_backup_whole() -> None:
    history = History()
    full, on_full, _ = chain(history)

    def refuse(operation: str, key: str) -> None:
        if operation == "delete" and key == on_full.folder + layout.MANIFEST:
            raise StoreError("the store denied access", where=key)

    history.store.before = refuse
    outcome = apply(history)
    assert outcome.backups == [] and outcome.kept_back == [full.id]
    assert outcome.failures == [f"{on_full.folder}manifest.json: the store denied access"]
    assert str(outcome).endswith("deleted, 1 not deleted")
    assert len(restorable(history.store)) == 3


def test_an_object_that_the_store_does_not_give_up_is_an_orphan_of_the_next_run() -> None:
    history = History()
    full, on_full, _ = chain(history)
    volume = on_full.folder + layout.volume(0)

    def refuse(operation: str, key: str) -> None:
        if operation == "delete" and key == volume:
            raise StoreError("the store denied access", where=key)

    history.store.before = refuse
    outcome = apply(history)
    assert sorted(outcome.backups) == sorted([full.id, on_full.id]) and len(outcome.failures) == 1
    history.store.before = lambda operation, key: None
    assert volume in history.keys
    apply(history)
    assert volume not in history.keys


def test_a_released_hold_goes_with_its_backup() -> None:
    history = History()
    full, _, _ = chain(history)
    holds.place(history.store, NAME, full.id, reason="audit")
    holds.release(history.store, NAME, full.id, reason="done")
    assert layout.hold(NAME, full.id) in history.store.objects
    apply(history)
    assert layout.hold(NAME, full.id) not in history.store.objects


def test_uploads_that_nobody_goes_on_with_are_aborted() -> None:
    history = History()
    aborted: list[str] = []
    folder = layout.backup_folder(NAME, CLUSTER, "20261120T000000Z-full")
    ages = {"volumes/00000.tar.zst.age": 3.0, "volumes/00001.tar.zst.age": 0.5}
    for rest, days in ages.items():
        key = folder + rest
        history.store.uploads.append(Unfinished(key, days_ago(days), lambda key=key: aborted.append(key)))  # type: ignore[misc]
    with Lease(history.store, kind="postgres", name=NAME, job="base"):
        apply(history)
    assert aborted == []
    apply(history)
    assert aborted == [folder + "volumes/00000.tar.zst.age"]


def test_a_lease_that_was_lost_stops_the_deletion() -> None:
    history = History()
    chain(history)
    begun = Lease.check

    def lost(lease: Lease) -> None:
        begun(lease)
        raise LeaseError("the lease was taken by another writer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lease, "check", lost)
        with pytest.raises(LeaseError):
            apply(history)
    assert len(restorable(history.store)) == 3


def test_progress_is_told_in_bytes() -> None:
    history = History()
    chain(history)
    told: list[tuple[str, int, int | None]] = []
    housekeeping.apply(history.store, NAME, ONE, progress=lambda *what: told.append(what))
    assert told and told[-1][0] == "deleted" and told[-1][1] == told[-1][2]


def test_a_hold_says_who_when_and_why_and_so_does_its_release() -> None:
    import json

    history = History()
    placed = holds.place(history.store, NAME, "20261101T000000Z-full", reason=" audit ")
    assert (placed.reason, placed.at) == ("audit", NOW.isoformat()) and "@" in placed.by
    assert holds.read(history.store, NAME) == {"20261101T000000Z-full": placed}
    history.store.pass_seconds(60)
    holds.release(history.store, NAME, "20261101T000000Z-full", reason="closed")
    assert holds.read(history.store, NAME) == {}
    document = json.loads(history.store.get(layout.hold(NAME, "20261101T000000Z-full")))
    assert document["reason"] == "audit" and document["released"]["reason"] == "closed"
    assert document["released"]["at"] == (NOW + timedelta(seconds=60)).isoformat()
    again = holds.place(history.store, NAME, "20261101T000000Z-full", reason="again")
    assert holds.read(history.store, NAME)["20261101T000000Z-full"] == again
