"""Does an object's content read to its end? What `recovery verify --level opens` asks of each kind of object."""

from __future__ import annotations

from recovery.errors import IntegrityError
from recovery.manifest import StoredObject
from recovery.postgres.pg_restore import READ_ONLY, PgRestore
from recovery.postgres.tar import Ignore, TarStream
from recovery.postgres.tools import Tools
from recovery.repository.verify import ContentCheck


def check_for(item: StoredObject, *, tools: Tools) -> ContentCheck:
    """The check that fits the object's role. Dumps need `pg_restore` of the dumped server's major."""
    if item.role == "volume":
        return TarCheck()
    if item.role == "dump":
        return PgRestore(tools, *READ_ONLY, failure=_unreadable)
    return TextCheck()


class TarCheck:
    """The tar must reach its end-of-archive block."""

    def __init__(self) -> None:
        self._tar = TarStream(Ignore())

    def write(self, data: bytes, /) -> None:
        self._tar.write(data)

    def finish(self) -> None:
        self._tar.finish()

    def close(self) -> None:
        pass


class TextCheck:
    """Hashes alone decide."""

    def write(self, data: bytes, /) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def _unreadable(message: str) -> IntegrityError:
    return IntegrityError(f"pg_restore cannot read the dump: {message}", remedy="use another backup")
