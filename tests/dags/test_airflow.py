"""The DAGs in a real Airflow: its scheduler runs them, its API shows what they did. The last test kills a worker."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest
import yaml

from lab.airflow import Airflow
from lab.bao import OpenBao
from lab.clients import installation_of
from lab.system import Lab
from recovery.drill import evidence
from recovery.postgres.wal import audit
from recovery.repository import catalog
from recovery.repository.verify import Level
from recovery.vault import catalog as vault_catalog

BACKUP, DRILL, SYSTEM = "postgres_full_backup", "restore_drill", "app038"
CANARY, SNAPSHOT, EXPORT = "vault_canary", "vault_snapshot", "vault_policy_export"
INCREMENTAL, WAL = "postgres_incremental_backup", "postgres_wal_archive"


def airflow_of(lab: Lab) -> Airflow:
    assert lab.airflow is not None
    return lab.airflow


def vault_of(lab: Lab) -> OpenBao:
    assert lab.vault is not None
    return lab.vault


def snapshots(lab: Lab) -> list[str]:
    return [found.id for found in vault_catalog.read(installation_of(lab).vault_store(SYSTEM), SYSTEM).backups]


def states(lab: Lab, dag: str, run: str) -> dict[str, str]:
    return {task["task_id"]: task["state"] for task in airflow_of(lab).task_instances(dag, run)}


def backups(lab: Lab) -> list[str]:
    found = catalog.read(installation_of(lab).store_of(SYSTEM), SYSTEM)
    assert not found.problems
    return [backup.id for backup in found.backups]


def secrets_of(lab: Lab) -> list[str]:
    """Every secret of the lab that a task could have seen."""
    identity = json.loads(lab.env["AIRFLOW_CONN_RECOVERY_IDENTITY"])["password"]
    vault = vault_of(lab)
    own = [*vault.passwords.values(), *vault.shares, vault.root_token]
    return [*lab.app038.passwords.values(), lab.objects.secret_key, identity, *own]


@contextmanager
def watched_command_lines() -> Iterator[set[bytes]]:
    """The command lines of all processes while the block runs, sampled ten times a second."""
    seen: set[bytes] = set()
    done = Event()

    def watch() -> None:
        while not done.wait(0.1):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        seen.add((entry / "cmdline").read_bytes())
                    except OSError:
                        continue

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


@pytest.fixture(scope="module")
def first_runs(lab: Lab) -> dict[str, Any]:
    """Backups and a drill of them, each started through Airflow's API and run by its scheduler."""
    airflow = airflow_of(lab)
    with watched_command_lines() as command_lines:
        canary = airflow.trigger(CANARY)
        canary_state = airflow.wait(CANARY, canary, timeout_seconds=200)
        backup = airflow.trigger(BACKUP)
        backup_state = airflow.wait(BACKUP, backup, timeout_seconds=200)
        snapshot = airflow.trigger(SNAPSHOT)
        snapshot_state = airflow.wait(SNAPSHOT, snapshot, timeout_seconds=200)
        drill = airflow.trigger(DRILL)
        drill_state = airflow.wait(DRILL, drill, timeout_seconds=200)
    return {
        "backup": (backup, backup_state),
        "canary": (canary, canary_state),
        "snapshot": (snapshot, snapshot_state),
        "drill": (drill, drill_state),
        "command_lines": command_lines,
    }


def test_airflow_takes_a_base_backup_and_a_dump_and_checks_both(lab: Lab, first_runs: dict[str, Any]) -> None:
    run, state = first_runs["backup"]
    assert state == "success", states(lab, BACKUP, run)
    kinds = [identifier.partition("-")[2] for identifier in backups(lab)]
    assert kinds == ["full", "dump"]
    assert set(states(lab, BACKUP, run).values()) == {"success"}


def test_wal_streams_by_itself_and_leads_on_from_the_first_backup(lab: Lab, first_runs: dict[str, Any]) -> None:
    store, first = installation_of(lab).store_of(SYSTEM), backups(lab)[0]
    deadline = time.monotonic() + 60
    while not (windows := [window for report in audit.audit(store, SYSTEM, Level.EXISTS) for window in report.windows]):
        assert time.monotonic() < deadline, "no WAL leads on from the first backup"
        time.sleep(0.5)
    assert windows[0].backup == first and windows[0].end_lsn > windows[0].begin_lsn
    assert not [finding for report in audit.audit(store, SYSTEM, Level.EXISTS) for finding in report.findings]
    (run,) = airflow_of(lab).request("GET", f"dags/{WAL}/dagRuns?state=running").json()["dag_runs"]
    (stream,) = [
        task
        for task in airflow_of(lab).task_instances(WAL, run["dag_run_id"])
        if task["task_id"] == "stream" and task["map_index"] == 0
    ]
    assert (stream["state"], stream["try_number"], stream["rendered_map_index"]) == ("running", 1, SYSTEM)
    ((active, retained),) = lab.app038.execute(
        "SELECT active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) FROM pg_replication_slots"
        " WHERE slot_name = 'recovery'"
    )
    assert active and retained < 256 << 20


