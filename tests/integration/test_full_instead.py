"""An incremental that cannot be trusted becomes a full backup in the same run, and says why: each reason, on real servers."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from lab import app038
from lab.postgres import PostgresServer
from recovery.drill.postgres import drill
from recovery.manifest import StoredObject
from recovery.postgres import inspect
from recovery.postgres.wal.positions import parse_lsn
from recovery.repository import layout
from recovery.repository.catalog import Backup
from recovery.repository.in_memory import seal_bytes
from recovery.repository.sealing import unseal_bytes
from recovery.repository.verify import Verdict
from tests.conftest import Servers, directory_repository
from tests.integration.test_incremental import SiteOf, incremental, on, places_of, restored
from tests.support import Site, make_site, new_folder, postgres_connection, server_contents


def full_instead(site: Site) -> str:
    """Ask for an incremental, and get a full backup that is whole; the reason that it gives."""
    made = site.backup("incremental")
    assert (made.manifest.kind, made.manifest.parent, made.manifest.chain) == ("full", None, [])
    assert made in site.catalog().backups
    (note,) = made.manifest.notes
    before, _, reason = note.partition(": ")
    assert before == "a full backup was taken instead of an incremental one"
    return reason


# Where the repository is the reason.


def test_the_first_backup_is_a_full_one_and_the_command_says_why(site: Site) -> None:
    shown = site.run("backup", "postgres", "app038", "--type", "incremental").stdout
    assert "-full: " in shown
    assert "note: a full backup was taken instead of an incremental one: there is no full backup yet" in shown
    (first,) = site.catalog().backups
    assert f"builds on {first.id}" in site.run("backup", "postgres", "app038", "--type", "incremental").stdout


def test_a_chain_is_as_long_as_configured_and_a_request_ends_it_earlier(site: Site) -> None:
    site.system["incremental"] = {"max_chain": 1}
    site.backup()
    incremental(site)
    assert "1 incrementals build on one full backup already" in full_instead(site)
    request = layout.full_request("app038")
    site.store().put(request, b'{"reason":"WAL is missing"}', locked=False)
    assert full_instead(site) == "a full backup was requested: WAL is missing"
    assert request not in site.keys()
    incremental(site)


def test_a_member_that_is_gone_breaks_the_chain(site: Site) -> None:
    full = site.backup()
    first = incremental(site)
    shutil.rmtree(site.folder / "repository" / full.folder)
    assert f"{first.id} needs {full.id}, which cannot be read in the repository" in full_instead(site)
    message = site.error(
        *("restore", "postgres", "app038", "--to", first.id, "--pgdata", site.folder / "data"),
    )
    assert f"{first.id}: it needs {full.id}, which is not in the repository" in message
    found = drill(site.installation(), "app038", first)
    assert found.verdict is Verdict.FAILED and f"it needs {full.id}" in found.checks[0].detail


def edited(site: Site, made: Backup, change: Callable[[dict[str, Any]], None]) -> None:
    path = site.folder / "repository" / made.folder / "manifest.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.chmod(0o600)
    path.write_text(json.dumps(document))


def test_another_minor_version_or_key_breaks_the_chain(site: Site) -> None:
    made = site.backup()
    edited(site, made, lambda document: document["server"].update(version="17.1", version_number=170001))
    assert f"the server's version changed since {made.id}, which was taken from 17.1" in full_instead(site)
    made = site.catalog().backups[-1]
    edited(site, made, lambda document: document.update(recipients=["age1another"]))
    assert f"{made.id} cannot be opened with every key" in full_instead(site)


@pytest.mark.faults
def test_a_parent_without_its_backup_manifest_gets_a_full_backup(site: Site) -> None:
    made = site.backup()
    (site.folder / "repository" / made.folder / "backup_manifest.zst").unlink()
    assert full_instead(site) == f"the backup_manifest of {made.id} is of no use: the object is not there"


@pytest.mark.faults
def test_a_refusal_of_the_server_gets_a_full_backup_in_the_same_run(site: Site) -> None:
    made = site.backup()
    identifier = int(made.manifest.server.system_identifier)
    changes = {
        "manifest checksum mismatch": lambda manifest: manifest.replace(b"CRC32C", b"SHA256", 1),
        "system identifier in backup manifest is": lambda manifest: signed(
            manifest.replace(b"%d" % identifier, b"%d" % (identifier + 1))
        ),
        "manifest requires WAL from final timeline 1 ending at FF/0": lambda manifest: signed(
            re.sub(rb'"End-LSN": "[^"]*"', b'"End-LSN": "FF/0"', manifest)
        ),
    }
    for words, change in changes.items():
        with_backup_manifest(site, site.catalog().backups[-1], change)
        assert words in full_instead(site)
    incremental(site)


def with_backup_manifest(site: Site, made: Backup, change: Callable[[bytes], bytes]) -> None:
    """As if the backup had been committed with another backup_manifest."""
    (sealed,) = made.objects("backup_manifest")
    content = change(unseal_bytes(site.store(), sealed, identities=()))
    sealed = seal_bytes(site.store(), sealed.key, content, recipients=())
    item = StoredObject.of(sealed, folder=made.folder, role="backup_manifest").model_dump(mode="json")
    edited(site, made, lambda document: document.update(objects=[*document["objects"][:-1], item]))


def signed(manifest: bytes) -> bytes:
    """With the checksum that PostgreSQL puts last."""
    content = manifest[: manifest.rindex(b'"Manifest-Checksum"')]
    return content + b'"Manifest-Checksum": "%s"}\n' % sha256(content).hexdigest().encode()


# Where the server is the reason.


def test_postgresql_15_takes_full_backups_and_says_so(servers: Servers, site_of: SiteOf) -> None:
    assert full_instead(site_of(servers.source(15))) == "PostgreSQL 15 has no incremental backups; 17 has"


@pytest.fixture(scope="module")
def own() -> Iterator[PostgresServer]:
    """A server that this file alone uses, to stop it and to change what a cluster is."""
    with new_folder() as folder, PostgresServer(folder / "own", name="own", settings=app038.SETTINGS) as server:
        app038.create(server)
        yield server


@contextlib.contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


def test_another_cluster_under_the_same_name_gets_a_full_backup(site: Site, own: PostgresServer) -> None:
    made = site.backup()
    site.add(postgres_connection(own))
    assert f"the server's system identifier is not that of {made.id}: it is another cluster" in full_instead(site)
    incremental(site)


def test_without_the_summarizer_or_its_summaries_there_is_a_full_backup(site_of: SiteOf, own: PostgresServer) -> None:
    site = site_of(own)
    made = site.backup()
    own.execute("ALTER SYSTEM SET summarize_wal = off")
    own.execute("SELECT pg_reload_conf()")
    try:
        assert full_instead(site) == "summarize_wal is off"
        own.execute("CREATE TABLE unseen AS SELECT 1 AS n")
        own.execute("CHECKPOINT")
    finally:
        own.execute("ALTER SYSTEM RESET summarize_wal")
        own.execute("SELECT pg_reload_conf()")
    # Those before the newest backup's start are gone: what it began with is summarized by none.
    made = site.catalog().backups[-1]
    assert made.manifest.wal is not None
    with stopped(own):
        for summary in (own.data_dir / "pg_wal" / "summaries").iterdir():
            begin = int(summary.name[8:24], 16)
            if begin < parse_lsn(made.manifest.wal.start_lsn):
                summary.unlink()
    own.execute("CHECKPOINT")
    assert f"WAL summaries do not reach back to {made.id}" in full_instead(site)


@pytest.fixture
def standby(server: PostgresServer, folder: Path) -> Iterator[PostgresServer]:
    """A standby of the shared server, made from a backup of it."""
    folder = folder / "primary"
    folder.mkdir()
    site = make_site(folder, server, repository=directory_repository(folder))
    made = site.backup()
    site.restore(made, folder / "standby", tablespaces=places_of(site, made, "standby"))
    (folder / "standby" / "recovery.signal").rename(folder / "standby" / "standby.signal")
    (folder / "standby" / "postgresql.auto.conf").write_text(f"primary_conninfo = '{server.dsn()}'\n")
    with PostgresServer(folder / "standby", name="standby", passwords=server.passwords) as started:
        yield started


def test_a_standby_is_backed_up_too_and_a_quiet_one_in_full(
    site_of: SiteOf, server: PostgresServer, standby: PostgresServer
) -> None:
    def replay(*statements: str) -> None:
        """Statements on the primary, and a restart point on the standby after them."""
        on(server, *statements, "CHECKPOINT")
        ((lsn,),) = server.execute("SELECT pg_current_wal_flush_lsn()")
        while not standby.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (lsn,))[0][0]:
            pass
        standby.execute("CHECKPOINT")

    site = site_of(standby)
    try:
        replay("CREATE TABLE first AS SELECT n FROM generate_series(1, 9000) AS n")
        site.backup()
        replay("CREATE TABLE second AS SELECT 1 AS n", "DELETE FROM first WHERE n % 9 = 0")
        made, held = incremental(site), server_contents(server)
        assert "manifest requires WAL from final timeline" in full_instead(site)
    finally:
        on(server, "DROP TABLE IF EXISTS first, second")
    assert made.manifest.server.in_recovery
    with restored(site, made, "data") as found:
        assert found == held
    newest = site.catalog().backups[-1]
    with restored(site, newest, "newest") as found:
        assert found == held


def test_after_a_promotion_there_is_a_full_backup(
    site_of: SiteOf, own: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_of(own)
    made = site.backup()
    with stopped(own):
        signal = own.data_dir / "standby.signal"
        signal.touch()
        signal.chmod(0o666)
    own.execute("SELECT pg_promote()")
    # As it is when the promotion comes after the decision.
    seen = replace(inspect.trust_state(site.connections["app038_backup"], made.manifest.server), timeline=1)
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "trust_state", lambda *_: replace(seen, summarized_from=0))
        assert full_instead(site) == f"the server has moved to timeline 2 since {made.id}"
    shutil.rmtree(site.folder / "repository" / site.catalog().backups[-1].folder)
    assert f"the server is on timeline 2, and {made.id} was on 1" in full_instead(site)
    incremental(site)


def test_without_checksums_hints_must_be_logged(site_of: SiteOf, own: PostgresServer) -> None:
    site = site_of(own)
    made = site.backup()
    with stopped(own):
        own._run_to_its_end("pg_checksums", "--disable", f"--pgdata={own.data_dir}")
    assert "data checksums and wal_log_hints are both off" in full_instead(site)
    unsafe = site.catalog().backups[-1]
    own.execute("ALTER SYSTEM SET wal_log_hints = on")
    own.restart()
    assert f"data checksums are off, and wal_log_hints was off when {unsafe.id} was taken" in full_instead(site)
    incremental(site)
    with stopped(own):
        own._run_to_its_end("pg_checksums", "--enable", f"--pgdata={own.data_dir}")
    assert "data checksums were switched on since" in full_instead(site)
    assert made.manifest.server.data_checksums
