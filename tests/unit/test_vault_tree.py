"""An export as bytes: equal trees give equal tars, nothing damaged or hostile is unpacked, a directory is never mixed up."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery.errors import ConfigurationError, IntegrityError
from recovery.vault.tree import Tree, pack, unpack, write_tree

TREE: Tree = {
    "auth.json": b"{}\n",
    "mounts.json": b"{}\n",
    "policies/a%2Fb.hcl": b'path "x" {}',
    "roles/transit/names.json": b"{}\n",
}
SEGMENTS = st.text(alphabet="ab%2.ü -", min_size=1, max_size=90).filter(lambda name: name not in (".", ".."))


def tar(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content), kind
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def files(directory: Path) -> Tree:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def test_the_order_of_a_tree_does_not_show_in_its_tar() -> None:
    assert pack(TREE) == pack(dict(reversed(TREE.items())))


def test_a_tar_says_nothing_of_who_made_it_and_when() -> None:
    with tarfile.open(fileobj=io.BytesIO(pack(TREE))) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644
        assert archive.getnames() == sorted(TREE)


@given(st.dictionaries(st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join), st.text().map(str.encode), max_size=4))
def test_what_is_packed_is_unpacked(tree: Tree) -> None:
    assert unpack(pack(tree)) == tree


def test_a_very_long_name_is_kept() -> None:
    tree = {"policies/" + "l" * 400 + ".hcl": b"x"}
    assert unpack(pack(tree)) == tree


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "policies/../../evil", "a//b", "./a", "policies/.", "a\\b", ".."]
)
def test_a_name_that_leads_out_of_the_tree_is_refused(name: str) -> None:
    with pytest.raises(IntegrityError, match="leads out of the tree -> use another backup"):
        unpack(tar((name, b"x")))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_anything_but_a_file_is_refused(kind: bytes) -> None:
    with pytest.raises(IntegrityError, match="'a' is not a plain file"):
        unpack(tar(("a", b""), kind=kind))


def test_a_sparse_file_that_claims_what_it_does_not_hold_is_refused() -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a")
        member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40)}
        archive.addfile(member, io.BytesIO())
    with pytest.raises(IntegrityError, match="'a' is not a plain file"):
        unpack(target.getvalue())


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(IntegrityError, match="'a' is in it twice"):
        unpack(tar(("a", b"1"), ("a", b"2")))


def test_content_that_is_no_text_is_refused() -> None:
    with pytest.raises(IntegrityError, match="the export is damaged: 'utf-8' codec"):
        unpack(tar(("a", b"\xff\xfe")))


@pytest.mark.parametrize("length", [0, 1, 511, 512, 700, 1024, 2048])
def test_a_tar_that_was_cut_off_is_refused(length: int) -> None:
    data = pack({"a": b"x" * 600, "b": b"y" * 600})
    with pytest.raises(IntegrityError, match="the export is damaged"):
        unpack(data[:length])


@given(st.binary(max_size=1200), st.booleans())
def test_bytes_of_any_kind_give_a_tree_or_say_that_they_are_damaged(data: bytes, ended: bool) -> None:
    try:
        tree = unpack(data + bytes(1024) if ended else data)
    except IntegrityError:
        return
    assert all(isinstance(content, bytes) for content in tree.values())


@given(st.integers(0, 511), st.integers(0, 255))
def test_a_changed_byte_in_a_header_gives_a_tree_or_says_that_it_is_damaged(position: int, value: int) -> None:
    data = bytearray(pack(TREE))
    data[position] = value
    try:
        unpack(bytes(data))
    except IntegrityError:
        return


def test_a_new_directory_gets_the_files_for_their_owner_alone(tmp_path: Path) -> None:
    target = tmp_path / "new" / "export"
    write_tree(TREE, target)
    assert files(target) == TREE
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.rglob("*") if path.is_file()} == {0o600}
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


def test_an_earlier_export_is_replaced_and_what_is_gone_goes(tmp_path: Path) -> None:
    write_tree(TREE | {"audit.json": b"", "namespaces/team/policies/x.hcl": b"", "policies/z.hcl": b""}, tmp_path)
    changed = TREE | {"mounts.json": b'{"a": 1}\n'}
    write_tree(changed, tmp_path)
    assert files(tmp_path) == changed
    assert not (tmp_path / "namespaces").exists()


def test_a_repository_around_an_export_and_files_of_others_stay(tmp_path: Path) -> None:
    write_tree(TREE, tmp_path)
    others = {".git/config": b"git", "README.md": b"ours", "policies/notes.txt": b"ours", "terraform/x.hcl": b"ours"}
    for path, content in others.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    write_tree(TREE, tmp_path)
    assert files(tmp_path) == TREE | others


def test_a_fresh_git_repository_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    write_tree(TREE, tmp_path)
    assert files(tmp_path) == TREE


def test_a_directory_with_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "mine.hcl").write_text("mine")
    with pytest.raises(ConfigurationError) as caught:
        write_tree(TREE, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: the directory holds something else than an export (policies)"
        " -> name a new or empty directory, or that of an earlier export"
    )
    assert files(tmp_path) == {"policies/mine.hcl": b"mine"}


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("x")
    with pytest.raises(ConfigurationError) as caught:
        write_tree(TREE, target)
    assert str(caught.value) == (
        f"{target}: the export cannot be written (file exists) -> name a directory that can be written"
    )


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    target = tmp_path / "export"
    write_tree(TREE, target)
    (target / "mounts.json").unlink()
    (target / "mounts.json").symlink_to(outside)
    with pytest.raises(ConfigurationError, match="too many levels of symbolic links"):
        write_tree(TREE, target)
    assert outside.read_text() == "precious"


def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "export"
    write_tree({"auth.json": b"{}\n", "mounts.json": b"{}\n"}, target)
    (target / "policies").symlink_to(outside)
    with pytest.raises(ConfigurationError) as caught:
        write_tree(TREE, target)
    assert str(caught.value) == f"{target}/policies: a link stands in place of a folder of the export -> remove it"
    assert list(outside.iterdir()) == []