def test_retention_runs_and_the_name_of_its_task_says_what_it_deleted(lab: Lab) -> None:
    run = airflow_of(lab).trigger("retention")
    assert airflow_of(lab).wait("retention", run, timeout_seconds=200) == "success", states(lab, "retention", run)
    names = {task["rendered_map_index"] for task in airflow_of(lab).task_instances("retention", run)}
    assert f"{SYSTEM}: 0 backups, 0 objects, 0.0 MB deleted" in names


def test_airflow_writes_the_canary_and_takes_a_snapshot_where_there_is_none(
    lab: Lab, first_runs: dict[str, Any]
) -> None:
    run, state = first_runs["canary"]
    assert state == "success", states(lab, CANARY, run)
    assert states(lab, CANARY, run) == {
        "systems": "success",
        "canary": "success",
        "due": "success",
        "snapshot": "success",
    }
    rows = lab.app038.execute("SELECT key, version FROM recovery.canary", dbname="app038")
    assert rows == [("transit/recovery-canary", 1)]


def test_airflow_backs_up_the_vault_and_checks_it(lab: Lab, first_runs: dict[str, Any]) -> None:
    run, state = first_runs["snapshot"]
    assert state == "success", states(lab, SNAPSHOT, run)
    assert set(states(lab, SNAPSHOT, run).values()) == {"success"}
    assert {identifier.partition("-")[2] for identifier in snapshots(lab)} >= {"full"}
    events = airflow_of(lab).request("GET", "assets/events?limit=100").json()["asset_events"]
    assert {event["extra"]["id"] for event in events if event["name"] == "vault_backup"} == set(snapshots(lab))


def test_airflow_exports_policies(lab: Lab, first_runs: dict[str, Any]) -> None:
    run = airflow_of(lab).trigger(EXPORT)
    assert airflow_of(lab).wait(EXPORT, run, timeout_seconds=200) == "success", states(lab, EXPORT, run)
    assert snapshots(lab)[-1].endswith("-policies")


def test_mapped_tasks_are_named_after_their_system(lab: Lab, first_runs: dict[str, Any]) -> None:
    run, _ = first_runs["backup"]
    names = {
        task["rendered_map_index"] for task in airflow_of(lab).task_instances(BACKUP, run) if task["map_index"] >= 0
    }
    assert names == {SYSTEM}


def test_an_asset_event_carries_each_backup_s_id(lab: Lab, first_runs: dict[str, Any]) -> None:
    events = airflow_of(lab).request("GET", "assets/events").json()["asset_events"]
    announced = {event["extra"]["id"] for event in events if event["name"] == "postgres_backup"}
    assert announced == set(backups(lab))


def test_the_drill_proves_the_newest_full_and_keeps_evidence(lab: Lab, first_runs: dict[str, Any]) -> None:
    run, state = first_runs["drill"]
    assert state == "success", states(lab, DRILL, run)
    (found,) = evidence.read_all(installation_of(lab).store_of(SYSTEM))
    assert found["verdict"] == "ok"
    assert found["backup"] == backups(lab)[0]
    assert found["rto_seconds"] > 0
    assert {table["verdict"] for table in found["tables"]} == {"ok"}
    assert sum(table["rows"] for table in found["tables"]) > 10_000
    assert found["kind"] == "set" and found["snapshot"] in snapshots(lab)
    checks = {check["name"]: check["detail"] for check in found["checks"]}
    assert checks["canaries"] == "opened: transit/recovery-canary v1"
    assert not list((lab.root / "sandbox").iterdir())


def test_no_secret_is_in_a_log_an_xcom_a_rendered_field_or_a_process_list(lab: Lab, first_runs: dict[str, Any]) -> None:
    secrets = [secret.encode() for secret in secrets_of(lab)]
    logs = [path for folder in ("logs", "airflow/logs") for path in (lab.root / folder).rglob("*") if path.is_file()]
    assert any("base_backup" in str(path) for path in logs)
    for path in logs:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret in content], path
    with closing(sqlite3.connect(f"file:{lab.root}/airflow/airflow.db?mode=ro", uri=True)) as database:
        # XComs, rendered fields, serialized DAGs, asset events, run configurations: all that Airflow remembers.
        remembered = "\n".join(database.iterdump()).encode()
    assert b"rendered_task_instance_fields" in remembered
    assert SYSTEM.encode() in remembered
    assert not [secret for secret in secrets if secret in remembered]
    assert any(b"pg_dump" in line for line in first_runs["command_lines"])
    assert not [line for line in first_runs["command_lines"] for secret in secrets if secret in line]


