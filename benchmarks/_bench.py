"""What every benchmark is given: its servers, its directories, how often to run. And the form of its result."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._database import prepare
from lab.objectstore import SeaweedFS
from lab.postgres import PostgresServer

BUCKET = "bench"


@dataclass(frozen=True)
class Bench:
    """Where the servers' data lie between runs, how large the database is, and how often each contender runs."""

    folder: Path
    size_mb: int
    rounds: int
    barman_python: str | None

    @contextmanager
    def server(self) -> Iterator[PostgresServer]:
        """The database, running; kept between runs."""
        server = prepare(self.folder / f"db-{self.size_mb}", size_mb=self.size_mb)
        try:
            yield server
        finally:
            server.stop()

    @contextmanager
    def objects(self) -> Iterator[SeaweedFS]:
        """An S3 server with an empty bucket."""
        folder = self.fresh("objects")
        try:
            with SeaweedFS(folder / "data") as objects:
                objects.create_bucket(BUCKET)
                yield objects
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def fresh(self, name: str) -> Path:
        """An empty directory that the servers' user can enter."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        return folder


def empty_bucket(objects: SeaweedFS) -> None:
    """Remove everything: disks are finite, and a full one is not what is measured."""
    client = objects.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=entry["Key"])


def document(bench: Bench, *, figures: Sequence[dict[str, Any]], ratios: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result of one benchmark."""
    return {"size_mb": bench.size_mb, "rounds": bench.rounds, "figures": list(figures), "ratios": list(ratios)}
