"""The lab keeps what it promises to the demo and to the other tests. Airflow's part is tested with the DAGs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from botocore.exceptions import ClientError

from lab import app038
from lab.clients import BUCKET, SHARES_FILE, configuration, installation_of
from lab.directory import PARTS
from lab.errors import AlreadyRunningError, LabError
from lab.postgres import PostgresServer
from lab.process import Process, marked_processes, new_lab_id, sweep
from lab.system import Lab
from lab.users import scratch
from recovery import config
from recovery.connections import Connection
from recovery.vault import shares
from recovery.vault.session import log_in

INCLUDE = Path(__file__).parents[2] / "include"
SMALL = ["--size-mb=1", "--no-airflow", "--no-vault", "--no-prometheus", "--no-staging"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Everything but Airflow, with a small database."""
    with scratch() as folder, Lab(folder / "lab", size_mb=5, airflow=False) as started:
        yield started


def eventually(holds: Callable[[], bool], *, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lab", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(INCLUDE)}
    return subprocess.run(command(*arguments), env=environment, capture_output=True, text=True, timeout=90, check=False)


# --- App038's primary ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [("data_checksums", "on"), ("summarize_wal", "on"), ("wal_level", "replica"), ("listen_addresses", "127.0.0.1")],
)
def test_the_primary_is_set_up_for_backups(lab: Lab, setting: str, value: str) -> None:
    assert lab.app038.execute("SELECT current_setting(%s)", (setting,)) == [(value,)]


@pytest.mark.parametrize(
    ("thing", "query"),
    [
        ("an enum", "SELECT 1 FROM pg_enum"),
        ("a tablespace with a table", "SELECT 1 FROM pg_tables WHERE tablespace = 'app038_archive'"),
        ("a large object", "SELECT 1 FROM pg_largeobject_metadata"),
        ("foreign keys", "SELECT 1 FROM pg_constraint WHERE contype = 'f'"),
        ("sequences", "SELECT 1 FROM pg_sequences WHERE last_value > 1"),
        ("jsonb", "SELECT 1 FROM orders WHERE shipping ->> 'city' = 'Bern'"),
        ("bytea", "SELECT 1 FROM documents WHERE length(content) > 4000"),
        ("pgcrypto", "SELECT 1 WHERE encode(digest('x', 'md5'), 'hex') = md5('x')"),
        ("statistics of its statements", "SELECT 1 FROM pg_stat_statements LIMIT 1"),
        ("sessions and jobs", "SELECT 1 FROM sessions, jobs LIMIT 1"),
        (
            "no order without its user",
            "SELECT 1 WHERE NOT EXISTS (SELECT FROM orders WHERE user_id NOT IN (SELECT id FROM users))",
        ),
    ],
)
def test_the_database_holds(lab: Lab, thing: str, query: str) -> None:
    with psycopg.connect(lab.app038.dsn(app038.DATABASE)) as connection:
        assert connection.execute(query.encode()).fetchone(), thing


def test_the_database_has_about_the_size_that_was_asked_for(lab: Lab) -> None:
    ((size, empty),) = lab.app038.execute("SELECT pg_database_size('app038'), pg_database_size('template1')")
    assert 4e6 < size - empty < 9e6


@pytest.mark.parametrize("database", [app038.DATABASE, app038.REPORTING_DATABASE])
def test_the_backup_role_reads_everything_and_writes_nothing(lab: Lab, database: str) -> None:
    with psycopg.connect(lab.app038.dsn(database, user=app038.BACKUP_ROLE), autocommit=True) as connection:
        tables = connection.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND oid > 16383").fetchall()
        assert tables
        for (table,) in tables:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(psycopg.sql.SQL("DELETE FROM {}").format(psycopg.sql.Identifier(table)))
            connection.execute(psycopg.sql.SQL("SELECT FROM {} LIMIT 1").format(psycopg.sql.Identifier(table)))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE public.intruder ()")
        connection.execute("SELECT lo_get(oid, 0, 10) FROM pg_largeobject_metadata")


def test_the_backup_role_may_replicate(lab: Lab) -> None:
    dsn = lab.app038.dsn("postgres", user=app038.BACKUP_ROLE, replication="true")
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute("IDENTIFY_SYSTEM").fetchone()


def test_a_wrong_password_is_refused(lab: Lab) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(lab.app038.dsn(user=app038.BACKUP_ROLE, password="wrong"))


def test_whoever_holds_the_lock_has_paused_the_load(lab: Lab) -> None:
    with app038.paused(lab.app038.dsn(app038.DATABASE, user=app038.BACKUP_ROLE)):
        time.sleep(0.2)  # the last commit is the server's before it is the counter's
        before = lab.load.committed
        time.sleep(0.5)
        assert lab.load.committed == before
    assert eventually(lambda: lab.load.committed > before)


