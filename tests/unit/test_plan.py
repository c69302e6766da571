"""The plan is pure data made from the catalog: which backup, what it fetches, the room it takes, and what is refused."""

from __future__ import annotations

import pytest

from recovery.errors import ConfigurationError, FormatError, PreconditionError
from recovery.manifest import Database
from recovery.postgres import plan
from recovery.repository.catalog import Backup, Catalog
from tests.unit.test_manifest import example, item

OLD, NEW = "20261122T020000Z-full", "20261123T020000Z-full"
INCREMENTAL, DUMP = "20261123T080000Z-incremental", "20261124T020000Z-dump"


def backup(identifier: str, **changes: object) -> Backup:
    kind = identifier.partition("-")[2]
    return Backup(example(id=identifier, kind=kind, **changes), f"postgres/app038/7301/backups/{identifier}/")


def damaged(identifier: str) -> FormatError:
    where = f"store/postgres/app038/7301/backups/{identifier}/manifest.json"
    return FormatError("this is not a manifest", where=where, remedy="use another backup")


def database(name: str, size: int) -> Database:
    return Database(
        name=name,
        encoding="UTF8",
        collate="C",
        ctype="C",
        locale_provider="libc",
        collation_version=None,
        bytes=size,
        extensions={},
    )


def test_latest_is_the_newest_of_the_wanted_kind() -> None:
    catalog = Catalog((backup(OLD), backup(NEW), backup(DUMP)), ())
    assert plan.choose(catalog, "latest").id == NEW
    assert plan.choose(catalog, "latest", kinds=("dump",)).id == DUMP


def test_latest_never_passes_silently_over_a_newer_damaged_backup() -> None:
    catalog = Catalog((backup(OLD),), (damaged(NEW),))
    with pytest.raises(FormatError, match=f"name the newest good backup: --to {OLD}"):
        plan.choose(catalog, "latest")
    assert plan.choose(catalog, OLD).id == OLD


def test_an_older_damaged_backup_or_one_of_another_kind_does_not_stand_in_the_way_of_latest() -> None:
    catalog = Catalog((backup(NEW),), (damaged(OLD), damaged(DUMP)))
    assert plan.choose(catalog, "latest").id == NEW


def test_no_backup_at_all_is_said_with_the_remedy() -> None:
    with pytest.raises(PreconditionError, match="there is no full backup yet"):
        plan.choose(Catalog((), ()), "latest")


def test_a_dump_is_not_taken_for_a_full_backup() -> None:
    with pytest.raises(ConfigurationError, match="is a dump backup, and this restore needs a full or incremental one"):
        plan.choose(Catalog((backup(DUMP),), ()), DUMP)


def test_a_damaged_backup_that_is_named_is_its_own_error() -> None:
    with pytest.raises(FormatError, match="this is not a manifest"):
        plan.choose(Catalog((backup(OLD),), (damaged(NEW),)), NEW)


def test_the_room_of_a_server_compressed_backup_is_what_its_databases_measured() -> None:
    server = example().server.model_copy(update={"databases": [database("app038", 5_000)]})
    made = plan.make("app038", [backup(NEW, server=server)], target="/restored")
    assert made.fetch_bytes == 200
    assert made.restored_bytes == 5_000


def test_one_database_of_a_dump_needs_its_own_room_only_and_the_globals() -> None:
    server = example().server.model_copy(update={"databases": [database("one", 1_000), database("two", 9_000)]})
    objects = [
        item(key="dumps/one.pgdump.age", role="dump", database="one", stored_bytes=10),
        item(key="dumps/two.pgdump.age", role="dump", database="two", stored_bytes=90),
        item(key="globals.sql.zst.age", role="globals", stored_bytes=1),
    ]
    made = plan.make("app038", [backup(DUMP, server=server, objects=objects)], target="staging", database="one")
    assert (made.objects, made.fetch_bytes, made.restored_bytes) == (2, 11, 1_000)
    with pytest.raises(ConfigurationError, match="holds no database 'three' -> choose one of: one, two"):
        plan.make("app038", [backup(DUMP, server=server, objects=objects)], target="staging", database="three")


# Chains.


def chain() -> list[Backup]:
    server = example().server.model_copy(update={"databases": [database("app038", 5_000)]})
    full = backup(OLD, server=server, objects=[item(sealed_bytes=6_000), item(tablespace=16385, sealed_bytes=10)])
    changes = [item(sealed_bytes=300), item(tablespace=16385, sealed_bytes=2), item(tablespace=9, sealed_bytes=7)]
    return [full, backup(INCREMENTAL, server=server, objects=changes, parent=OLD, chain=[OLD])]


def test_the_plan_of_an_incremental_sums_over_its_chain() -> None:
    made = plan.make("app038", chain(), target="/restored")
    assert (made.objects, made.fetch_bytes) == (5, 500)
    assert made.document()["chain"] == [OLD, INCREMENTAL] and made.document()["backup"] == INCREMENTAL
    # The result is what the databases measure and what the incremental brings; at the peak both members lie beside it.
    assert made.restored_bytes == 5_000 + 309
    assert made.disk_bytes == made.restored_bytes + 6_010 + 309


def test_each_tablespace_needs_the_room_of_its_own_members() -> None:
    manifests = [each.manifest for each in chain()]
    assert plan.room(manifests) == {None: (5_309 - 10) + 6_000 + 300 + 7, 16385: 10 + 10 + 2}
    assert plan.room(manifests[:1]) == {None: 6_000, 16385: 10}


def test_changes_that_the_server_compressed_are_expected_to_be_larger_unpacked() -> None:
    full, last = (each.manifest for each in chain())
    compressed = [item(compression="zstd-by-source", sealed_bytes=100)]
    assert plan.room([full, last.model_copy(update={"objects": compressed})])[None] == (5_100 - 10) + 6_000 + 400


def test_latest_is_an_incremental_where_that_is_the_newest() -> None:
    full, last = chain()
    catalog = Catalog((full, last, backup(DUMP)), ())
    assert plan.choose(catalog, "latest") == last
    assert catalog.chain(last) == (full, last)
    with pytest.raises(PreconditionError, match=f"it needs {OLD}, which is not in the repository"):
        Catalog((last,), ()).chain(plan.choose(Catalog((last,), ()), "latest"))
