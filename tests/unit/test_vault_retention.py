"""What of a Vault's backups stays and what goes, rule by rule, and whatever the repositories have lived through."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pyrage
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery import config, recovery_set
from recovery.errors import LeaseError, StoreError, StoreUnreachable
from recovery.installation import Installation
from recovery.manifest import KeyVersions
from recovery.repository import holds, layout
from recovery.repository.catalog import Backup
from recovery.repository.decision import Plan
from recovery.repository.deletion import Outcome
from recovery.repository.lease import Lease
from recovery.repository.store import Unfinished
from recovery.vault import catalog, retention
from recovery.vault.catalog import Snapshot
from tests import vaults
from tests.history import CLUSTER, NAME, NOW, History, days_ago
from tests.memory import MemoryStore

KEY = "transit/app038"
RECIPIENT = str(pyrage.x25519.Identity.generate().to_public())


class Lived:
    """A Vault and a database in one repository, and whatever a test puts there; `rules` are the Vault's."""

    def __init__(self, *, wal: bool = False, paired: bool = True, apart: bool = False, **rules: Any) -> None:
        self.history, self.rules = History(), rules
        self.store: MemoryStore = MemoryStore() if apart else self.history.store
        self.store.clock = NOW
        connected = {"connection": "some_connection"}
        keys = {"keys": {"vault": NAME if paired else "other"}}
        document: dict[str, Any] = {
            "version": 1,
            "encryption": {"recipients": [RECIPIENT]},
            "repositories": {name: {"directory": {"path": "/nowhere"}} for name in ("main", "vault")},
            "postgres": {NAME: {**connected, "repository": "main", **keys, **({"wal": {}} if wal else {})}},
            "vault": {
                name: {**connected, "product": "openbao", "repository": "vault", "retention": rules}
                for name in (NAME, "other")
            },
        }
        stores = {"main": self.history.store, "vault": self.store}
        self.installation = Installation(config.parse(yaml.safe_dump(document)), _stores=dict(stores))

    def take(self, days: float, kind: str = "full", *, keys: tuple[int, int] = (1, 1)) -> Snapshot:
        """A backup of so many days ago, whose key has (minimum decryption version, latest version)."""
        self.store.clock = days_ago(days)
        made = vaults.put(self.store, vaults.snapshot(self.store.clock, kind=kind, keys={KEY: keys}))
        self.store.clock = NOW
        return made

    def backup(self, days: float, kind: str = "full", *, carried: tuple[int, int] | None = None, **more: Any) -> Backup:
        """A backup of the database, whose rows carry versions from the first to the second."""
        made = self.history.backup(kind, days, **more)
        if carried is None:
            return made
        versions = {KEY: KeyVersions(oldest=carried[0], newest=carried[1])}
        manifest = made.manifest.model_copy(update={"key_versions": versions})
        self.history.put(made.folder + layout.MANIFEST, days_ago(days), manifest.encode())
        return Backup(manifest, made.folder)

    def prove(self, made: Snapshot, *, verdict: str = "ok", together: bool = False) -> None:
        """Evidence of a drill of the snapshot alone, or of the set that it is half of."""
        store = self.history.store if together else self.store
        document = {"kind": "vault", "system": NAME, "backup": made.id, "verdict": verdict}
        if together:
            document |= {"kind": "set", "backup": "20261123T000000Z-full", "vault": NAME, "snapshot": made.id}
        key = layout.evidence(NOW, f"20261123T050000Z-{NAME}-drill-{len(store.objects):06x}")
        store.put(key, json.dumps(document).encode())

    def hold(self, made: Snapshot, reason: str = "audit") -> None:
        holds.place(self.store, NAME, made.id, reason=reason, kind="vault")

    def orphan(self, days: float, *, began: float = 30) -> str:
        """What a backup that began so many days ago left so many days ago."""
        key = layout.snapshot_folder(NAME, layout.backup_id(days_ago(began), "full")) + layout.SNAPSHOT
        self.store.clock = days_ago(days)
        self.store.put(key, b"remains")
        self.store.clock = NOW
        return key

    def plan(self) -> Plan[Snapshot]:
        return retention.plan(self.installation, NAME)

    def apply(self) -> Outcome:
        return retention.apply(self.installation, NAME)[1]

    def meanwhile(self, act) -> None:  # type: ignore[no-untyped-def]
        """Run `act` when the plan is made and its locks are asked for: what follows must see what it did."""

        def once(operation: str, key: str) -> None:
            if operation == "head":
                self.store.before = lambda operation, key: None
                act()

        self.store.before = once

    @property
    def keys(self) -> set[str]:
        """Every object of the Vault."""
        return {info.key for info in self.store.scan(layout.system_folder("vault", NAME))}

    @property
    def left(self) -> set[str]:
        """The ids of the backups that have every object that their kind has."""
        found = catalog.read(self.store, NAME).backups
        roles = {"full": (layout.SNAPSHOT, layout.EXPORT), "snapshot": (layout.SNAPSHOT,), "policies": (layout.EXPORT,)}
        return {each.id for each in found if all(each.folder + key in self.keys for key in roles[each.manifest.kind])}


