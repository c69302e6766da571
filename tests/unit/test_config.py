"""recovery.yaml: each mistake has its own message with a path in the file, and all of them come in one pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyrage
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recovery import config
from recovery.errors import ConfigurationError, ConfigurationProblems

IDENTITY = pyrage.x25519.Identity.generate()
Change = Callable[[dict[str, Any]], object]

GOOD: dict[str, Any] = {
    "version": 1,
    "encryption": {"recipients": [str(IDENTITY.to_public())], "identity": "recovery_identity"},
    "repositories": {
        "main": {
            "s3": {
                "connection": "recovery_s3",
                "bucket": "backups",
                "prefix": "recovery/production",
                "object_lock": {"mode": "COMPLIANCE", "days": 30},
            }
        },
        "copy": {"directory": {"path": "/srv/backups"}},
    },
    "postgres": {
        "app038": {
            "connection": "app038_backup",
            "repository": "main",
            "base": {"compression": {"where": "client", "level": 3, "workers": 2}, "max_rate_mib_per_second": 50},
            "dump": {"jobs": 4, "exclude_databases": ["scratch"]},
            "tools": {17: "/usr/lib/postgresql/17/bin"},
            "preload": ["timescaledb"],
            "objectives": {"rto": "15m"},
        }
    },
    "sandbox": {"directory": "/var/tmp/recovery", "user": "postgres"},
}


def parse(*changes: Change) -> config.Configuration:
    document = copy.deepcopy(GOOD)
    for change in changes:
        change(document)
    return config.parse(yaml.safe_dump(document))


def messages(*changes: Change) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse(*changes)
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


def put(path: str, value: object) -> Change:
    """Set one value; the path's steps are separated by slashes."""

    def change(document: dict[str, Any]) -> None:
        *steps, last = path.split("/")
        for step in steps:
            document = document[step]
        document[last] = value

    return change


def drop(path: str) -> Change:
    def change(document: dict[str, Any]) -> None:
        *steps, last = path.split("/")
        for step in steps:
            document = document[step]
        del document[last]

    return change


def test_a_full_configuration_is_read() -> None:
    found = parse()
    assert found.postgres["app038"].objectives.rto == timedelta(minutes=15)
    assert found.postgres["app038"].tools == {17: Path("/usr/lib/postgresql/17/bin")}
    assert found.repositories["copy"].directory is not None
    assert found.encryption.identity == "recovery_identity"


def test_what_is_left_out_has_a_default() -> None:
    found = parse(put("postgres/app038", {"connection": "a", "repository": "copy"}), drop("sandbox"))
    assert found.postgres["app038"].base.compression.where == "client"
    assert found.postgres["app038"].dump.jobs == 2
    assert found.sandbox.user is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        pytest.param(
            put("postgres/app038/dmup", {}),
            "recovery.yaml: postgres.app038.dmup: unknown key -> did you mean 'dump'?",
            id="unknown-key",
        ),
        pytest.param(
            put("postgres/app038/base/compression/levle", 3),
            "recovery.yaml: postgres.app038.base.compression.levle: unknown key -> did you mean 'level'?",
            id="unknown-key-deep",
        ),
        pytest.param(
            put("repositories/main/s3/object_lock/mdoe", "COMPLIANCE"),
            "recovery.yaml: repositories.main.s3.object_lock.mdoe: unknown key -> did you mean 'mode'?",
            id="unknown-key-behind-an-optional",
        ),
        pytest.param(
            put("zzz", 1),
            "recovery.yaml: zzz: unknown key -> remove it; known here: encryption, postgres, repositories, sandbox, vault, version",
            id="unknown-key-like-none",
        ),
        pytest.param(
            drop("encryption"), "recovery.yaml: encryption: this key is required -> add it", id="missing-section"
        ),
        pytest.param(
            drop("postgres/app038/connection"),
            "recovery.yaml: postgres.app038.connection: this key is required -> add it",
            id="missing-key",
        ),
        pytest.param(drop("version"), "recovery.yaml: version: this key is required -> add it", id="missing-version"),
        pytest.param(put("version", 2), "recovery.yaml: version: input should be 1 -> correct the value", id="version"),
        pytest.param(
            put("encryption/recipients", ["age1nonsense"]),
            "recovery.yaml: encryption.recipients.0: not an age recipient -> age1... (age-keygen -y KEYFILE) or an ssh-ed25519 / ssh-rsa key",
            id="wrong-recipient",
        ),
        pytest.param(
            put("encryption/recipients", ["ssh-ed25519 AAAAnotakey"]),
            "recovery.yaml: encryption.recipients.0: not an age recipient -> age1... (age-keygen -y KEYFILE) or an ssh-ed25519 / ssh-rsa key",
            id="wrong-ssh-recipient",
        ),
        pytest.param(
            put("encryption/recipients", [str(IDENTITY)]),
            "recovery.yaml: encryption.recipients.0: this is a secret identity, not a recipient -> put its public key (age-keygen -y) here",
            id="secret-identity",
        ),
        pytest.param(
            put("encryption/recipients", []),
            "recovery.yaml: encryption.recipients: list should have at least 1 item after validation, not 0 -> correct the value",
            id="no-recipient",
        ),
        pytest.param(
            put("encryption/identity", str(IDENTITY)),
            "recovery.yaml: encryption.identity: this is a secret identity, not a connection id -> put it into an Airflow connection, and the connection's id here",
            id="secret-identity-as-connection",
        ),
        pytest.param(
            put("postgres/app038/objectives/rto", "a quarter"),
            "recovery.yaml: postgres.app038.objectives.rto: not a duration -> write a number and ms, s, m, h or d, as in 15m or 1h30m",
            id="bad-duration",
        ),
        pytest.param(
            put("postgres/app038/repository", "mian"),
            "recovery.yaml: postgres.app038.repository: no repository is named 'mian' -> use one of: copy, main",
            id="unknown-repository",
        ),
        pytest.param(
            put("repositories/main", {}),
            "recovery.yaml: repositories.main: name exactly one kind of store -> s3 or directory",
            id="no-store",
        ),
        pytest.param(
            put("repositories/main/directory", {"path": "/srv"}),
            "recovery.yaml: repositories.main: name exactly one kind of store -> s3 or directory",
            id="two-stores",
        ),
        pytest.param(
            put("postgres/app038/connection", "postgres://backup:hunter2@db/app"),
            "recovery.yaml: postgres.app038.connection: not a connection id (a secret, or a URI?) -> name an Airflow connection here",
            id="secret-as-connection",
        ),
        pytest.param(
            put("postgres/App 038", {"connection": "a", "repository": "main"}),
            "recovery.yaml: postgres.App 038.[key]: names are lower-case letters, digits, - and _, at most 63 of them -> see README.md, Configuration",
            id="bad-name",
        ),
        pytest.param(
            put("repositories/main/s3/prefix", "/recovery/"),
            "recovery.yaml: repositories.main.s3.prefix: a prefix has no leading, trailing or double slash, and no '.' or '..' -> see README.md, Configuration",
            id="bad-prefix",
        ),
        pytest.param(
            put("repositories/main/s3/object_lock/days", 0),
            "recovery.yaml: repositories.main.s3.object_lock.days: input should be greater than or equal to 1 -> correct the value",
            id="no-days",
        ),
        pytest.param(
            put("repositories/main/s3/object_lock/mode", "compliance"),
            "recovery.yaml: repositories.main.s3.object_lock.mode: input should be 'COMPLIANCE' or 'GOVERNANCE' -> correct the value",
            id="bad-mode",
        ),
        pytest.param(
            put("postgres/app038", None),
            "recovery.yaml: postgres.app038: input should be a valid dictionary or instance of PostgresSystem -> correct the value",
            id="empty-section",
        ),
    ],
)
def test_each_mistake_is_named_with_its_place_and_the_next_step(change: Change, line: str) -> None:
    assert messages(change) == [line]


