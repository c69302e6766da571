"""Which snapshot belongs to a recovery point: the first one after it that knows every key version of its rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery import recovery_set
from recovery.config import KeyOptions
from recovery.drill import canaries
from recovery.manifest import KeyVersions
from recovery.repository.verify import Verdict
from tests.vaults import BEGAN, snapshot

KEY = "transit/app038"
HOUR = timedelta(hours=1)
POINT = BEGAN + 2 * HOUR


def carried(oldest: int, newest: int) -> dict[str, KeyVersions]:
    return {KEY: KeyVersions(oldest=oldest, newest=newest)}


def test_the_first_fitting_snapshot_after_the_point_is_taken() -> None:
    taken = [snapshot(BEGAN + hours * HOUR, keys={KEY: (1, 3)}) for hours in (1, 3, 4)]
    found = recovery_set.choose(POINT, carried(1, 3), taken)
    assert found.snapshot is taken[1] and found.apart_seconds == 3600 and found.risk == ""
    assert recovery_set.choose(BEGAN + 3 * HOUR, carried(1, 3), taken).snapshot is taken[1]


def test_one_that_no_longer_decrypts_the_rows_is_passed_over_for_a_later_or_an_earlier_one() -> None:
    before, after, later = (
        snapshot(BEGAN + HOUR, keys={KEY: (1, 3)}),
        snapshot(BEGAN + 3 * HOUR, keys={KEY: (3, 4)}),
        snapshot(BEGAN + 4 * HOUR, keys={KEY: (1, 4)}),
    )
    assert recovery_set.choose(POINT, carried(2, 3), [before, after, later]).snapshot is later
    found = recovery_set.choose(POINT, carried(2, 3), [before, after])
    assert found.snapshot is before and found.apart_seconds == -3600
    assert found.risk == "it is older than the point: rows that carry a key version made since could not be decrypted"


@pytest.mark.parametrize(
    ("keys", "versions", "reason"),
    [
        ({}, (1, 1), f"the Vault's half is wrong: it has no key {KEY}, and rows are encrypted with it"),
        (
            {KEY: (1, 2)},
            (1, 3),
            f"the Vault's half is too old: rows carry version 3 of {KEY}, and it ends at 2; take a snapshot now, or restore one from after the rotation",
        ),
        (
            {KEY: (3, 5)},
            (2, 5),
            f"the database's half is too old: rows carry version 2 of {KEY}, and it decrypts from 3 on; restore a later recovery point, or an older snapshot",
        ),
    ],
)
def test_where_none_fits_the_nearest_says_why(
    keys: dict[str, tuple[int, int]], versions: tuple[int, int], reason: str
) -> None:
    only = snapshot(BEGAN, keys=keys)
    found = recovery_set.choose(POINT, carried(*versions), [only])
    assert found.snapshot is None and found.risk == f"no snapshot fits; {only.id}: {reason}"
    assert found.document() == {"snapshot": None, "apart_seconds": None, "risk": found.risk}


def test_without_snapshots_there_is_no_pair_and_without_known_versions_time_alone_decides() -> None:
    assert recovery_set.choose(POINT, {}, []).risk == "there is no snapshot of the Vault that holds its keys"
    taken = [snapshot(BEGAN + hours * HOUR) for hours in (1, 3)]
    assert recovery_set.choose(POINT, {}, taken).snapshot is taken[1]


RANGES = st.tuples(st.integers(1, 6), st.integers(0, 5)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(
    taken=st.lists(st.tuples(st.integers(0, 20), RANGES), max_size=6, unique_by=lambda pair: pair[0]),
    hour=st.integers(0, 20),
    rows=RANGES,
)
def test_what_is_chosen_decrypts_every_row_and_nothing_better_was_there(
    taken: list[tuple[int, tuple[int, int]]], hour: int, rows: tuple[int, int]
) -> None:
    snapshots = [snapshot(BEGAN + hours * HOUR, keys={KEY: span}) for hours, span in sorted(taken)]
    fitting = [hours for hours, (least, latest) in sorted(taken) if least <= rows[0] and rows[1] <= latest]
    found = recovery_set.choose(BEGAN + hour * HOUR, carried(*rows), snapshots)
    if not fitting:
        assert found.snapshot is None and found.risk
        return
    after = [hours for hours in fitting if hours >= hour]
    best = after[0] if after else fitting[-1]
    assert found.snapshot is not None and found.snapshot.manifest.recovery_point == BEGAN + best * HOUR
    assert bool(found.risk) == (not after)


def test_without_canary_and_column_nothing_is_known() -> None:
    def nobody(*_: object) -> Any:
        raise AssertionError("there is nothing to ask for")

    (check,) = canaries.check(nobody, nobody, KeyOptions(vault="app038"), {})  # type: ignore[arg-type]
    assert check.verdict is Verdict.UNKNOWN
    assert check.detail.startswith("neither a canary nor a column is configured")
