"""Retention on real stores and through the command: what is locked waits, what is not goes for good, errors are one line."""

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
from recovery import housekeeping
from recovery.config import Retention, S3Repository
from recovery.errors import ObjectMissing
from recovery.repository import layout
from recovery.repository.catalog import Backup
from recovery.repository.directory import DirectoryStore
from recovery.repository.lease import Lease
from recovery.repository.s3 import S3Store, make_client
from recovery.repository.store import ObjectStore
from tests.conftest import directory_repository, s3_repository
from tests.history import CLUSTER, NAME, backup, restorable
from tests.support import Site, make_site, s3_connection

ONE = Retention(fulls=1)


def write(store: ObjectStore, made: Backup) -> Backup:
    store.put(made.folder + layout.volume(0), b"sealed")
    store.put(made.folder + layout.MANIFEST, made.manifest.encode())
    return made


def ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def three(store: ObjectStore) -> tuple[Backup, Backup, Backup]:
    """An old full with an incremental on it, and a new full."""
    full = write(store, backup("full", ago(9)))
    return full, write(store, backup("incremental", ago(8), parent=full)), write(store, backup("full", ago(1)))


@pytest.fixture
def s3(objects: SeaweedFS) -> Iterator[tuple[S3Store, S3Store]]:
    """One prefix of a versioned bucket, as a store that locks what it writes and as one that does not."""
    document = s3_repository()["s3"]
    with contextlib.closing(make_client(s3_connection(objects))) as client:
        yield (
            S3Store(client, S3Repository.model_validate(document)),
            S3Store(client, S3Repository.model_validate(document | {"object_lock": None})),
        )


def versions(store: S3Store, prefix: str) -> int:
    answer = store._client.list_object_versions(Bucket=store._bucket, Prefix=store._key(prefix))
    return len(answer.get("Versions", [])) + len(answer.get("DeleteMarkers", []))


def test_what_is_locked_is_reported_with_its_date_and_not_touched(s3: tuple[S3Store, S3Store]) -> None:
    locked, _ = s3
    full, on_full, new = three(locked)
    made, outcome = housekeeping.apply(locked, NAME, ONE)
    assert outcome.backups == [] and outcome.objects == 0 and outcome.failures == []
    assert [(each.backup.id, each.word) for each in made.decisions] == [
        (full.id, "locked"),
        (on_full.id, "locked"),
        (new.id, "keep"),
    ]
    for waiting in made.decisions[:2]:
        assert waiting.locked_until is not None
        assert timedelta(hours=23) < waiting.locked_until - locked.now() < timedelta(hours=25)
    assert len(restorable(locked)) == 3


def test_what_is_not_locked_goes_with_every_version(s3: tuple[S3Store, S3Store]) -> None:
    _, unlocked = s3
    full, on_full, new = three(unlocked)
    unlocked.put(on_full.folder + layout.volume(0), b"sealed again")
    wal = f"{layout.wal_folder(NAME, CLUSTER)}00000001/000000010000000000000001.zst.age"
    unlocked.put(wal, b"x")
    assert versions(unlocked, on_full.folder) == 3
    _, outcome = housekeeping.apply(unlocked, NAME, ONE)
    assert outcome.backups == [on_full.id, full.id]
    assert versions(unlocked, full.folder) == versions(unlocked, on_full.folder) == 0
    assert restorable(unlocked) == {new.folder}


def test_one_lock_keeps_a_whole_chain_and_it_goes_when_the_lock_has_ended(s3: tuple[S3Store, S3Store]) -> None:
    _, unlocked = s3
    full, on_full, new = three(unlocked)
    until = datetime.now(UTC) + timedelta(seconds=4)
    unlocked._client.put_object(
        **unlocked._at(on_full.folder + layout.volume(0)),
        Body=b"sealed",
        ObjectLockMode="COMPLIANCE",
        ObjectLockRetainUntilDate=until,
    )
    assert housekeeping.apply(unlocked, NAME, ONE)[1].backups == []
    assert len(restorable(unlocked)) == 3
    time.sleep(max(0.0, (until - datetime.now(UTC)).total_seconds()) + 1.5)
    assert housekeeping.apply(unlocked, NAME, ONE)[1].backups == [on_full.id, full.id]
    assert restorable(unlocked) == {new.folder}