def test_all_mistakes_come_in_one_pass() -> None:
    found = messages(
        put("postgres/app038/dmup", {}),
        put("postgres/app038/objectives/rto", "soon"),
        put("encryption/recipients", ["age1nonsense"]),
        drop("repositories/main/s3/bucket"),
    )
    assert len(found) == 4
    assert all(line.startswith("recovery.yaml: ") for line in found)


def test_a_secret_that_was_pasted_into_the_file_is_never_quoted() -> None:
    found = messages(
        put("encryption/recipients", [str(IDENTITY)]),
        put("encryption/identity", str(IDENTITY)),
        put("postgres/app038/connection", "postgres://backup:hunter2@db/app"),
    )
    assert len(found) == 3
    assert not any(secret in line for line in found for secret in (str(IDENTITY), "hunter2"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "recovery.yaml: the file holds no mapping -> start it with `version: 1`"),
        ("- a\n- b\n", "recovery.yaml: the file holds no mapping -> start it with `version: 1`"),
        ("version: 1\n  wrong: [\n", "recovery.yaml: not valid YAML at line 2"),
    ],
)
def test_what_is_no_configuration_at_all_is_told(text: str, line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.parse(text)
    assert str(caught.value).startswith(line)


def test_a_file_that_is_not_there_is_named_with_the_ways_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.load(tmp_path / "recovery.yaml")
    assert str(caught.value) == (
        f"{tmp_path}/recovery.yaml: the configuration cannot be read (No such file or directory) "
        "-> name the file with --config or RECOVERY_CONFIG"
    )


def test_the_variable_names_the_file_and_the_option_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECOVERY_CONFIG", "/etc/recovery.yaml")
    assert config.config_path() == Path("/etc/recovery.yaml")
    assert config.config_path(Path("/other.yaml")) == Path("/other.yaml")
    monkeypatch.delenv("RECOVERY_CONFIG")
    assert config.config_path() == config.DEFAULT_PATH


def test_an_unknown_system_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse().postgres_system("app39")
    assert str(caught.value) == "postgres: no PostgreSQL system is named 'app39' -> use one of: app038"


def test_several_problems_survive_being_pickled() -> None:
    import pickle

    problems = ConfigurationProblems([ConfigurationError("a", where="b", remedy="c"), ConfigurationError("d")])
    assert str(pickle.loads(pickle.dumps(problems))) == "b: a -> c\nd"


@given(st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from("smhd")), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)
    seconds = sum(number * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit] for number, unit in parts)
    assert parse(put("postgres/app038/objectives/rto", text)).postgres["app038"].objectives.rto == timedelta(
        seconds=seconds
    )


@given(st.text("0123456789smhdx .-", max_size=8))
def test_no_other_text_passes_as_a_duration(text: str) -> None:
    import re

    if re.fullmatch(r"(\d+(ms|[smhd]))+", text):
        return
    with pytest.raises(ConfigurationError):
        parse(put("postgres/app038/objectives/rto", text))