def reasons(made: Plan[Snapshot]) -> dict[str, str]:
    """Why each backup stays, by its id."""
    return {decision.backup.id: decision.why for decision in made.decisions if decision.reasons}


def doomed(lived: Lived) -> set[str]:
    return {backup.id for backup in lived.plan().doomed}


def ids(*backups: Snapshot) -> set[str]:
    return {backup.id for backup in backups}


# What the configuration wants.


def test_without_a_rule_everything_stays() -> None:
    lived = Lived()
    old, new = lived.take(400), lived.take(1)
    assert reasons(lived.plan()) == {old.id: "no rule is set", new.id: "no rule is set; newest snapshot; newest export"}


def test_snapshots_and_exports_do_not_count_for_each_other() -> None:
    lived = Lived(newest=2)
    snapshots = [lived.take(days, "snapshot") for days in (5, 4, 3)]
    exports = [lived.take(days, "policies") for days in (4.5, 2, 1)]
    assert doomed(lived) == ids(snapshots[0], exports[0])
    assert reasons(lived.plan())[exports[2].id] == "newest; newest export"


def test_an_export_of_sunday_does_not_take_the_place_of_the_day_s_snapshot() -> None:
    lived = Lived(weekly=2)
    saturday, full, export = lived.take(2), lived.take(1.3), lived.take(1.2, "policies")
    monday = lived.take(0.2)
    assert full.id.startswith("20261122")
    assert doomed(lived) == ids(saturday)
    assert reasons(lived.plan()) == {
        full.id: "weekly",
        export.id: "weekly",
        monday.id: "weekly; newest snapshot; newest export",
    }


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("daily", [0.2, 1.2, 3.2]), ("weekly", [0.2, 1.2, 9.2]), ("monthly", [0.2, 24.2, 60.2]), ("yearly", [0.2, 400.2])],
)
def test_of_each_period_that_has_a_backup_the_newest_stays(rule: str, kept: list[float]) -> None:
    """2026-11-23 is a Monday: 1.2 days before its noon is the Sunday of the week before."""
    lived = Lived(**{rule: 3})
    made = {days: lived.take(days) for days in (400.2, 60.2, 24.2, 9.2, 3.4, 3.2, 1.2, 0.4, 0.2)}
    assert doomed(lived) == ids(*(made[days] for days in made if days not in kept))


# What stays whatever the configuration wants.


