"""Retention of a Vault's backups on real stores and through the commands; a name may be a database's and a Vault's."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lab.objectstore import SeaweedFS
from recovery import config
from recovery.config import S3Repository
from recovery.installation import Installation
from recovery.repository import holds, layout
from recovery.repository.catalog import Backup
from recovery.repository.lease import Lease
from recovery.repository.s3 import S3Store, make_client
from recovery.repository.store import ObjectStore
from recovery.vault import catalog, retention
from recovery.vault.catalog import Snapshot
from tests import vaults
from tests.conftest import directory_repository, s3_repository
from tests.history import CLUSTER, NAME, backup
from tests.support import Site, make_site, s3_connection

POSTGRES_DOCUMENT = {"system", "backups", "swept", "unfinished_uploads", "freed_bytes", "problems", "applied"}


def ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def take(store: ObjectStore, days: float, kind: str = "full") -> Snapshot:
    return vaults.put(store, vaults.snapshot(ago(days), kind=kind))


def back_up(store: ObjectStore, moment: datetime, kind: str = "full") -> Backup:
    """A backup of the database."""
    made = backup(kind, moment)
    store.put(made.folder + layout.volume(0), b"sealed")
    store.put(made.folder + layout.MANIFEST, made.manifest.encode())
    return made


def left(store: ObjectStore) -> list[str]:
    return [made.id for made in catalog.read(store, NAME).backups]


def vault_settings(repository: str = "main", **rules: Any) -> dict[str, Any]:
    return {"product": "openbao", "connection": "vault_app038", "repository": repository, "retention": rules}


# Object Lock.


@pytest.fixture
def s3(objects: SeaweedFS, folder: Path) -> Iterator[tuple[Installation, S3Store, S3Store]]:
    """An installation that keeps one snapshot in a versioned bucket, its store, and the same one without locks."""
    document = s3_repository()["s3"]
    site = make_site(folder, None, repository={"s3": document})
    site.document["vault"] = {NAME: vault_settings(newest=1)}
    with contextlib.closing(make_client(s3_connection(objects))) as client:
        made = Installation(config.load(site.config_file), s3_client=lambda _: client)
        unlocked = S3Store(client, S3Repository.model_validate(document | {"object_lock": None}))
        yield made, S3Store(client, S3Repository.model_validate(document)), unlocked


def versions(store: S3Store, prefix: str) -> int:
    answer = store._client.list_object_versions(Bucket=store._bucket, Prefix=store._key(prefix))
    return len(answer.get("Versions", [])) + len(answer.get("DeleteMarkers", []))


def test_what_is_locked_is_reported_with_its_date_and_not_touched(s3: tuple[Installation, S3Store, S3Store]) -> None:
    installation, locked, _ = s3
    old, new = take(locked, 9), take(locked, 1)
    made, outcome = retention.apply(installation, NAME)
    assert (outcome.backups, outcome.objects, outcome.failures) == ([], 0, [])
    assert [(each.backup.id, each.word) for each in made.decisions] == [(old.id, "locked"), (new.id, "keep")]
    until = made.decisions[0].locked_until
    assert until is not None and timedelta(hours=23) < until - locked.now() < timedelta(hours=25)
    assert left(locked) == [old.id, new.id]


def test_what_is_not_locked_goes_with_every_version(s3: tuple[Installation, S3Store, S3Store]) -> None:
    installation, _, unlocked = s3
    old, new = take(unlocked, 9), take(unlocked, 1)
    unlocked.put(old.folder + layout.SNAPSHOT, b"sealed again")
    assert versions(unlocked, old.folder) == 4
    assert retention.apply(installation, NAME)[1].backups == [old.id]
    assert versions(unlocked, old.folder) == 0
    assert left(unlocked) == [new.id]


def test_one_locked_object_keeps_its_backup_until_the_lock_has_ended(
    s3: tuple[Installation, S3Store, S3Store],
) -> None:
    installation, _, unlocked = s3
    old, new = take(unlocked, 9), take(unlocked, 1)
    until = datetime.now(UTC) + timedelta(seconds=4)
    unlocked._client.put_object(
        **unlocked._at(old.folder + layout.EXPORT),
        Body=b"sealed",
        ObjectLockMode="COMPLIANCE",
        ObjectLockRetainUntilDate=until,
    )
    assert retention.apply(installation, NAME)[1].backups == []
    assert left(unlocked) == [old.id, new.id]
    time.sleep(max(0.0, (until - datetime.now(UTC)).total_seconds()) + 1.5)
    assert retention.apply(installation, NAME)[1].backups == [old.id]
    assert left(unlocked) == [new.id] and versions(unlocked, old.folder) == 0


def test_a_hold_and_its_release_carry_no_lock(s3: tuple[Installation, S3Store, S3Store]) -> None:
    installation, locked, unlocked = s3
    old, _ = take(unlocked, 9), take(unlocked, 1)
    holds.place(locked, NAME, old.id, reason="audit", kind="vault")
    assert retention.apply(installation, NAME)[1].backups == []
    holds.release(locked, NAME, old.id, reason="closed", kind="vault")
    assert retention.apply(installation, NAME)[1].backups == [old.id]
    assert versions(unlocked, layout.holds_folder(NAME, kind="vault")) == 0


# The commands.


@pytest.fixture
def kept(folder: Path) -> Site:
    """An installation without servers. `app038` is a database that keeps one full, and the Vault that keeps one snapshot;
    `solo` is a Vault, `plain` a database.
    """
    site = make_site(folder, None, repository=directory_repository(folder))
    system = {"connection": "app038_backup", "repository": "main", "retention": {"fulls": 1}}
    site.document["postgres"] = {NAME: system | {"keys": {"vault": NAME}}, "plain": system}
    site.document["vault"] = {NAME: vault_settings(newest=1), "solo": vault_settings(newest=1)}
    return site


def row(printed: str, identifier: str) -> str:
    (line,) = [line for line in printed.splitlines() if line.startswith(f"{identifier} ")]
    return " ".join(line.split())


def test_a_name_that_is_both_is_planned_and_printed_one_after_the_other(kept: Site) -> None:
    store = kept.store()
    gone, database = back_up(store, ago(9)), back_up(store, ago(5.5))
    old, paired, new = (take(store, days) for days in (8, 5, 1))
    before = kept.keys()
    printed = kept.run("retention", NAME).stdout
    assert (
        printed.index("backup ") < printed.index(gone.id) < printed.index("backup of the Vault") < printed.index(old.id)
    )
    assert row(printed, gone.id).endswith(" delete no rule wants it")
    assert row(printed, old.id).endswith(f" keep app038 {gone.id} needs it")
    assert row(printed, paired.id).endswith(f" keep app038 {database.id} needs it")
    assert row(printed, new.id).endswith(" keep newest; newest snapshot; newest export")
    assert kept.keys() == before
    printed = kept.run("retention", NAME, "--apply").stdout
    # What has just been deleted needs nothing any more.
    assert row(printed, old.id).endswith(" delete no rule wants it")
    assert [line for line in printed.splitlines() if "deleted" in line] == [
        "1 backup, 2 objects, 0.0 MB deleted",
        "1 backup, 3 objects, 0.0 MB deleted",
    ]
    assert left(store) == [paired.id, new.id]


def test_the_document_has_postgres_at_its_top_and_the_vault_below(kept: Site) -> None:
    store = kept.store()
    old, new = take(store, 9), take(store, 1)
    assert kept.json("retention", "plain").keys() == POSTGRES_DOCUMENT
    both = kept.json("retention", NAME)
    assert both.keys() == POSTGRES_DOCUMENT | {"vault"}
    assert both["system"] == NAME and both["backups"] == []
    assert [(each["id"], each["kind"], each["decision"]) for each in both["vault"]["backups"]] == [
        (old.id, "full", "delete"),
        (new.id, "full", "keep"),
    ]
    assert kept.json("retention", "solo").keys() == {"system", "vault"}
    applied = kept.json("retention", NAME, "--apply")["vault"]
    assert applied["applied"]["backups"] == [old.id] and applied["applied"]["objects"] == 3
    assert applied["applied"]["bytes"] == both["vault"]["freed_bytes"]
    assert both["vault"]["applied"] is None


def test_in_a_directory_the_remains_of_uploads_go(kept: Site, folder: Path) -> None:
    store = kept.store()
    take(store, 1)
    orphan = layout.snapshot_folder(NAME, layout.backup_id(ago(3), "full")) + layout.SNAPSHOT
    store.put(orphan, b"remains")
    root = folder / "repository"
    for path in (root / orphan, root / ".uploads" / "stale"):
        path.touch()
        os.utime(path, (ago(2).timestamp(),) * 2)
    with Lease(store, kind="vault", name=NAME, job="snapshot"):
        assert "unfinished" not in kept.run("retention", NAME).stdout.partition("backup of the Vault")[2]
    printed = kept.run("retention", NAME).stdout.partition("backup of the Vault")[2]
    assert f"delete: unfinished backup, {orphan.removesuffix(layout.SNAPSHOT)}: 1 object, 7 B" in printed
    assert "delete: unfinished upload, .uploads/stale: begun " in printed
    assert printed.splitlines()[-1] == "0 backups would go, 7 B in all; --apply deletes them"
    kept.run("retention", NAME, "--apply")
    assert not (root / orphan).exists() and not (root / ".uploads" / "stale").exists()


def test_a_vault_s_backup_is_held_and_released_by_its_id(kept: Site) -> None:
    store = kept.store()
    old, new = take(store, 9, "snapshot"), take(store, 1)
    placed = kept.json("hold", old.id, "--reason", "audit [2026]")
    assert (placed["system"], placed["id"], placed["reason"]) == (NAME, old.id, "audit [2026]")
    assert f"vault-holds/{NAME}/{old.id}.json" in kept.keys()
    assert "hold: audit [2026] (" in row(kept.run("retention", NAME, "--apply").stdout, old.id)
    line = kept.error("hold", old.id, "--reason", "again", expect=2)
    assert line.startswith(f"error: {old.id}: it is held already: audit [2026] (")
    released = kept.run("release", old.id, "--reason", "audit closed").stdout
    assert released.startswith(f"{old.id} is released; it was held: audit [2026] (")
    kept.run("retention", NAME, "--apply")
    assert left(store) == [new.id]
    assert not [key for key in kept.keys() if key.startswith("vault-holds/")]


def test_an_id_that_a_database_and_its_vault_have_asks_for_one_of_them(kept: Site) -> None:
    moment = ago(9)
    of_database = back_up(kept.store(), moment)
    of_vault = vaults.put(kept.store(), vaults.snapshot(moment))
    assert of_database.id == of_vault.id
    for given in ((), ("--system", NAME)):
        assert kept.error("hold", of_vault.id, "--reason", "x", *given, expect=2) == (
            f"error: {of_vault.id}: 2 systems have a backup with this id -> name one of them: "
            "--system postgres/app038 or --system vault/app038"
        )
    kept.run("hold", of_vault.id, "--reason", "the Vault's", "--system", "vault/app038")
    assert kept.json("list", NAME)["postgres"][NAME]["backups"][0]["hold"] is None
    kept.run("hold", of_vault.id, "--reason", "the database's", "--system", "postgres/app038")
    printed = kept.run("retention", NAME).stdout
    assert printed.index("hold: the database's (") < printed.index("hold: the Vault's (")


def test_a_named_system_is_held_though_another_one_s_store_cannot_be_reached(kept: Site) -> None:
    made = take(kept.store(), 1)
    kept.document["repositories"]["away"] = s3_repository()
    kept.document["vault"]["solo"] = vault_settings("away")
    assert "recovery_s3" in kept.error("hold", made.id, "--reason", "x", expect=2)
    kept.run("hold", made.id, "--reason", "x", "--system", NAME)


UNKNOWN = "20200101T000000Z-snapshot"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("retention", "app39"), "no system is named 'app39' -> use one of: app038, plain, solo"),
        (("hold", UNKNOWN, "--reason", "x"), f"{UNKNOWN}: no backup has this id -> choose one of `recovery list`"),
        (
            ("hold", UNKNOWN, "--reason", "x", "--system", "app39"),
            "no system is named 'app39' -> use one of: app038, plain, solo",
        ),
        (
            ("hold", UNKNOWN, "--reason", "x", "--system", "vault/plain"),
            "no system is named 'vault/plain' -> use one of: app038, plain, solo",
        ),
        (
            ("release", UNKNOWN, "--reason", "x", "--system", "solo"),
            f"{UNKNOWN}: no backup of this Vault has this id -> choose one of `recovery list`; the newest: there is none",
        ),
        (("hold", "MADE", "--reason", " "), "--reason: the reason is empty -> say why, for whoever finds it later"),
        (("release", "MADE", "--reason", "x"), "MADE: it is not held -> see `recovery list` for what is"),
    ],
)
def test_each_mistake_is_one_line(kept: Site, arguments: tuple[str, ...], line: str) -> None:
    made = take(kept.store(), 1)
    found = kept.error(*(each.replace("MADE", made.id) for each in arguments), expect=2)
    assert found == f"error: {line.replace('MADE', made.id)}"


def test_a_damaged_manifest_is_left_alone_and_ends_with_status_1(kept: Site) -> None:
    old, *_ = take(kept.store(), 9), take(kept.store(), 1)
    kept.store().put(old.folder + layout.MANIFEST, b"damaged")
    printed = kept.run("retention", NAME, "--apply", expect=1).stdout
    assert "left alone: " in printed and "this is not a manifest" in printed
    assert old.folder + layout.MANIFEST in kept.keys()


def test_a_second_run_at_the_same_time_is_refused(kept: Site) -> None:
    take(kept.store(), 1)
    with Lease(kept.store(), kind="vault", name=NAME, job="retention"):
        assert "vault app038, retention is being written by" in kept.error("retention", NAME, "--apply")
        kept.run("retention", NAME)  # The plan alone needs no lease.


def test_the_database_of_a_vault_may_lie_in_another_repository(kept: Site, folder: Path) -> None:
    kept.document["repositories"]["vaults"] = {"directory": {"path": str(folder / "vaults")}}
    kept.document["vault"][NAME] = vault_settings("vaults", newest=1)
    store = kept.installation().vault_store(NAME)
    database = back_up(kept.store(), ago(5))
    kept.store().put(f"{layout.wal_folder(NAME, CLUSTER)}00000001/000000010000000000000001.zst.age", b"x")
    older, paired, inner, new = (take(store, days) for days in (8, 4, 3, 1))
    printed = kept.run("retention", NAME, "--apply").stdout
    moments = f"moments of app038 since {database.id} may need it"
    assert row(printed, paired.id).endswith(f" keep app038 {database.id} needs it; {moments}")
    assert row(printed, inner.id).endswith(f" keep {moments}")
    assert older.id not in left(store) and left(store) == [paired.id, inner.id, new.id]
