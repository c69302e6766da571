"""Sizes and durations as the command prints them."""

from __future__ import annotations

import pytest

from recovery.cli._run import duration, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (69_000_000, "69.0 MB"),
        (1_500_000_000, "1.5 GB"),
        (2 * 10**12, "2.00 TB"),
    ],
)
def test_bytes_are_in_powers_of_ten(value: int, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (119.94, "119.9 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h")]
)
def test_durations_keep_to_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
