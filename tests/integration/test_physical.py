"""Full backups of every major, restored with their tablespaces and opened: the rows are the source's."""

from __future__ import annotations

import pytest

from lab.postgres import PostgresServer
from recovery.postgres import restore
from tests.support import OWNER, opened, contents, server_contents


@pytest.mark.parametrize("compression", ["client", "server"])
def test_a_full_backup_restores_to_equal_rows(any_server: PostgresServer, site_of, compression: str) -> None:
    site = site_of(any_server)
    site.system["base"] = {"compression": {"where": compression}}
    made = site.backup()
    places = restore.place_tablespaces(made.manifest, {"app038_archive": str(site.folder / "elsewhere")})
    restore.restore_base(
        site.store(), made, site.folder / "data", identities=[site.identity], tablespaces=places, owner=OWNER
    )
    with opened(site, made, site.folder / "data") as restored:
        assert contents(restored.connect) == server_contents(any_server)
    assert any(item.is_file() for item in (site.folder / "elsewhere").rglob("*"))
