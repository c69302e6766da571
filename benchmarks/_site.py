"""An installation of the command for the benchmarks: a configuration and its environment, in a directory or in S3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyrage
import yaml

from lab.objectstore import REGION, SeaweedFS
from lab.postgres import SUPERUSER, PostgresServer


def site(
    folder: Path,
    server: PostgresServer,
    *,
    where: str,
    objects: SeaweedFS | None = None,
    prefix: str = "bench",
    wal: bool = False,
) -> dict[str, str]:
    """Write recovery.yaml below `folder` and return the environment of a process that uses it."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = pyrage.x25519.Identity.generate()
    store: dict[str, Any] = {"directory": {"path": str(folder / "repository")}}
    if objects is not None:
        store = {"s3": {"connection": "bench_s3", "bucket": "bench", "prefix": prefix}}
    document = {
        "version": 1,
        "encryption": {"recipients": [str(identity.to_public())], "identity": "bench_identity"},
        "repositories": {"primary": store},
        "postgres": {
            "bench": {
                "connection": "bench_postgres",
                "repository": "primary",
                "base": {"compression": {"where": where, "level": 1, "workers": 2}},
                "tools": {server.major: str(server.bindir)},
                **({"wal": {}} if wal else {}),
            }
        },
        "sandbox": {"user": server.user.name if server.user else None},
    }
    path = folder / "recovery.yaml"
    path.write_text(yaml.safe_dump(document))
    connections: dict[str, dict[str, Any]] = {
        "BENCH_POSTGRES": {
            "conn_type": "postgres",
            "host": server.host,
            "port": server.port,
            "login": SUPERUSER,
            "password": server.passwords[SUPERUSER],
        },
        "BENCH_IDENTITY": {"conn_type": "generic", "password": str(identity)},
    }
    if objects is not None:
        connections["BENCH_S3"] = {
            "conn_type": "aws",
            "login": objects.access_key,
            "password": objects.secret_key,
            "extra": {"endpoint_url": objects.endpoint, "region_name": REGION},
        }
    return {"RECOVERY_CONFIG": str(path)} | {
        f"AIRFLOW_CONN_{name}": json.dumps(connection) for name, connection in connections.items()
    }