def test_the_newest_snapshot_and_the_newest_export_stay() -> None:
    lived = Lived(yearly=1)
    snapshot = lived.take(30, "snapshot")
    lived.take(40, "policies")
    export = lived.take(20, "policies")
    assert reasons(lived.plan()) == {
        snapshot.id: "yearly; newest snapshot",
        export.id: "yearly; newest export",
    }
    assert lived.apply().backups and lived.left == ids(snapshot, export)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_the_last_snapshot_that_a_drill_proved_stays_alone_or_as_half_of_a_set(together: bool, apart: bool) -> None:
    lived = Lived(newest=1, apart=apart)
    first, proven, failed, new = (lived.take(days) for days in (9, 8, 7, 1))
    lived.prove(first, together=together)
    lived.prove(proven, together=together)
    lived.prove(failed, together=together, verdict="failed")
    assert doomed(lived) == ids(first, failed)
    assert reasons(lived.plan())[proven.id] == "last proven"
    assert new.id in reasons(lived.plan())


def test_the_proof_of_another_vault_and_damaged_evidence_prove_nothing() -> None:
    lived = Lived(newest=1)
    old, _ = lived.take(9), lived.take(1)
    for number, data in enumerate(
        (
            b"damaged",
            b"[]",
            json.dumps({"kind": "vault", "system": "other", "backup": old.id, "verdict": "ok"}).encode(),
        )
    ):
        lived.store.put(layout.evidence(NOW, f"20261123T050000Z-{NAME}-drill-{number:06x}"), data)
    assert doomed(lived) == ids(old)


def test_what_is_held_stays_until_it_is_released_and_then_goes_with_its_hold() -> None:
    lived = Lived(newest=1)
    old, _ = lived.take(9), lived.take(1)
    lived.hold(old)
    assert reasons(lived.plan())[old.id].startswith("hold: audit (")
    assert lived.apply().backups == []
    holds.release(lived.store, NAME, old.id, reason="closed", kind="vault")
    assert lived.apply().backups == [old.id]
    assert layout.hold(NAME, old.id, kind="vault") not in lived.store.objects


def test_a_hold_that_cannot_be_read_holds() -> None:
    lived = Lived(newest=1)
    old, _ = lived.take(9), lived.take(1)
    lived.store.put(layout.hold(NAME, old.id, kind="vault"), b"damaged")
    assert reasons(lived.plan())[old.id] == "hold: the hold cannot be read"


def test_holds_of_a_vault_and_of_a_database_of_its_name_are_two_things() -> None:
    lived = Lived(newest=1)
    old, _ = lived.take(9), lived.take(1)
    holds.place(lived.store, NAME, old.id, reason="the database's")
    for other in ("vault", "vault-holds", f"vault-{NAME}"):  # Names that a PostgreSQL system may have.
        holds.place(lived.store, other, old.id, reason="a database's")
    assert doomed(lived) == ids(old)
    lived.hold(old, "the Vault's")
    assert [hold.reason for hold in holds.read(lived.store, NAME).values()] == ["the database's"]
    assert [hold.reason for hold in holds.read(lived.store, "vault").values()] == ["a database's"]
    assert reasons(lived.plan())[old.id].startswith("hold: the Vault's (")


# What a restore of a database needs.


def test_the_snapshot_that_belongs_to_a_database_s_backup_stays_for_as_long_as_that_does() -> None:
    lived = Lived(newest=1)
    before, after, later, _ = (lived.take(days) for days in (9, 7, 5, 1))
    database, dump = lived.backup(8), lived.backup(7.5, "dump")
    assert doomed(lived) == ids(before, later)
    assert reasons(lived.plan())[after.id] == f"app038 {dump.id} and 1 more need it"
    lived.history.store.delete(dump.folder + layout.MANIFEST)
    assert reasons(lived.plan())[after.id] == f"app038 {database.id} needs it"
    lived.history.store.delete(database.folder + layout.MANIFEST)
    assert doomed(lived) == ids(before, after, later)


def test_the_older_snapshot_stays_where_only_that_opens_the_rows() -> None:
    lived = Lived(newest=1)
    fits = lived.take(9, keys=(1, 2))
    wrong = lived.take(7, keys=(2, 2))
    lived.take(1, keys=(2, 3))
    lived.backup(8, carried=(1, 2))
    assert doomed(lived) == ids(wrong)
    assert fits.id in reasons(lived.plan())


