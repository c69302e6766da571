"""Holds: a person's word that a backup must not go, whatever the rules say.

A hold is one small object, without Object Lock. Releasing it writes into it who did and why, so that both stay known
for as long as the backup does.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recovery.errors import ConfigurationError, ObjectMissing
from recovery.repository import layout
from recovery.repository.store import ObjectStore


@dataclass(frozen=True)
class Hold:
    """Who holds a backup, since when and why. What cannot be read holds too: it was written to protect something."""

    at: str
    by: str
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} ({self.by}, {self.at})" if self.by else self.reason


def read(store: ObjectStore, name: str, *, kind: str = "postgres") -> dict[str, Hold]:
    """The holds of a system (of kind `postgres` or `vault`) that are not released, by the id of the backup."""
    found = {}
    folder = layout.holds_folder(name, kind=kind)
    for info in store.scan(folder):
        document = _document(store, info.key)
        if document is not None and "released" not in document:
            found[info.key.removeprefix(folder).removesuffix(".json")] = _hold(document)
    return found


def place(store: ObjectStore, name: str, identifier: str, *, reason: str, kind: str = "postgres") -> Hold:
    """Hold a backup; raises ConfigurationError when it is held already."""
    if (held := read(store, name, kind=kind).get(identifier)) is not None:
        raise ConfigurationError(f"it is held already: {held}", where=identifier, remedy="nothing is to be done")
    document = _signed(store, reason)
    _write(store, layout.hold(name, identifier, kind=kind), document)
    return _hold(document)


def release(store: ObjectStore, name: str, identifier: str, *, reason: str, kind: str = "postgres") -> Hold:
    """End a hold; returns it as it was. Raises ConfigurationError when there is none."""
    held = read(store, name, kind=kind).get(identifier)
    if held is None:
        raise ConfigurationError("it is not held", where=identifier, remedy="see `recovery list` for what is")
    before = {"at": held.at, "by": held.by, "reason": held.reason}
    _write(store, layout.hold(name, identifier, kind=kind), before | {"released": _signed(store, reason)})
    return held


def _write(store: ObjectStore, key: str, document: Mapping[str, Any]) -> None:
    data = json.dumps(document, sort_keys=True, ensure_ascii=False).encode()
    store.put(key, data, locked=False)


def _signed(store: ObjectStore, reason: str) -> dict[str, Any]:
    if not reason.strip():
        raise ConfigurationError("the reason is empty", where="--reason", remedy="say why, for whoever finds it later")
    return {"at": store.now().isoformat(timespec="seconds"), "by": _person(), "reason": reason.strip()}


def _person() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # In a container the user may have no name.
    return f"{user}@{socket.gethostname()}"


def _document(store: ObjectStore, key: str) -> dict[str, Any] | None:
    try:
        document = json.loads(store.get(key))
    except ObjectMissing:
        return None
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _hold(document: Mapping[str, Any]) -> Hold:
    return Hold(
        at=str(document.get("at", "")),
        by=str(document.get("by", "")),
        reason=str(document.get("reason", "the hold cannot be read")),
    )
