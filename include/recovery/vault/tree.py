"""A tree of small text files as bytes: packed into one deterministic tar, unpacked from it, written to a directory."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path, PurePosixPath

from recovery.errors import ConfigurationError, IntegrityError

Tree = dict[str, bytes]
"""Relative path (slashes) → content, UTF-8."""

_END = bytes(2 * tarfile.BLOCKSIZE)
# An export has these at its root: by them an earlier one is known again.
_MARKS = {"auth.json", "mounts.json"}
_SUFFIXES = (".hcl", ".json")


def pack(tree: Tree) -> bytes:
    """A tar without owners and times, sorted by name: equal trees give equal bytes. (ustar; pax for long names.)"""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in sorted(tree.items()):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def unpack(data: bytes) -> Tree:
    """The tree of a tar; raises IntegrityError for what pack() would not have written."""
    if not data.endswith(_END):
        raise _damaged("it ends too early")
    tree: Tree = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                _check_name(member, tree)
                source = archive.extractfile(member)
                tree[member.name] = source.read() if source else b""
                tree[member.name].decode()
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as problem:
        raise _damaged(str(problem) or "it cannot be read") from None
    return tree


def write_tree(tree: Tree, directory: Path) -> None:
    """Write the files (0600) below `directory`: a new or empty one, or an earlier export's, whose other files go.

    A new one is for its owner alone. What begins with a dot is left as it is at its root: it may be a git repository.
    Raises ConfigurationError.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        present = {entry.name for entry in directory.iterdir() if not entry.name.startswith(".")}
        if present and not present >= _MARKS:
            raise ConfigurationError(
                f"the directory holds something else than an export ({min(present)})",
                where=str(directory),
                remedy="name a new or empty directory, or that of an earlier export",
            )
        # The marks first: a write that was interrupted can then be repeated.
        for path in sorted(tree, key=lambda path: (path not in _MARKS, path)):
            _check_folders(directory, path)
            _write(directory / path, tree[path])
        _remove_others(tree, directory)
    except OSError as problem:
        raise ConfigurationError(
            f"the export cannot be written ({(problem.strerror or str(problem)).lower()})",
            where=str(problem.filename or directory),
            remedy="name a directory that can be written",
        ) from None


def _check_name(member: tarfile.TarInfo, tree: Tree) -> None:
    name = member.name
    # A sparse file claims any size with no bytes behind it.
    if not member.isreg() or member.issparse():
        raise _damaged(f"{name!r} is not a plain file")
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise _damaged(f"the name {name!r} leads out of the tree")
    if name in tree:
        raise _damaged(f"{name!r} is in it twice")


def _check_folders(directory: Path, path: str) -> None:
    """A link in place of a folder would lead the files out of the directory."""
    for folder in PurePosixPath(path).parents:
        if folder.parts and (directory / folder).is_symlink():
            raise ConfigurationError(
                "a link stands in place of a folder of the export", where=str(directory / folder), remedy="remove it"
            )


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        target.write(content)


def _remove_others(tree: Tree, directory: Path) -> None:
    """Files of an earlier export that this one does not have, and the folders that are then empty."""
    roots = {"policies", "roles", "namespaces", "audit.json"}
    for parent, _, files in os.walk(directory, topdown=False):
        folder = Path(parent)
        inside = folder.relative_to(directory)
        for name in files:
            path = inside / name
            if path.parts[0] in roots and path.suffix in _SUFFIXES and path.as_posix() not in tree:
                (folder / name).unlink()
        if inside.parts and inside.parts[0] in roots and not any(folder.iterdir()):
            folder.rmdir()


def _damaged(what: str) -> IntegrityError:
    return IntegrityError(f"the export is damaged: {what}", where="export", remedy="use another backup")