def test_a_locked_older_version_below_an_unlocked_one_stops_only_its_own_backup(s3: tuple[S3Store, S3Store]) -> None:
    """Somebody has written over a locked object: the store keeps what was locked, and says so."""
    locked, unlocked = s3
    full = write(unlocked, backup("full", ago(9)))
    other = write(unlocked, backup("full", ago(8)))
    new = write(unlocked, backup("full", ago(1)))
    locked.put(full.folder + layout.MANIFEST, full.manifest.encode())
    unlocked.put(full.folder + layout.MANIFEST, full.manifest.encode())
    _, outcome = housekeeping.apply(unlocked, NAME, ONE)
    assert outcome.backups == [other.id]
    assert len(outcome.failures) == 1 and "the store denied access" in outcome.failures[0]
    assert restorable(unlocked) == {full.folder, new.folder}


def test_in_a_directory_the_same_and_stale_files_of_uploads_go(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    full, on_full, new = three(store)
    orphan = layout.backup_folder(NAME, CLUSTER, layout.backup_id(ago(3), "full")) + layout.volume(0)
    store.put(orphan, b"remains")
    for name, days in (("stale", 2), ("fresh", 0.1)):
        path = tmp_path / ".uploads" / name
        path.write_bytes(b"x")
        os.utime(path, (ago(days).timestamp(),) * 2)
    os.utime(tmp_path / orphan, (ago(2).timestamp(),) * 2)
    _, outcome = housekeeping.apply(store, NAME, ONE)
    assert outcome.backups == [on_full.id, full.id] and outcome.objects == 5
    assert restorable(store) == {new.folder}
    assert [path.name for path in (tmp_path / ".uploads").iterdir()] == ["fresh"]
    with pytest.raises(ObjectMissing):
        store.head(orphan)


# The command.


@pytest.fixture
def kept(folder: Path) -> Site:
    """An installation without a server, whose retention keeps one full."""
    site = make_site(folder, None, repository=directory_repository(folder))
    site.document["postgres"] = {
        name: {"connection": "app038_backup", "repository": "main", "retention": {"fulls": 1}}
        for name in (NAME, "other")
    }
    return site


def test_the_plan_is_printed_and_nothing_is_touched_without_apply(kept: Site) -> None:
    full, on_full, new = three(kept.store())
    before = kept.keys()
    printed = kept.run("retention", NAME).stdout
    (line,) = [line for line in printed.splitlines() if line.startswith(on_full.id)]
    assert line.split()[-5:] == ["delete", "no", "rule", "wants", "it"]
    (line,) = [line for line in printed.splitlines() if line.startswith(new.id)]
    assert line.endswith("keep      fulls; newest full; newest base backup")
    assert printed.splitlines()[-1].startswith("2 backups would go, ")
    assert printed.splitlines()[-1].endswith(" in all; --apply deletes them")
    assert full.id in printed and kept.keys() == before


def test_apply_deletes_what_the_plan_named_and_says_so(kept: Site) -> None:
    _, _, new = three(kept.store())
    document = kept.json("retention", NAME)
    assert document["applied"] is None and document["system"] == NAME
    applied = kept.json("retention", NAME, "--apply")
    assert applied["backups"] == document["backups"]
    assert applied["applied"]["objects"] == 4 and applied["applied"]["bytes"] == document["freed_bytes"]
    assert restorable(kept.store()) == {new.folder}
    assert kept.run("retention", NAME, "--apply").stdout.splitlines()[-1] == "0 backups, 0 objects, 0.0 MB deleted"


def test_a_hold_is_listed_in_both_forms_keeps_its_backup_and_ends(kept: Site) -> None:
    full, on_full, _ = three(kept.store())
    placed = kept.json("hold", on_full.id, "--reason", "audit [2026]")
    assert (placed["system"], placed["id"], placed["reason"]) == (NAME, on_full.id, "audit [2026]")
    listed = {each["id"]: each["hold"] for each in kept.json("list")["postgres"][NAME]["backups"]}
    assert listed[full.id] is None and listed[on_full.id]["reason"] == "audit [2026]"
    assert f"held: app038 {on_full.id}: audit [2026] (" in kept.run("list", NAME).stdout
    assert "hold: audit [2026] (" in kept.run("retention", NAME, "--apply").stdout
    assert len(restorable(kept.store())) == 3
    released = kept.run("release", on_full.id, "--reason", "audit closed").stdout
    assert released.startswith(f"{on_full.id} is released; it was held: audit [2026] (")
    kept.run("retention", NAME, "--apply")
    assert len(restorable(kept.store())) == 1


def test_a_damaged_manifest_is_left_alone_and_ends_with_status_1(kept: Site) -> None:
    full, *_ = three(kept.store())
    kept.store().put(full.folder + layout.MANIFEST, b"damaged")
    printed = kept.run("retention", NAME, "--apply", expect=1).stdout
    assert "left alone: " in printed and "this is not a manifest" in printed
    assert full.folder + layout.MANIFEST in kept.keys()


UNKNOWN = "20200101T000000Z-full"


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (("retention", "app39"), 2, "no system is named 'app39' -> use one of: app038, other"),
        (
            ("hold", UNKNOWN, "--reason", "x"),
            2,
            f"{UNKNOWN}: no backup has this id -> choose one of `recovery list`",
        ),
        (
            ("hold", UNKNOWN, "--reason", "x", "--system", "app39"),
            2,
            "no system is named 'app39' -> use one of: app038, other",
        ),
        (("hold", "FULL", "--reason", " "), 2, "--reason: the reason is empty -> say why, for whoever finds it later"),
        (("release", "FULL", "--reason", "x"), 2, "FULL: it is not held -> see `recovery list` for what is"),
    ],
)
def test_each_mistake_is_one_line(kept: Site, arguments: tuple[str, ...], status: int, line: str) -> None:
    full, *_ = three(kept.store())
    found = kept.error(*(each.replace("FULL", full.id) for each in arguments), expect=status)
    assert found == f"error: {line.replace('FULL', full.id)}"


