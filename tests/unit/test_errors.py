"""Errors are one line that says what, where and what to do, also after they crossed a process boundary."""

from __future__ import annotations

import inspect
import pickle

import pytest

from recovery import errors
from recovery.errors import ConfigurationError, ConfigurationProblems, RecoveryError

KINDS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, RecoveryError) and kind is not ConfigurationProblems
]


def test_an_error_says_what_where_and_what_to_do() -> None:
    problem = RecoveryError("the disk is full", where="/srv", remedy="free space")
    assert str(problem) == "/srv: the disk is full -> free space"
    assert str(RecoveryError("the disk is full")) == "the disk is full"


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    assert str(RecoveryError("first\nsecond\r\n  third", where="a\nb")) == "a b: first second third"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_being_pickled(kind: type[RecoveryError]) -> None:
    problem = kind("what", where="where", remedy="remedy")
    again = pickle.loads(pickle.dumps(problem))
    assert (type(again), str(again), again.exit_status) == (kind, str(problem), problem.exit_status)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_in_the_docstring_names_every_error(kind: type[RecoveryError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")


def test_wrong_calls_and_configurations_are_status_2_and_failed_work_is_1() -> None:
    assert {kind.exit_status for kind in KINDS if issubclass(kind, ConfigurationError)} == {2}
    assert {kind.exit_status for kind in KINDS if not issubclass(kind, ConfigurationError)} == {1}
