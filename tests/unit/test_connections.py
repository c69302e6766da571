"""Connections as Airflow writes them, URI and JSON: both forms say the same, and no message or repr holds a secret."""

from __future__ import annotations

import json

import pytest
from airflow.models.connection import Connection as AirflowConnection
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery.connections import Connection, from_environment
from recovery.errors import ConfigurationError

SECRET = "p@ss/w:rd?#%&= ü"


def read(monkeypatch: pytest.MonkeyPatch, value: str) -> Connection:
    monkeypatch.setenv("AIRFLOW_CONN_APP038", value)
    return from_environment("app038")


def test_a_uri_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, "postgres://backup:p%40ss%2Fw@db.example:5433/app?sslmode=verify-full")
    assert (found.type, found.host, found.port, found.login, found.password, found.schema) == (
        "postgres",
        "db.example",
        5433,
        "backup",
        "p@ss/w",
        "app",
    )
    assert found.extra == {"sslmode": "verify-full"}


def test_json_is_read_with_extra_as_an_object_or_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"conn_type": "aws", "login": "key", "password": SECRET, "extra": {"endpoint_url": "http://s3:8333"}}
    found = read(monkeypatch, json.dumps(document))
    assert (found.login, found.password, found.extra["endpoint_url"]) == ("key", SECRET, "http://s3:8333")
    assert read(monkeypatch, json.dumps(document | {"extra": json.dumps(document["extra"])})) == found


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=20)


@given(
    login=TEXT,
    password=TEXT,
    schema=st.text("abcXYZ_09 -", max_size=10),
    port=st.none() | st.integers(1, 65535),
    extra=TEXT,
)
@settings(deadline=None)
def test_what_airflow_writes_is_read_back_the_same(
    login: str, password: str, schema: str, port: int | None, extra: str
) -> None:
    theirs = AirflowConnection(
        conn_id="app038",
        conn_type="postgres",
        host="db",
        port=port,
        login=login,
        password=password,
        schema=schema,
        extra={"options": extra},
    )
    with pytest.MonkeyPatch.context() as patch:
        found = [read(patch, theirs.get_uri()), read(patch, theirs.as_json())]
    for ours in found:
        assert (ours.host, ours.port, ours.login, ours.password, ours.schema) == ("db", port, login, password, schema)
        assert ours.extra.get("options", "") == extra


def test_a_socket_directory_keeps_its_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, "postgres://backup@%2Fvar%2FRun%2Fpg/app").host == "/var/Run/pg"


def test_an_ipv6_address_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, "postgres://backup:x@[::1]:5433/app")
    assert (found.host, found.port) == ("::1", 5433)


def test_a_missing_connection_names_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_APP038", raising=False)
    with pytest.raises(ConfigurationError) as caught:
        from_environment("app038")
    assert str(caught.value) == (
        "connection app038: the connection is not defined "
        "-> set AIRFLOW_CONN_APP038 (a URI or JSON, as Airflow reads it) or add the connection in Airflow"
    )


@pytest.mark.parametrize(
    "value",
    [
        "hunter2",
        '{"conn_type": "postgres", "password": "hunter2"',
        '{"password": "hunter2", "port": "many"}',
        '{"password": "hunter2", "extra": "no json"}',
        '{"password": "hunter2", "extra": [1]}',
        "postgres://backup:hunter2@db:port/app",
        "postgres://backup:hunter2@[::1/app",
    ],
)
def test_a_value_that_cannot_be_read_is_never_quoted(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(monkeypatch, value)
    assert "the value of AIRFLOW_CONN_APP038 is neither a connection URI nor a JSON object" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_the_password_and_extra_stay_out_of_repr() -> None:
    found = Connection(id="app038", host="db", password="hunter2", extra={"aws_session_token": "hunter3"})
    assert "hunter" not in repr(found)
    assert "db" in repr(found)
