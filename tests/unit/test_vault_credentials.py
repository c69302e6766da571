"""Where a system's login comes from, and what becomes of its connection; the leases are tested on real servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from recovery.connections import Connection
from recovery.errors import ConfigurationError
from recovery.vault.credentials import Login
from tests.conftest import directory_repository
from tests.support import Site, make_site

SERVER = Connection(
    id="app038_backup",
    type="postgres",
    host="db.example",
    port=6432,
    login="somebody",
    password="of-no-use",
    schema="app038",
    extra={"sslmode": "verify-full"},
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = make_site(tmp_path, None, repository=directory_repository(tmp_path))
    made.document["postgres"]["app038"] = {"connection": "app038_backup", "repository": "main"}
    made.document["vault"] = {"app038": {"product": "openbao", "connection": "app038_vault", "repository": "main"}}
    made.add(SERVER)
    return made


def test_a_connection_keeps_its_server_and_gets_another_login() -> None:
    found = Login("database/creds/backup", "v-backup", "leased", None).into(SERVER)
    assert (found.login, found.password) == ("v-backup", "leased")
    assert (found.host, found.port, found.schema, found.extra) == ("db.example", 6432, "app038", SERVER.extra)
    assert found.id == "app038_backup (login from database/creds/backup)"
    assert "leased" not in repr(found)


def test_a_login_without_a_lease_does_not_end() -> None:
    Login("secret/data/app038", "backup", "fixed", None).check()


def test_without_credentials_the_connection_itself_logs_in(site: Site) -> None:
    source = site.installation().source("app038")
    with source.logged_in() as reader:
        assert reader.connection == SERVER
        reader.check_login()


def test_the_vault_of_the_credentials_is_reached_as_its_own_connection_says(site: Site) -> None:
    site.system["credentials"] = {"vault": "app038", "path": "database/creds/backup"}
    with pytest.raises(ConfigurationError, match=r"^connection app038_vault: the connection is not defined$"):
        site.installation().source("app038")
    vault = Connection(id="app038_vault", type="vault", host="vault.example")
    site.add(vault)
    assert site.installation().source("app038").vault == vault


@pytest.mark.parametrize("path", ["backup", "/database/creds/backup", "database//backup", "database/creds/", "a b/c"])
def test_a_path_that_cannot_be_one_is_refused_at_load(site: Site, path: str) -> None:
    site.system["credentials"] = {"vault": "app038", "path": path}
    with pytest.raises(ConfigurationError, match=r"credentials\.path: a path in Vault is its mount and more"):
        site.installation()


def test_a_vault_that_is_not_configured_is_refused_at_load(site: Site) -> None:
    site.system["credentials"] = {"vault": "other", "path": "database/creds/backup"}
    with pytest.raises(
        ConfigurationError, match=r"credentials\.vault: no Vault is named 'other' -> use one of: app038"
    ):
        site.installation()