def test_an_export_alone_belongs_to_no_database() -> None:
    lived = Lived(newest=1)
    export = lived.take(7, "policies")
    lived.backup(8)
    lived.take(1)
    assert doomed(lived) == ids(export)


def test_a_database_whose_keys_another_vault_has_needs_nothing_of_this_one() -> None:
    lived = Lived(newest=1, paired=False, wal=True)
    lived.backup(9)
    old, _ = lived.take(8), lived.take(1)
    assert doomed(lived) == ids(old)


@pytest.mark.parametrize("kept_by", ["configuration", "repository"])
def test_where_wal_is_archived_every_snapshot_since_the_oldest_base_backup_stays(kept_by: str) -> None:
    lived = Lived(newest=1, wal=kept_by == "configuration", apart=True)
    older = lived.take(12)
    dump = lived.backup(11, "dump")
    paired = lived.take(10)
    base = lived.backup(9)
    lived.backup(2)
    inner = [lived.take(days) for days in (8, 6, 4)]
    new = lived.take(1)
    if kept_by == "repository":
        assert doomed(lived) == ids(older, *inner[1:])
        lived.history.wal(range(1, 3), 8)
    assert doomed(lived) == ids(older)
    may = f"moments of app038 since {base.id} may need it"
    assert reasons(lived.plan())[inner[1].id] == may
    assert reasons(lived.plan())[paired.id] == f"app038 {dump.id} needs it"
    assert may in reasons(lived.plan())[new.id]


def test_a_database_s_backup_that_cannot_be_read_may_need_any_snapshot() -> None:
    lived = Lived(newest=1)
    old, export, _ = lived.take(9), lived.take(8, "policies"), lived.take(1)
    damaged = lived.backup(5)
    lived.history.put(damaged.folder + layout.MANIFEST, days_ago(5), b"damaged")
    assert reasons(lived.plan())[old.id] == "a backup of app038 cannot be read, and may need it"
    assert doomed(lived) == ids(export)


def test_a_database_s_repository_that_does_not_answer_ends_the_work_before_anything_is_deleted() -> None:
    lived = Lived(newest=1, apart=True)
    old, new = lived.take(9), lived.take(1)

    def silent(operation: str, key: str) -> None:
        raise StoreUnreachable("no answer")

    lived.history.store.before = silent
    with pytest.raises(StoreUnreachable):
        lived.apply()
    assert lived.left == ids(old, new)


# Remains, locks, and what is not understood.


def test_remains_are_swept_when_they_are_old_and_no_backup_is_being_made() -> None:
    lived = Lived(newest=1)
    lived.take(1)
    old, young = lived.orphan(2), lived.orphan(0.5, began=29)
    aborted: list[str] = []
    lived.store.uploads.append(Unfinished(old, days_ago(2), lambda: aborted.append(old)))
    with Lease(lived.store, kind="vault", name=NAME, job="snapshot"):
        made = lived.plan()
        assert (made.sweeps, made.uploads) == ((), ())
    with Lease(lived.store, kind="postgres", name=NAME, job="base"):
        assert len(lived.plan().sweeps) == 1
    lived.apply()
    assert old not in lived.keys and young in lived.keys and aborted == [old]


def test_remains_are_swept_without_any_rule_too_and_other_vaults_are_not_touched() -> None:
    lived = Lived()
    lived.orphan(2)
    foreign = [f"vault/{name}/snapshots/20200101T000000Z-full/{layout.SNAPSHOT}" for name in ("other", "app038b")]
    odd = [f"vault/{NAME}/notes.txt", f"vault/{NAME}/snapshots/by-hand/{layout.SNAPSHOT}"]
    for key in (*foreign, *odd):
        lived.store.clock = days_ago(900)
        lived.store.put(key, b"x")
    lived.store.clock = NOW
    assert lived.apply().objects == 1
    assert {key for key in lived.store.objects if key.startswith("vault/")} == {*foreign, *odd}


