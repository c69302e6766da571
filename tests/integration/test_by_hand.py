"""A restore without this project: age, zstd, tar and PostgreSQL's own programs, as docs/repository-format.md tells it.

The restoring half of this file imports nothing of `recovery`: it reads manifest.json and runs commands.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lab.objectstore import SeaweedFS
from lab.ports import free_port
from lab.postgres import PostgresServer
from lab.users import ServiceUser, service_user
from tests.support import Site, contents, server_contents

SiteOf = Callable[[PostgresServer], Site]


def run(command: str, *, cwd: Path, **environment: str) -> None:
    """A line of shell, as a person would type it."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def the_backup(repository: Path) -> tuple[Path, dict[str, Any]]:
    (manifest,) = repository.glob("postgres/app038/*/backups/*/manifest.json")
    return manifest.parent, json.loads(manifest.read_text())


def check_sums(folder: Path, manifest: dict[str, Any]) -> None:
    sums = "".join(f"{item['stored_sha256']}  {item['key']}\n" for item in manifest["objects"])
    (folder.parent / "SHA256SUMS").write_text(sums)
    run("sha256sum --check --quiet ../SHA256SUMS", cwd=folder)


def unpack_base(folder: Path, manifest: dict[str, Any], key: Path, pgdata: Path, spaces: dict[int, Path]) -> None:
    for path in (pgdata, *spaces.values()):
        path.mkdir(mode=0o700)
    for item in manifest["objects"]:
        if item["role"] == "volume":
            target = pgdata if item["tablespace"] is None else spaces[item["tablespace"]]
            run(
                f"age --decrypt --identity {key} {item['key']} | zstd --decompress --stdout"
                f" | tar --extract --directory {target}",
                cwd=folder,
            )
    run(f"zstd --decompress --stdout --quiet backup_manifest.zst > {pgdata}/backup_manifest", cwd=folder)
    for oid, path in spaces.items():
        run(f"ln --symbolic --force --no-dereference {path} pg_tblspc/{oid}", cwd=pgdata)
    (pgdata / "tablespace_map").write_text("".join(f"{oid} {path}\n" for oid, path in spaces.items()))


def recover(pgdata: Path) -> None:
    with (pgdata / "postgresql.auto.conf").open("a") as settings:
        settings.write("restore_command = 'false'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\n")
    (pgdata / "recovery.signal").touch()


class ByHand:
    """A server started with pg_ctl as the user who runs PostgreSQL."""

    def __init__(self, bindir: Path, pgdata: Path, user: ServiceUser | None) -> None:
        self.bindir, self.pgdata, self.user, self.port = bindir, pgdata, user, free_port()

    def __enter__(self) -> ByHand:
        (self.pgdata / "pg_hba.conf").write_text("host all all 127.0.0.1/32 trust\n")
        options = f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        self.pg_ctl("start", "--wait", "--log", str(self.pgdata / "log"), "--options", options)
        return self

    def __exit__(self, *_: object) -> None:
        self.pg_ctl("stop", "--wait", "--mode", "immediate")

    def pg_ctl(self, *arguments: str) -> None:
        user: dict[str, Any] = {"user": self.user.uid, "group": self.user.gid, "extra_groups": []} if self.user else {}
        done = subprocess.run(
            [self.bindir / "pg_ctl", "--pgdata", self.pgdata, *arguments],
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **user,
        )
        log = self.pgdata / "log"
        assert done.returncode == 0, log.read_text() if log.exists() else arguments

    def connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", dbname=database, autocommit=True)


@pytest.mark.parametrize("compression", ["client", "server"])
def test_a_full_backup_is_restored_with_age_zstd_tar_and_postgres_alone(
    site: Site, server: PostgresServer, compression: str
) -> None:
    site.system["base"] = {"compression": {"where": compression}}
    site.backup()
    folder, manifest = the_backup(site.folder / "repository")
    check_sums(folder, manifest)
    spaces = {space["oid"]: site.folder / f"space-{space['oid']}" for space in manifest["server"]["tablespaces"]}
    pgdata = site.folder / "by-hand"
    unpack_base(folder, manifest, site.key_file, pgdata, spaces)
    run(f"{server.bindir}/pg_verifybackup --no-parse-wal --quiet --ignore=tablespace_map {pgdata}", cwd=folder)
    recover(pgdata)
    user = service_user()
    if user is not None:
        run(f"chown -R {user.uid}:{user.gid} {pgdata} {' '.join(map(str, spaces.values()))}", cwd=folder)
    with ByHand(server.bindir, pgdata, user) as restored:
        assert contents(restored.connect) == server_contents(server)
        with restored.connect("postgres") as session:
            row = session.execute(
                "SELECT pg_is_in_recovery(), pg_tablespace_location(oid) FROM pg_tablespace"
                " WHERE spcname = 'app038_archive'"
            ).fetchone()
    assert row == (False, str(next(iter(spaces.values()))))