def test_what_the_load_counts_as_committed_survives_a_crash(lab: Lab) -> None:
    assert eventually(lambda: lab.load.last_order_id is not None)
    port = lab.app038.port
    lab.app038.kill()
    assert not lab.app038.running
    last, committed = lab.load.last_order_id, lab.load.committed
    lab.app038.start()
    assert lab.app038.port == port
    with psycopg.connect(lab.app038.dsn(app038.DATABASE)) as connection:
        assert connection.execute("SELECT FROM orders WHERE id = %s", (last,)).fetchone() is not None
    assert eventually(lambda: lab.load.committed > committed), lab.load.last_error


# --- the other servers -----------------------------------------------------------------------------------------------


def test_the_bucket_keeps_a_locked_version_and_locks_nothing_by_itself(lab: Lab) -> None:
    client = lab.objects.client()
    until = datetime.now(UTC) + timedelta(minutes=5)
    locked = client.put_object(
        Bucket=BUCKET, Key="locked", Body=b"1", ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=until
    )["VersionId"]
    free = client.put_object(Bucket=BUCKET, Key="free", Body=b"1")["VersionId"]
    client.delete_object(Bucket=BUCKET, Key="free", VersionId=free)
    with pytest.raises(ClientError, match="AccessDenied"):
        client.delete_object(Bucket=BUCKET, Key="locked", VersionId=locked)
    assert client.get_object(Bucket=BUCKET, Key="locked", VersionId=locked)["Body"].read() == b"1"


def test_what_the_object_store_acknowledged_survives_its_crash(lab: Lab) -> None:
    client = lab.objects.client()
    client.put_object(Bucket=BUCKET, Key="acknowledged", Body=b"x" * 100_000)
    lab.objects.kill()
    lab.objects.start()
    assert client.get_object(Bucket=BUCKET, Key="acknowledged")["Body"].read() == b"x" * 100_000


def test_the_backup_token_takes_snapshots_and_changes_nothing(lab: Lab) -> None:
    assert lab.vault
    assert lab.vault.request("GET", "sys/policies/acl?list=true", token=lab.vault_token)["data"]["keys"]
    with pytest.raises(LabError, match="403"):
        lab.vault.write_policy("intruder", 'path "*" { capabilities = ["sudo"] }', token=lab.vault_token)


def test_a_restarted_vault_is_unsealed(lab: Lab) -> None:
    assert lab.vault
    lab.vault.restart()
    assert lab.vault.request("GET", "sys/seal-status", token="")["sealed"] is False


def test_the_vault_is_reached_by_the_connection_of_the_configuration(lab: Lab) -> None:
    installation = installation_of(lab)
    settings = installation.configuration.vault_system("app038")
    with log_in(installation.connection(settings.connection)) as session:
        found = session.client.auth.token.lookup_self()["data"]
        assert set(found["policies"]) == {"recovery-backup", "recovery-canary"}
    assert settings.binary
    assert os.access(settings.binary, os.X_OK)


def test_the_shares_of_the_vault_lie_in_a_private_file(lab: Lab) -> None:
    assert lab.vault
    installation = installation_of(lab)
    connection = installation.configuration.vault_system("app038").shares
    assert connection
    assert shares.of_connection(installation.connection(connection)) == lab.vault.shares
    assert (lab.root / SHARES_FILE).stat().st_mode & 0o777 == 0o600


def test_the_canary_is_written_by_a_role_of_its_own_and_read_by_the_backup(lab: Lab) -> None:
    keys = installation_of(lab).configuration.postgres_system("app038").keys
    assert keys
    assert keys.canary
    writer = installation_of(lab).connection(keys.canary.connection)
    with psycopg.connect(lab.app038.dsn(keys.canary.database, user=writer.login, password=writer.password)) as session:
        session.execute("CREATE TABLE recovery.canary AS SELECT 1 AS one")
    with psycopg.connect(lab.app038.dsn(keys.canary.database, user=app038.BACKUP_ROLE)) as session:
        assert session.execute("SELECT one FROM recovery.canary").fetchall() == [(1,)]
    lab.app038.execute("DROP TABLE recovery.canary", dbname=keys.canary.database)


def test_the_database_knows_the_roles_that_the_vault_has_leased(lab: Lab) -> None:
    assert lab.vault
    leases = lab.vault.request("LIST", "sys/leases/lookup/database/creds/app038")["data"]["keys"]
    roles = lab.app038.execute("SELECT 1 FROM pg_roles WHERE rolname LIKE 'v-%'")
    assert len(leases) == len(roles) > 0


def test_a_lab_without_a_vault_configures_none() -> None:
    with scratch() as folder:
        lab = Lab(folder / "lab", airflow=False, vault=False)
        found = config.parse(json.dumps(configuration(lab)))
        assert found.vault == {}
        assert found.postgres_system("app038").keys is None
        assert not [name for name in lab.env if "VAULT" in name or "CANARY" in name]


def test_prometheus_finds_a_target_without_a_restart(lab: Lab) -> None:
    assert lab.prometheus
    lab.prometheus.add_target("again", f"{lab.prometheus.host}:{lab.prometheus.port}")

    def scraped() -> bool:
        assert lab.prometheus
        return bool(lab.prometheus.query('up{job="again"} == 1'))

    assert eventually(scraped)


