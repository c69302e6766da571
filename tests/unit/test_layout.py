"""Keys and ids are pure functions: they sort by time, they are unambiguous, and any name is safe in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery.repository import layout

# Hypothesis takes naive bounds and adds the zone itself.
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def test_an_id_names_its_moment_in_utc_and_its_kind() -> None:
    moment = datetime(2026, 11, 23, 3, 0, 7, tzinfo=timezone(timedelta(hours=1)))
    assert layout.backup_id(moment, "full") == "20261123T020007Z-full"


@given(MOMENTS, MOMENTS, st.sampled_from(["full", "incremental", "dump"]))
def test_ids_sort_by_time(first: datetime, second: datetime, kind: str) -> None:
    first, second = first.replace(microsecond=0), second.replace(microsecond=0)
    ids = layout.backup_id(first, kind), layout.backup_id(second, kind)
    assert (ids[0] < ids[1]) == (first < second)
    assert all(layout.ID_PATTERN.fullmatch(found) for found in ids)
    assert layout.moment_of(ids[0]) == first


def test_the_layout_is_the_documented_one() -> None:
    folder = layout.backup_folder("app038", "7301", "20261123T020000Z-full")
    assert folder == "postgres/app038/7301/backups/20261123T020000Z-full/"
    assert folder.startswith(layout.backups_folder("app038", "7301"))
    assert layout.volume(12) == "volumes/00012.tar.zst.age"
    assert layout.evidence(datetime(2026, 11, 23, 4, tzinfo=UTC), "d") == "evidence/2026-11-23/d.json"
    assert layout.lease_folder("postgres", "app038", "full") == "leases/postgres/app038/full/"


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=63))
def test_a_database_of_any_name_gets_a_key_of_one_safe_step(name: str) -> None:
    key = layout.dump(name)
    step = key.removeprefix("dumps/")
    assert "/" not in step and step not in (".", "..")
    assert step.isascii() and step.isprintable() and " " not in step


@given(st.sets(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20), min_size=2, max_size=6))
def test_two_databases_never_share_a_key(names: set[str]) -> None:
    assert len({layout.dump(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "text", ["20261123T020000Z", "20261123T020000Z-copy", "x20261123T020000Z-full", "20261123T020000Z-full/"]
)
def test_what_is_no_id_does_not_match(text: str) -> None:
    assert not layout.ID_PATTERN.fullmatch(text)
