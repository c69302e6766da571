"""What differs between two exports, as lines that a person reads and a terminal does not obey."""

from __future__ import annotations

import json
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from recovery.vault.diff import compare, render, unified

TREES = st.dictionaries(st.sampled_from(["a", "b", "c/d"]), st.text(max_size=20).map(str.encode), max_size=3)


def test_equal_trees_have_no_changes() -> None:
    assert compare({"a": b"x\n", "b": b""}, {"b": b"", "a": b"x\n"}) == []


def test_each_file_that_differs_is_named_once_in_order_of_its_path() -> None:
    before = {"b": b"same\n", "c": b"old\nkept\n", "d": b"gone\n"}
    after = {"a": b"new\n", "b": b"same\n", "c": b"young\nkept\n"}
    assert [(change.path, change.kind, change.lines) for change in compare(before, after)] == [
        ("a", "added", ("@@ -0,0 +1 @@", "+new")),
        ("c", "changed", ("@@ -1,2 +1,2 @@", "-old", "+young", " kept")),
        ("d", "removed", ("@@ -1 +0,0 @@", "-gone")),
    ]


def test_an_empty_file_that_came_or_went_is_a_change_without_lines() -> None:
    assert [(change.kind, change.lines) for change in compare({"a": b""}, {"b": b""})] == [
        ("removed", ()),
        ("added", ()),
    ]


def test_a_newline_that_went_at_the_end_is_shown() -> None:
    assert unified("x\n", "x") == ("@@ -1 +1 @@", "-x", "+x", "\\ No newline at end of file")


def test_other_line_ends_than_newline_are_shown_and_split_nothing() -> None:
    assert unified("x\ny\n", "x\r\ny\u2028z\n") == ("@@ -1,2 +1,2 @@", "-x", "-y", "+x\\r", "+y\\u2028z")


def test_a_terminal_obeys_nothing_of_a_diff() -> None:
    hostile = '# \x1b]0;title\x07 \x9b2J\n\tpath "ä" {}\n'
    assert unified("", hostile)[1:] == ("+# \\x1b]0;title\\x07 \\x9b2J", '+\tpath "ä" {}')


def test_the_plain_rendering_heads_each_file_and_indents_its_lines() -> None:
    assert render(compare({"p.hcl": b"a\n"}, {"q.hcl": b"b\n"})) == (
        "removed: p.hcl\n  @@ -1 +0,0 @@\n  -a\nadded: q.hcl\n  @@ -0,0 +1 @@\n  +b\n"
    )
    assert render([]) == ""


@given(before=TREES, after=TREES)
def test_a_diff_is_empty_for_equal_trees_alone_and_mirrors_itself(
    before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    changes, back = compare(before, after), compare(after, before)
    assert bool(changes) == (before != after)
    assert [change.path for change in changes] == [change.path for change in back]
    turned = {"added": "removed", "removed": "added", "changed": "changed"}
    assert [change.kind for change in changes] == [turned[change.kind] for change in back]
    json.dumps([asdict(change) for change in changes])
    for change in changes:
        assert change.lines or b"" in (before.get(change.path, b""), after.get(change.path, b""))
        assert all("\n" not in line for line in change.lines)
