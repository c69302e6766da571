"""`recovery wal audit`: for people, for programs, and of nothing."""

from __future__ import annotations

from datetime import UTC, datetime

from recovery.postgres.wal.positions import format_lsn, parse_lsn
from tests.support import Site
from tests.wal import Stored, archive_of


def test_an_audit_for_people_shows_windows_and_findings(stored: Stored) -> None:
    site, archive = stored.site, archive_of(stored.site, stored.server)
    heading, window = site.run("wal", "audit", "app038").stdout.splitlines()
    index = archive.index()
    assert heading.startswith(f"cluster {archive.system_identifier}: {len(index.segments) + 1} segments, ")
    assert window.startswith("  window   20") and window.endswith(", timeline 1)")
    assert f" to {format_lsn(index.end_of(1) or 0)}, " in window
    victim = sorted(index.segments)[-2]
    key = archive.segment_key(victim)
    data, metadata = archive.store.get(key), archive.store.head(key).metadata
    archive.store.delete(key)
    try:
        lines = site.run("wal", "audit", "app038", expect=1).stdout.splitlines()
        name = victim.name(archive.segment_bytes)
        assert lines[-1] == f"  failed   gap: 1 segments are missing, {name} to {name}"
        (finding,) = site.json("wal", "audit", "app038", expect=1)["findings"]
        assert finding == {
            "verdict": "failed",
            "timeline": 1,
            "what": f"gap: 1 segments are missing, {name} to {name}",
        }
    finally:
        archive.store.put(key, data, metadata=metadata)


def test_an_audit_for_programs_is_one_document(stored: Stored) -> None:
    site, archive = stored.site, archive_of(stored.site, stored.server)
    document = site.json("wal", "audit", "app038")
    (window,) = document["windows"]
    (full,) = site.catalog().backups
    assert full.manifest.wal is not None
    assert (window["timeline"], window["backup"]) == (1, full.id)
    assert window["begin_lsn"] == format_lsn(parse_lsn(full.manifest.wal.end_lsn))
    assert parse_lsn(window["end_lsn"]) == archive.index().end_of(1)
    assert datetime.fromisoformat(window["begin"]) <= datetime.fromisoformat(window["end"]) <= datetime.now(UTC)
    (cluster,) = document["clusters"]
    assert cluster["system_identifier"] == archive.system_identifier and cluster["stored_bytes"] > 0
    assert document["system"] == "app038" and document["findings"] == []


def test_an_audit_of_nothing_says_so(wal_site: Site) -> None:
    assert wal_site.run("wal", "audit", "app038").stdout == "no WAL is stored\n"
    document = wal_site.json("wal", "audit", "app038")
    assert document == {"system": "app038", "findings": [], "windows": [], "clusters": []}