def test_a_second_hold_names_the_first_and_an_id_of_two_systems_asks_for_one(kept: Site) -> None:
    full, *_ = three(kept.store())
    kept.run("hold", full.id, "--reason", "audit")
    line = kept.error("hold", full.id, "--reason", "again", expect=2)
    assert line.startswith(f"error: {full.id}: it is held already: audit (") and line.endswith(
        "-> nothing is to be done"
    )
    twin = f"postgres/other/{CLUSTER}/backups/{full.id}/"
    kept.store().put(twin + layout.MANIFEST, full.manifest.encode())
    assert kept.error("hold", full.id, "--reason", "x", expect=2) == (
        f"error: {full.id}: 2 systems have a backup with this id -> name one of them: --system app038 or --system other"
    )
    kept.run("hold", full.id, "--reason", "x", "--system", "other")
    assert kept.json("list", "other")["postgres"]["other"]["backups"][0]["hold"]["reason"] == "x"


def test_a_second_run_at_the_same_time_is_refused(kept: Site) -> None:
    three(kept.store())
    with Lease(kept.store(), kind="postgres", name=NAME, job="retention"):
        line = kept.error("retention", NAME, "--apply")
        assert "postgres app038, retention is being written by" in line
        kept.run("retention", NAME)  # The plan alone needs no lease.


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"retention": {"window": "12h"}},
            "postgres.app038.retention.window: without continuous WAL the moments between backups cannot be restored "
            "-> configure postgres.app038.wal, or keep whole backups with fulls, daily, weekly, monthly or yearly",
        ),
        (
            {"retention": {"window": "36h"}, "wal": {}},
            "postgres.app038.retention.window: the Object Lock of repository 'main' ends after 1 days, before the window "
            "-> set object_lock.days to 2 or more, or a shorter window",
        ),
        (
            {"retention": {"orphans_after": "10m"}},
            "postgres.app038.retention.orphans_after: less than an hour may be the age of a backup that is being made "
            "-> write 1h or more",
        ),
    ],
)
def test_every_command_refuses_a_contradiction(folder: Path, settings: dict[str, Any], line: str) -> None:
    site = make_site(folder, None, repository=s3_repository())
    site.document["postgres"] = {NAME: {"connection": "app038_backup", "repository": "main"} | settings}
    for command in (("config", "check"), ("list",), ("retention", NAME)):
        assert site.error(*command, expect=2) == f"error: {folder}/recovery.yaml: {line}"