def test_a_server_that_cannot_start_names_itself_and_says_why() -> None:
    with scratch() as folder:
        server = PostgresServer(folder / "odd", name="odd", settings={"no_such_setting": "1"})
        with pytest.raises(LabError, match=r"PostgreSQL 17 \(odd\)[\s\S]*no_such_setting"):
            server.start()
        assert not server.running


def test_nothing_escapes_into_a_session_of_its_own() -> None:
    """A process that left its parents, its session and its environment ends with the server that started it."""
    with scratch() as folder:
        escape = f"env -i setsid sh -c 'sleep 300 & echo $! > {folder}/pid' & exec sleep 300"
        process = Process("escapist", ["sh", "-c", escape], log=folder / "log", cwd=folder)
        process.start()
        assert eventually(lambda: (folder / "pid").exists() and bool((folder / "pid").read_text().strip()))
        pid = (folder / "pid").read_text().strip()
        assert Path(f"/proc/{pid}").exists()
        process.stop()
        assert not Path(f"/proc/{pid}").exists()


# --- the directory, and the end of a launcher ------------------------------------------------------------------------


def test_files_that_hold_secrets_are_private(lab: Lab) -> None:
    for name in ("state.json", "env", "env.json", "recovery.yaml"):
        assert (lab.root / name).stat().st_mode & 0o777 == 0o600, name


def test_the_environment_and_the_configuration_fit_together(lab: Lab) -> None:
    environment = json.loads((lab.root / "env.json").read_text())
    configuration = config.load(Path(environment["RECOVERY_CONFIG"]))
    system = configuration.postgres_system("app038")
    variable = f"AIRFLOW_CONN_{system.connection.upper()}"
    source = Connection.from_json(system.connection, environment[variable])
    assert (source.host, source.port, source.login) == (lab.app038.host, lab.app038.port, app038.BACKUP_ROLE)
    shell = subprocess.run(
        ["sh", "-c", f'. {lab.root}/env && printf %s "${variable}"'], capture_output=True, text=True, check=True
    )
    assert shell.stdout == environment[variable]


def test_a_second_start_says_where_the_lab_runs(lab: Lab) -> None:
    with pytest.raises(AlreadyRunningError, match=rf"already running at {lab.root} \(pid {os.getpid()}\)"):
        Lab(lab.root, airflow=False).start()
    for extra in ([], ["--detach"]):
        again = run("up", f"--root={lab.root}", *SMALL, *extra)
        assert (again.returncode, again.stderr) == (0, f"lab: already running at {lab.root} (pid {os.getpid()})\n")
    assert lab.app038.running


def test_a_lab_does_not_throw_away_what_it_did_not_make() -> None:
    with scratch() as folder:
        (folder / PARTS[0]).mkdir()
        with pytest.raises(LabError, match="name another directory"):
            Lab(folder, airflow=False).start()
        assert (folder / PARTS[0]).is_dir()


def test_a_killed_launcher_leaves_no_process_and_the_next_start_tidies_up() -> None:
    with scratch() as folder:
        root = folder / "lab"
        environment = os.environ | {"PYTHONPATH": str(INCLUDE)}
        with subprocess.Popen(
            command("up", f"--root={root}", *SMALL), env=environment, stderr=subprocess.DEVNULL
        ) as up:
            assert eventually(lambda: state_of(root).get("ready_seconds") is not None)
            lab_id = state_of(root)["id"]
            assert marked_processes(lab_id)
            up.kill()
        assert eventually(lambda: not marked_processes(lab_id))

        assert run("up", f"--root={root}", *SMALL, "--detach").returncode == 0
        assert state_of(root)["id"] != lab_id
        assert run("status", f"--root={root}").returncode == 0
        assert run("down", f"--root={root}").returncode == 0
        assert run("status", f"--root={root}").returncode == 1


def test_ctrl_c_ends_a_lab_that_is_still_starting() -> None:
    with scratch() as folder:
        root = folder / "lab"
        environment = os.environ | {"PYTHONPATH": str(INCLUDE)}
        with subprocess.Popen(
            command("up", f"--root={root}", *SMALL), env=environment, stderr=subprocess.DEVNULL
        ) as up:
            assert eventually(lambda: "id" in state_of(root))
            lab_id = state_of(root)["id"]
            assert eventually(lambda: bool(marked_processes(lab_id)))
            up.send_signal(signal.SIGINT)
            up.wait(timeout=60)
        assert not marked_processes(lab_id)
        assert not (root / "state.json").exists()


def test_sweeping_ends_a_server_whose_guard_was_killed_too() -> None:
    lab_id = new_lab_id()
    with scratch() as folder:
        process = Process("orphan", ["sleep", "300"], log=folder / "log", cwd=folder, lab_id=lab_id)
        process.start()
        (guard,) = [pid for pid in marked_processes(lab_id) if pid != process.pid]
        os.kill(guard, signal.SIGKILL)
        assert eventually(lambda: not process.running)
        assert marked_processes(lab_id) == [process.pid]
        sweep(lab_id)
        assert not marked_processes(lab_id)
        process.stop()


def state_of(root: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((root / "state.json").read_text())
    except FileNotFoundError:
        return {}
    return state