def test_an_incremental_is_restored_with_pg_combinebackup_besides(site: Site, server: PostgresServer) -> None:
    site.backup()
    server.execute("CREATE TABLE later TABLESPACE app038_archive AS SELECT n FROM generate_series(1, 9000) AS n")
    try:
        made, held = site.backup("incremental"), server_contents(server)
    finally:
        server.execute("DROP TABLE later")
    (path,) = (site.folder / "repository").glob(f"postgres/app038/*/backups/{made.id}/manifest.json")
    newest = json.loads(path.read_text())
    assert newest["kind"] == "incremental"
    members, folders = [*newest["chain"], newest["id"]], []
    for number, identifier in enumerate(members):
        folder = path.parent.with_name(identifier)
        manifest = json.loads((folder / "manifest.json").read_text())
        check_sums(folder, manifest)
        spaces = {
            space["oid"]: site.folder / f"space-{space['oid']}-{number}" for space in manifest["server"]["tablespaces"]
        }
        folders.append(site.folder / f"member-{number}")
        unpack_base(folder, manifest, site.key_file, folders[-1], spaces)
        run(f"{server.bindir}/pg_verifybackup --no-parse-wal --quiet --ignore=tablespace_map {folders[-1]}", cwd=folder)
    pgdata, places = site.folder / "by-hand", {oid: site.folder / f"space-{oid}" for oid in spaces}
    mapping = " ".join(f"--tablespace-mapping={spaces[oid]}={places[oid]}" for oid in spaces)
    run(f"{server.bindir}/pg_combinebackup --output={pgdata} {mapping} {' '.join(map(str, folders))}", cwd=site.folder)
    (pgdata / "tablespace_map").write_text("".join(f"{oid} {place}\n" for oid, place in places.items()))
    run(f"{server.bindir}/pg_verifybackup --no-parse-wal --quiet --ignore=tablespace_map {pgdata}", cwd=site.folder)
    recover(pgdata)
    user = service_user()
    if user is not None:
        run(f"chown -R {user.uid}:{user.gid} {pgdata} {' '.join(map(str, places.values()))}", cwd=site.folder)
    with ByHand(server.bindir, pgdata, user) as restored:
        assert contents(restored.connect) == held


def test_a_dump_is_restored_with_age_zstd_and_postgres_alone(
    site: Site, server: PostgresServer, staging: PostgresServer
) -> None:
    site.backup("dump")
    folder, manifest = the_backup(site.folder / "repository")
    check_sums(folder, manifest)
    login = {
        "PGHOST": staging.host,
        "PGPORT": str(staging.port),
        "PGUSER": "postgres",
        "PGPASSWORD": staging.passwords["postgres"],
    }
    opened = f"age --decrypt --identity {site.key_file}"
    # The globals set the passwords of all roles, also of the one that is logged in here.
    run(
        f"{opened} globals.sql.zst.age | zstd --decompress --stdout"
        f" | grep --invert-match --extended-regexp '^(CREATE|ALTER) ROLE postgres|TABLESPACE'"
        f" | {server.bindir}/psql --quiet --set ON_ERROR_STOP=1 --dbname postgres",
        cwd=folder,
        **login,
    )
    for item in manifest["objects"]:
        if item["role"] == "dump":
            create = "" if item["database"] == "postgres" else "--create"
            run(
                f"{opened} '{item['key']}' | {server.bindir}/pg_restore --exit-on-error --no-tablespaces {create}"
                " --dbname postgres",
                cwd=folder,
                **login,
            )
    assert server_contents(staging) == server_contents(server)


def test_a_backup_in_s3_is_the_same_files(s3_site: Site, objects: SeaweedFS, server: PostgresServer) -> None:
    """Fetched with an S3 client it is the folder that the other tests restore from."""
    s3_site.backup()
    settings = s3_site.document["repositories"]["main"]["s3"]
    client, copy = objects.client(), s3_site.folder / "copy"
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=settings["bucket"], Prefix=settings["prefix"]):
        for entry in page["Contents"]:
            path = copy / entry["Key"].removeprefix(settings["prefix"] + "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(settings["bucket"], entry["Key"], str(path))
    client.close()
    folder, manifest = the_backup(copy)
    check_sums(folder, manifest)
    run(f"age --decrypt --identity {s3_site.key_file} volumes/00000.tar.zst.age | zstd --test", cwd=folder)
