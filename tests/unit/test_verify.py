"""Verdicts: failed before unknown before ok, and what could not be looked at is never ok."""

from __future__ import annotations

import pyrage
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery.errors import IntegrityError, PreconditionError, RecoveryError, StoreError, StoreUnreachable
from recovery.manifest import StoredObject
from recovery.postgres.contents import TarCheck
from recovery.repository.catalog import Backup
from recovery.repository.in_memory import seal_bytes
from recovery.repository.verify import Level, Report, Verdict, verify, worst
from tests.memory import MemoryStore
from tests.unit.test_manifest import example
from tests.unit.test_tar import make_tar

IDENTITY = pyrage.x25519.Identity.generate()


@given(st.lists(st.sampled_from(Verdict)))
def test_the_worst_verdict_counts(verdicts: list[Verdict]) -> None:
    order = [Verdict.OK, Verdict.UNKNOWN, Verdict.FAILED]
    assert worst(verdicts) == max(verdicts, key=order.index, default=Verdict.OK)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def backup(store: MemoryStore) -> Backup:
    objects = []
    for number in range(3):
        content = make_tar([(f"file{number}", "file", b"content")])
        sealed = seal_bytes(store, f"b/volumes/{number}", content, recipients=[IDENTITY.to_public()])
        objects.append(StoredObject.of(sealed, folder="b/", role="volume"))
    return Backup(example(objects=objects), "b/")


def check(store: MemoryStore, backup: Backup, level: Level, *, identity: object = IDENTITY) -> Report:
    return verify(store, backup, level, identities=[identity], content_check=lambda item: TarCheck())


@pytest.mark.parametrize("level", Level)
def test_an_intact_backup_is_ok_at_every_level(store: MemoryStore, backup: Backup, level: Level) -> None:
    report = check(store, backup, level)
    assert (report.verdict, report.objects, report.findings) == (Verdict.OK, 3, ())


@pytest.mark.parametrize(
    ("problem", "verdict"),
    [
        (StoreUnreachable("no answer"), Verdict.UNKNOWN),
        (PreconditionError("no programs"), Verdict.UNKNOWN),
        (StoreError("access denied"), Verdict.FAILED),
        (IntegrityError("rotten"), Verdict.FAILED),
    ],
)
@pytest.mark.parametrize("level", Level)
def test_what_could_not_be_looked_at_is_unknown_and_the_others_are_still_checked(
    store: MemoryStore, backup: Backup, level: Level, problem: RecoveryError, verdict: Verdict
) -> None:
    def fail(operation: str, key: str) -> None:
        if key == "b/volumes/1":
            raise problem

    store.before = fail
    report = check(store, backup, level)
    assert (report.verdict, [finding.key for finding in report.findings]) == (verdict, ["volumes/1"])


def test_a_wrong_identity_leaves_it_unknown(store: MemoryStore, backup: Backup) -> None:
    report = check(store, backup, Level.OPENS, identity=pyrage.x25519.Identity.generate())
    assert report.verdict is Verdict.UNKNOWN and len(report.findings) == 3


def test_damage_weighs_more_than_what_is_not_known(store: MemoryStore, backup: Backup) -> None:
    store.delete("b/volumes/2")

    def fail(operation: str, key: str) -> None:
        if key == "b/volumes/0":
            raise StoreUnreachable("no answer")

    store.before = fail
    report = check(store, backup, Level.CHECKSUM)
    assert report.verdict is Verdict.FAILED
    assert {finding.verdict for finding in report.findings} == {Verdict.UNKNOWN, Verdict.FAILED}