def test_what_is_locked_is_said_and_goes_when_the_lock_has_ended() -> None:
    lived = Lived(newest=1)
    old, new = lived.take(9), lived.take(1)
    lived.store.locks[old.folder + layout.EXPORT] = NOW + timedelta(days=1)
    (decision, _) = lived.plan().decisions
    assert decision.word == "locked"
    assert decision.why == "no rule wants it; it can go from 2026-11-24 12:00:00 UTC on"
    assert lived.apply().backups == [] and lived.left == ids(old, new)
    lived.store.pass_seconds(86400)
    assert lived.apply().backups == [old.id]


def test_a_manifest_that_cannot_be_read_is_reported_and_left_alone() -> None:
    lived = Lived(newest=1)
    old, middle, _ = lived.take(90), lived.take(9), lived.take(1)
    lived.store.put(old.folder + layout.MANIFEST, b"damaged")
    (problem,) = lived.plan().problems
    assert "this is not a manifest" in problem and old.id in problem
    assert lived.apply().backups == [middle.id]
    assert {old.folder + key for key in (layout.MANIFEST, layout.SNAPSHOT, layout.EXPORT)} <= lived.keys


# Deleting.


def test_manifests_go_first() -> None:
    lived = Lived(newest=1)
    old, older = lived.take(8), lived.take(9)
    lived.take(1)
    seen: list[str] = []
    lived.store.before = lambda operation, key: seen.append(key) if operation == "delete" else None
    outcome = lived.apply()
    deleted = [key for key in seen if key.startswith("vault/")]
    assert deleted[:2] == [older.folder + layout.MANIFEST, old.folder + layout.MANIFEST]
    assert outcome.backups == [older.id, old.id] and outcome.objects == 6


def test_what_comes_to_be_held_proven_or_needed_meanwhile_is_kept_back() -> None:
    for act in ("hold", "prove", "backup"):
        lived = Lived(newest=1)
        old = lived.take(9, keys=(1, 1))
        lived.take(1, keys=(2, 2))
        acts = {
            "hold": lambda lived=lived, old=old: lived.hold(old),
            "prove": lambda lived=lived, old=old: lived.prove(old, together=True),
            "backup": lambda lived=lived: lived.backup(0, carried=(1, 1)),
        }
        lived.meanwhile(acts[act])
        outcome = lived.apply()
        assert (outcome.backups, outcome.kept_back) == ([], [old.id]), act
        assert old.id in lived.left


def test_remains_that_are_committed_meanwhile_are_none() -> None:
    lived = Lived(newest=1)
    old, late, _ = lived.take(9), lived.take(5), lived.take(1)
    data = lived.store.get(late.folder + layout.MANIFEST)
    lived.store.delete(late.folder + layout.MANIFEST)
    lived.meanwhile(lambda: lived.store.put(late.folder + layout.MANIFEST, data))
    assert lived.apply().backups == [old.id]
    assert late.id in lived.left


def test_a_manifest_that_the_store_does_not_give_up_keeps_its_backup_whole() -> None:
    lived = Lived(newest=1)
    stuck, old, new = lived.take(9), lived.take(8), lived.take(1)

    def refuse(operation: str, key: str) -> None:
        if operation == "delete" and key == stuck.folder + layout.MANIFEST:
            raise StoreError("the store denied access", where=key)

    lived.store.before = refuse
    outcome = lived.apply()
    assert outcome.backups == [old.id]
    assert outcome.failures == [f"{stuck.folder}manifest.json: the store denied access"]
    assert lived.left == ids(stuck, new)


def test_only_one_at_a_time_deletes() -> None:
    lived = Lived(newest=1)
    old, _ = lived.take(9), lived.take(1)
    held = Lease(lived.store, kind="vault", name=NAME, job="retention")
    with held, pytest.raises(LeaseError, match="vault app038, retention is being written by"):
        lived.apply()
    with Lease(lived.store, kind="postgres", name=NAME, job="retention"):
        assert lived.apply().backups == [old.id]


