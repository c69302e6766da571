"""Verifying a PostgreSQL backup of an installation: the level, the keys and the programs that it needs."""

from __future__ import annotations

from collections.abc import Callable

from recovery.installation import Installation
from recovery.manifest import StoredObject
from recovery.postgres import tools
from recovery.postgres.contents import check_for
from recovery.repository import verify as repository_verify
from recovery.repository.catalog import Backup
from recovery.repository.verify import ContentCheck, Level, Report


def verify(
    installation: Installation,
    name: str,
    backup: Backup,
    level: Level,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Check one backup; `progress` gets the bytes read so far.

    Raises ConfigurationError where `opens` has no identity.
    """
    settings = installation.configuration.postgres_system(name)
    done = 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        progress(done)

    def content_check(item: StoredObject) -> ContentCheck:
        return check_for(item, tools=tools.find(backup.manifest.server.major, configured=settings.tools))

    return repository_verify.verify(
        installation.store_of(name),
        backup,
        level,
        identities=installation.identities() if level is Level.OPENS else (),
        content_check=content_check,
        progress=add,
    )