def test_no_secret_is_in_a_manifest_or_in_evidence(lab: Lab, first_runs: dict[str, Any]) -> None:
    store = installation_of(lab).store_of(SYSTEM)
    keys = [info.key for info in store.scan("") if info.key.endswith(".json")]
    assert any("manifest" in key for key in keys)
    assert any("evidence" in key for key in keys)
    for key in keys:
        content = store.get(key)
        assert not [secret for secret in secrets_of(lab) if secret.encode() in content], key


def test_the_form_chooses_what_is_backed_up(lab: Lab, first_runs: dict[str, Any]) -> None:
    airflow = airflow_of(lab)
    before = backups(lab)
    run = airflow.trigger(BACKUP, {"systems": [SYSTEM], "base": False, "dump": True})
    assert airflow.wait(BACKUP, run, timeout_seconds=200) == "success"
    assert states(lab, BACKUP, run) == {
        "systems": "success",
        "protect.base_backup": "skipped",
        "protect.check_base": "skipped",
        "protect.dump": "success",
        "protect.check_dump": "success",
    }
    (new,) = set(backups(lab)) - set(before)
    assert new.endswith("-dump")


def test_airflow_takes_an_incremental_on_the_newest_and_checks_it(lab: Lab, first_runs: dict[str, Any]) -> None:
    airflow = airflow_of(lab)
    parent = catalog.read(installation_of(lab).store_of(SYSTEM), SYSTEM).newest("full")
    assert parent is not None
    run = airflow.trigger(INCREMENTAL)
    assert airflow.wait(INCREMENTAL, run, timeout_seconds=200) == "success"
    assert states(lab, INCREMENTAL, run) == {
        "systems": "success",
        "protect.incremental": "success",
        "protect.check": "success",
    }
    made = catalog.read(installation_of(lab).store_of(SYSTEM), SYSTEM).newest("full", "incremental")
    assert made is not None and (made.manifest.kind, made.manifest.parent) == ("incremental", parent.id)
    events = airflow.request("GET", "assets/events?limit=100").json()["asset_events"]
    assert made.id in {event["extra"]["id"] for event in events if event["name"] == "postgres_backup"}
    told = airflow.task_log(INCREMENTAL, run, "protect.incremental", map_index=0)
    assert f"an incremental backup is taken: it builds on {parent.id}" in told


def test_an_unknown_system_fails_in_one_line_without_a_retry(lab: Lab, first_runs: dict[str, Any]) -> None:
    airflow = airflow_of(lab)
    run = airflow.trigger(BACKUP, {"systems": ["app039"]})
    assert airflow.wait(BACKUP, run, timeout_seconds=200) == "failed"
    (task,) = [task for task in airflow.task_instances(BACKUP, run) if task["task_id"] == "systems"]
    assert task["try_number"] == 1
    assert "no PostgreSQL system is named 'app039' -> use one of: app038" in airflow.task_log(BACKUP, run, "systems")


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_worker_killed_mid_upload_commits_nothing_and_the_retry_succeeds(
    lab: Lab, first_runs: dict[str, Any]
) -> None:
    airflow = airflow_of(lab)
    before = backups(lab)
    configuration = lab.root / "recovery.yaml"
    whole = configuration.read_text()
    throttled = yaml.safe_load(whole)
    throttled["postgres"][SYSTEM]["base"] = {"max_rate_mib_per_second": 2}
    configuration.write_text(yaml.safe_dump(throttled))
    try:
        run = airflow.trigger(BACKUP, {"base": True, "dump": False})
        killed = kill_the_process_that_receives(lab)
    finally:
        configuration.write_text(whole)
    assert killed
    wait_for_retry(airflow, run)
    assert backups(lab) == before
    # The retry comes two minutes later, when the dead worker's lease has expired.
    assert airflow.wait(BACKUP, run, timeout_seconds=400) == "success"
    (new,) = set(backups(lab)) - set(before)
    (task,) = [task for task in airflow.task_instances(BACKUP, run) if task["task_id"] == "protect.base_backup"]
    assert task["try_number"] > 1
    assert new.endswith("-full")


def kill_the_process_that_receives(lab: Lab) -> int:
    """SIGKILL the task process that a walsender is sending the base backup to, once it is well under way."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        rows = lab.app038.execute(
            "SELECT a.client_port FROM pg_stat_progress_basebackup p JOIN pg_stat_activity a USING (pid) "
            "WHERE p.backup_streamed > 4000000"
        )
        for (port,) in rows:
            for connection in psutil.net_connections("tcp"):
                if connection.laddr and connection.laddr.port == port and connection.pid:
                    os.kill(connection.pid, signal.SIGKILL)
                    return connection.pid
        time.sleep(0.2)
    return 0


def wait_for_retry(airflow: Airflow, run: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        tasks = {task["task_id"]: task["state"] for task in airflow.task_instances(BACKUP, run)}
        if tasks.get("protect.base_backup") == "up_for_retry":
            return
        time.sleep(0.5)
    raise AssertionError(f"the killed task is not up for retry: {tasks}")