# Whatever the repositories have lived through.

PERIODS = {"daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m", "yearly": "%Y"}
RULES = st.fixed_dictionaries(
    {}, optional={"newest": st.integers(1, 4)} | {period: st.integers(0, 3) for period in PERIODS}
)


@dataclass
class Life:
    lived: Lived
    rules: dict[str, int]
    snapshots: list[Snapshot] = field(default_factory=list)
    databases: list[Backup] = field(default_factory=list)
    proven: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    streamed: bool = False


@st.composite
def lives(draw: st.DrawFn) -> Life:
    """Forty days of a Vault whose key is rotated and retired, and of a database whose rows carry some of its versions."""
    rules = draw(RULES)
    wal = draw(st.integers(0, 3)) == 0
    life = Life(Lived(wal=wal, apart=draw(st.booleans()), **rules), rules, streamed=wal)
    lived = life.lived
    days, least, latest = 40.0, 1, 1
    for _ in range(draw(st.integers(0, 14))):
        latest += draw(st.sampled_from([0, 0, 1]))
        least = draw(st.integers(least, latest)) if draw(st.integers(0, 4)) == 0 else least
        if draw(st.integers(0, 3)):
            kind = draw(st.sampled_from(["full", "full", "snapshot", "policies"]))
            made = lived.take(days, kind, keys=(least, latest))
            life.snapshots.append(made)
            _mark(draw, life, made)
        elif len(life.databases) < 5:
            oldest = draw(st.integers(1, latest))
            carried = draw(st.none() | st.just((oldest, draw(st.integers(oldest, latest)))))
            kind = draw(st.sampled_from(["full", "dump"]))
            life.databases.append(lived.backup(days, kind, carried=carried))
        days -= draw(st.floats(0.05, 2.8))
    if life.databases and not wal and draw(st.integers(0, 4)) == 0:
        lived.history.wal(range(1, 3), 5)
        life.streamed = True
    for number in range(draw(st.integers(0, 2))):
        lived.orphan(draw(st.integers(0, 3)), began=50 + number)
    return life


def _mark(draw: st.DrawFn, life: Life, made: Snapshot) -> None:
    if made.manifest.kind != "policies" and draw(st.integers(0, 4)) == 0:
        verdict = draw(st.sampled_from(["ok", "ok", "failed", "unknown"]))
        life.lived.prove(made, verdict=verdict, together=draw(st.booleans()))
        life.proven |= {made.id} if verdict == "ok" else set()
    if draw(st.integers(0, 9)) == 0:
        life.lived.hold(made)
        life.held.add(made.id)
    if draw(st.integers(0, 7)) == 0:
        life.lived.store.locks[made.folder + layout.MANIFEST] = NOW + timedelta(days=draw(st.integers(-2, 2)))


def wanted(life: Life) -> set[str]:
    """What the rules want, told without the project's code."""
    if not any(life.rules.values()):
        return ids(*life.snapshots)
    found: set[str] = set()
    for kinds in (("full", "snapshot"), ("full", "policies")):
        newest = [each for each in reversed(life.snapshots) if each.manifest.kind in kinds]
        found |= ids(*newest[: life.rules.get("newest", 0)])
        for period, form in PERIODS.items():
            first: dict[str, str] = {}
            for each in newest:
                first.setdefault(each.manifest.recovery_point.strftime(form), each.id)
            found |= set(list(first.values())[: life.rules.get(period, 0)])
    return found


