"""One writer at a time, kept by nothing but conditional puts. The clock is the store's."""

from __future__ import annotations

import json
import time
from datetime import timedelta

import pytest

from recovery.errors import LeaseError, StoreError, StoreUnreachable
from recovery.repository.lease import Lease, held_jobs
from tests.memory import MemoryStore

FOLDER = "leases/postgres/app038/full/"
LONG = timedelta(seconds=120)
SHORT = timedelta(seconds=0.15)


def lease(store: MemoryStore, *, ttl: timedelta = LONG) -> Lease:
    return Lease(store, kind="postgres", name="app038", job="full", ttl=ttl)


def written(store: MemoryStore) -> list[str]:
    return [key.removeprefix(FOLDER) for key in sorted(store.objects)]


def until(condition, seconds: float = 5.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_of_two_writers_loses_and_is_told_who_holds_it() -> None:
    store = MemoryStore()
    with lease(store) as first:
        with pytest.raises(LeaseError) as caught, lease(store):
            pass
        first.check()
    assert "postgres app038, full is being written by " in str(caught.value)
    assert "a dead writer is passed over after 120 s" in str(caught.value)


def test_two_writers_that_start_at_one_moment_do_not_both_win() -> None:
    store = MemoryStore()
    rival = lease(store)

    def race(operation: str, key: str) -> None:
        if operation == "put-if-absent" and not store.objects:
            store.before = lambda operation, key: None
            rival.__enter__()

    store.before = race
    with pytest.raises(LeaseError, match="another writer took postgres app038, full at this moment"), lease(store):
        pass
    rival.check()
    rival.__exit__(None, None, None)


def test_other_jobs_and_systems_do_not_exclude_each_other() -> None:
    store = MemoryStore()
    dump = Lease(store, kind="postgres", name="app038", job="dump")
    with lease(store), dump, Lease(store, kind="postgres", name="other", job="full"):
        pass


def test_a_released_lease_is_free_at_once() -> None:
    store = MemoryStore()
    for _ in range(3):
        with lease(store):
            pass


def test_a_failed_writer_releases_it_too() -> None:
    store = MemoryStore()
    with pytest.raises(ZeroDivisionError), lease(store):
        _ = 1 / 0
    with lease(store):
        pass


def test_a_dead_writers_lease_is_passed_over_when_it_has_expired() -> None:
    store = MemoryStore()
    dead = lease(store)
    dead.__enter__()
    dead._stop.set()  # As if its process had been killed: it renews no more.
    store.pass_seconds(119)
    with pytest.raises(LeaseError), lease(store):
        pass
    store.pass_seconds(2)
    with lease(store) as new:
        new.check()


def test_a_lease_is_renewed_for_as_long_as_the_work_takes() -> None:
    store = MemoryStore()
    with lease(store, ttl=SHORT):
        until(lambda: max(store.objects) >= FOLDER + "00000004.json")


def test_a_writer_whose_lease_was_taken_is_told() -> None:
    store = MemoryStore()
    with lease(store, ttl=SHORT) as held:
        taken = json.dumps({"holder": "somebody", "released": False, "ttl_seconds": 120}).encode()
        number = len(store.objects) + 1
        for place in range(number, number + 5):
            store.objects[f"{FOLDER}{place:08d}.json"] = (taken, store.clock)

        def lost() -> bool:
            try:
                held.check()
            except LeaseError as problem:
                assert "the lease was taken by another writer" in str(problem)
                return True
            return False

        until(lost)


def test_a_writer_that_was_paused_and_passed_over_is_told_though_the_trace_was_swept() -> None:
    store = MemoryStore()
    paused = lease(store, ttl=timedelta(seconds=0.6))
    paused.__enter__()
    store.pass_seconds(3600)
    for _ in range(5):
        with lease(store):
            pass  # The others have come and gone, and each swept what lay below it.
    until(lambda: paused._lost is not None, seconds=0.5)
    with pytest.raises(LeaseError, match="taken by another writer"):
        paused.check()
    paused.__exit__(None, None, None)


def test_a_writer_that_slept_past_its_lease_may_not_go_on_before_it_has_renewed_it() -> None:
    store = MemoryStore()
    blocked = {"renew": False}
    deadline = time.monotonic() + 5

    def hang(operation: str, key: str) -> None:
        while blocked["renew"] and time.monotonic() < deadline:
            time.sleep(0.01)

    store.before = hang
    with lease(store, ttl=timedelta(seconds=0.3)) as held:
        held.check()
        blocked["renew"] = True
        time.sleep(0.5)
        with pytest.raises(LeaseError, match="has run out"):
            held.check()
        blocked["renew"] = False


def test_a_store_that_fails_once_costs_nothing_and_one_that_goes_on_failing_costs_the_lease() -> None:
    store = MemoryStore()
    failures = iter([True])

    def fail_once(operation: str, key: str) -> None:
        if operation == "put-if-absent" and next(failures, False):
            raise StoreUnreachable("no answer")

    def fail(operation: str, key: str) -> None:
        raise StoreUnreachable("no answer")

    with lease(store, ttl=timedelta(seconds=0.6)) as held:
        store.before = fail_once
        until(lambda: max(store.objects) >= FOLDER + "00000002.json")
        held.check()
        store.before = fail
        until(lambda: held._lost is not None)
        with pytest.raises(LeaseError, match=r"could not be renewed \(no answer\)"):
            held.check()
        store.before = lambda operation, key: None


def test_a_store_that_cannot_keep_leases_says_so_and_the_caller_decides() -> None:
    def refuse(operation: str, key: str) -> None:
        if operation == "put-if-absent":
            raise StoreError("not implemented")

    with pytest.raises(StoreError, match="not implemented"), lease(MemoryStore(before=refuse)):
        pass


def test_sweeping_leaves_one_object() -> None:
    store = MemoryStore()
    for _ in range(3):
        with lease(store, ttl=SHORT):
            time.sleep(0.12)
    assert len(store.objects) == 1
    assert json.loads(store.get(next(iter(store.objects))))["released"] is True


def test_a_release_that_fails_hides_no_error_of_the_work() -> None:
    store = MemoryStore()

    def fail(operation: str, key: str) -> None:
        raise StoreUnreachable("no answer")

    with pytest.raises(ZeroDivisionError), lease(store):
        store.before = fail
        _ = 1 / 0


def test_the_jobs_that_somebody_is_at_work_on_are_known() -> None:
    store = MemoryStore()
    assert held_jobs(store, kind="postgres", name="app038") == frozenset()
    with lease(store), Lease(store, kind="postgres", name="other", job="dump"):
        assert held_jobs(store, kind="postgres", name="app038") == {"full"}
        store.pass_seconds(121)
        assert held_jobs(store, kind="postgres", name="app038") == frozenset()
    assert held_jobs(store, kind="postgres", name="app038") == frozenset()
