"""Secrets stay secret: marked ones are searched for in every output, every object, and every command line of a run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer
from recovery.errors import RecoveryError
from tests.conftest import s3_repository
from tests.support import Site, make_site, postgres_connection, s3_connection

PASSWORD = "marked-password-Zx81"
ROW = "marked row that only the database may hold"


class CommandLines(threading.Thread):
    """Samples the command line of every process of this machine, as any user of it can."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[str] = set()
        self._stop_now = threading.Event()

    def __enter__(self) -> CommandLines:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_now.set()
        self.join()

    def run(self) -> None:
        while not self._stop_now.wait(0.03):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self.seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))


@pytest.fixture
def marked(folder: Path, server: PostgresServer, objects: SeaweedFS) -> Iterator[Site]:
    """An installation in S3 whose every secret is known, and a table with a row that must never be seen in clear."""
    server.execute(f"ALTER ROLE backup PASSWORD '{PASSWORD}'")  # type: ignore[arg-type]
    server.execute("CREATE TABLE marked (note text)")
    server.execute("INSERT INTO marked SELECT %s FROM generate_series(1, 1000)", (ROW,))
    genuine = server.passwords["backup"]
    server.passwords["backup"] = PASSWORD
    site = make_site(folder, server, repository=s3_repository())
    site.system["incremental"] = {"max_chain": 4}
    site.add(s3_connection(objects))
    try:
        yield site
    finally:
        server.passwords["backup"] = genuine
        server.execute(f"ALTER ROLE backup PASSWORD '{genuine}'")  # type: ignore[arg-type]
        server.execute("DROP TABLE marked")


def secrets_of(site: Site) -> set[str]:
    return {
        PASSWORD,
        site.connections["recovery_s3"].password,
        str(site.identity),
        str(site.identity).removeprefix("AGE-SECRET-KEY-1"),
    }


def test_no_secret_appears_anywhere_in_a_whole_run(marked: Site, staging: PostgresServer) -> None:
    marked.add(postgres_connection(staging, "staging", user="postgres"))
    calls: list[tuple[object, ...]] = [
        ("config", "check"),
        ("backup", "postgres", "app038", "--type", "full"),
        ("backup", "postgres", "app038", "--type", "dump"),
        ("list",),
        ("verify", "--level", "opens"),
        (
            *("restore", "postgres", "app038", "--to", "latest", "--pgdata", marked.folder / "data", "--verbose"),
            *("--tablespace", f"app038_archive={marked.folder / 'archive'}", "--identity", marked.key_file),
        ),
        ("restore", "postgres", "app038", "--to", "latest", "--into", "staging", "--json"),
        ("drill", "app038", "--json"),
    ]
    outputs: dict[str, str] = {}
    with CommandLines() as command_lines:
        for call in calls:
            done = marked.run_alone(*call)
            assert done.returncode == 0, done.stderr
            outputs[f"output of {' '.join(map(str, call))}"] = done.stdout + done.stderr
    ran = "\n".join(command_lines.seen)
    assert "pg_dump" in ran and "pg_restore" in ran and "-D" in ran, "the sampling saw too little"
    outputs["command lines"] = ran
    outputs |= {f"object {key}": marked.store().get(key).decode("latin-1") for key in marked.keys()}
    assert any(key.endswith("manifest.json") for key in outputs) and any("evidence/" in key for key in outputs)
    for secret in secrets_of(marked) | {staging.passwords["postgres"], ROW}:
        assert [where for where, text in outputs.items() if secret in text] == []


@pytest.mark.parametrize(
    "call",
    [
        ("config", "check"),
        ("backup", "postgres", "app038", "--type", "full"),
        ("verify",),
        ("drill", "app038"),
    ],
)
def test_no_secret_appears_when_things_go_wrong_with_a_trace_asked_for(marked: Site, call: tuple[str, ...]) -> None:
    """Wrong secrets are secrets too: somebody mistyped the right one."""
    almost = {"app038_backup": PASSWORD + "x", "recovery_s3": marked.connections["recovery_s3"].password + "x"}
    for identifier, password in almost.items():
        marked.add(replace(marked.connections[identifier], password=password))
    done = marked.run_alone(*call, "--verbose")
    assert done.returncode != 0
    for secret in secrets_of(marked):
        assert secret not in done.stdout + done.stderr


def test_an_error_that_crosses_a_process_holds_no_secret(marked: Site) -> None:
    import pickle

    marked.add(replace(marked.connections["app038_backup"], password=PASSWORD + "x"))
    with pytest.raises(RecoveryError) as caught:
        marked.backup()
    assert PASSWORD.encode() not in pickle.dumps(caught.value)
    assert PASSWORD not in repr(marked.installation())
    assert PASSWORD not in repr(marked.installation().source("app038"))