def check(life: Life) -> None:
    """No rule's wish, no pair, no moment's snapshot, no proof and no hold is gone; what is left is whole."""
    left = life.lived.left
    entry = catalog.read(life.lived.store, NAME)
    assert ids(*entry.backups) == left
    snapshots = [each for each in life.snapshots if each.manifest.kind != "policies"]
    exports = [each for each in life.snapshots if each.manifest.kind != "snapshot"]
    proven = [each for each in snapshots if each.id in life.proven]
    assert wanted(life) | life.held | ids(*snapshots[-1:], *exports[-1:], *proven[-1:]) <= left
    for backup in life.databases:
        point, carried = backup.manifest.recovery_point, backup.manifest.key_versions
        before = recovery_set.choose(point, carried, snapshots)
        # Where none fits, the reason names the nearest that is there.
        assert recovery_set.choose(point, carried, entry.snapshots).snapshot == before.snapshot
    physical = [backup.manifest.finished_at for backup in life.databases if backup.manifest.kind != "dump"]
    if life.streamed and physical:
        assert ids(*(each for each in snapshots if each.manifest.recovery_point >= min(physical))) <= left


@given(lives())
@settings(max_examples=150, deadline=None)
def test_nothing_that_anything_needs_is_ever_deleted(life: Life) -> None:
    untouched = {key for key in life.lived.history.store.objects if not key.startswith(("vault/", "leases/"))}
    outcome = life.lived.apply()
    assert outcome.failures == [] and outcome.kept_back == []
    check(life)
    assert untouched <= set(life.lived.history.store.objects)


@given(lives())
@settings(max_examples=60, deadline=None)
def test_a_second_run_finds_nothing_to_do(life: Life) -> None:
    life.lived.apply()
    keys = life.lived.keys
    outcome = life.lived.apply()
    assert (outcome.backups, outcome.objects) == ([], 0)
    assert life.lived.keys == keys


@given(lives())
@settings(max_examples=60, deadline=None)
def test_the_plan_names_exactly_what_goes(life: Life) -> None:
    lived = life.lived
    made, before = lived.plan(), lived.keys
    named = set(made.keys(retention.read(lived.installation, NAME)))
    applied, outcome = retention.apply(lived.installation, NAME)
    assert applied.document() == made.document()
    assert before - lived.keys == named
    assert outcome.bytes == made.freed_bytes


@given(lives(), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_an_interruption_at_any_deletion_leaves_whole_backups_and_orphans(life: Life, deletions: int) -> None:
    left = [deletions]

    def cut(operation: str, key: str) -> None:
        if operation == "delete" and not key.startswith("leases/"):
            left[0] -= 1
            if left[0] < 0:
                raise StoreUnreachable("no answer")

    life.lived.store.before = cut
    with contextlib.suppress(StoreUnreachable):
        life.lived.apply()
    life.lived.store.before = lambda operation, key: None
    check(life)
    assert life.lived.apply().failures == []
    check(life)


def test_the_lives_are_worth_testing() -> None:
    """A generator that made nothing to delete, to pair or to prove would prove nothing."""
    seen = dict.fromkeys(("deleted", "paired alone", "proven alone", "streamed", "held", "locked", "swept"), 0)

    @given(lives())
    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    def look(life: Life) -> None:
        made = life.lived.plan()
        whys = [decision.why for decision in made.decisions]
        seen["deleted"] += bool(made.doomed)
        seen["paired alone"] += any(why.startswith("app038 ") and ";" not in why for why in whys)
        seen["proven alone"] += "last proven" in whys
        seen["streamed"] += any(why.startswith("moments of ") for why in whys)
        seen["held"] += any(why.startswith("hold: ") for why in whys)
        seen["locked"] += any(decision.word == "locked" for decision in made.decisions)
        seen["swept"] += bool(made.sweeps)

    look()
    assert all(count >= 3 for count in seen.values()), seen


def test_a_cluster_of_the_past_without_wal_keeps_no_moment() -> None:
    lived = Lived(newest=1)
    lived.backup(20, cluster="9999")
    paired, old = lived.take(19), lived.take(18)
    lived.backup(5, cluster=CLUSTER)
    since, new = lived.take(4), lived.take(1)
    lived.history.wal(range(1, 3), 4, cluster=CLUSTER)
    assert doomed(lived) == ids(old)
    assert {paired.id, since.id, new.id} == set(reasons(lived.plan()))
