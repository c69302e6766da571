"""A repository in S3 or a compatible store, through boto3: multipart uploads, Object Lock, conditional writes.

Every upload carries a checksum which the store verifies before it acknowledges (S3 User Guide, "Checking object
integrity"): SHA-256 for small objects, CRC-32 for the parts of large ones, whose SHA-256 the manifest keeps. Retries of
single requests are botocore's, in its standard mode.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

from recovery.config import S3Repository
from recovery.connections import Connection
from recovery.errors import (
    ConditionsUnsupported,
    ConfigurationError,
    IntegrityError,
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreUnreachable,
)
from recovery.repository.store import ObjectInfo, Unfinished

if TYPE_CHECKING:
    from botocore.config import Config
    from mypy_boto3_s3 import S3Client

MIB = 1 << 20
PART_SIZE = 8 * MIB
LARGEST_PART = 64 * MIB
MOST_PARTS = 10_000
LARGEST_OBJECT = LARGEST_PART * MOST_PARTS
_BYTES_IN_FLIGHT = 24 * MIB
_UPLOADERS = 3
_READ_ATTEMPTS = 5

_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "AuthorizationHeaderMalformed",
}
_MISSING = {"NoSuchKey", "NotFound", "404"}
_EXISTS = {"PreconditionFailed", "ConditionalRequestConflict", "412"}
_UNSUPPORTED = {"NotImplemented", "501"}


def client_config() -> Config:
    """Timeouts and retries for every S3 client of this project, Airflow's hook included."""
    from botocore.config import Config

    return Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 6},
        max_pool_connections=16,
        # The checksum of a body is a signed header: hashing the body once more would guard it no better in transit.
        s3={"addressing_style": "path", "payload_signing_enabled": False},
    )


def make_client(connection: Connection) -> S3Client:
    """A boto3 client from an `aws` connection: login and password are the keys, extra has endpoint_url, region_name.

    Without keys boto3's own chain applies (instance role, environment, profile). Raises ConfigurationError.
    """
    import boto3

    extra = connection.extra
    try:
        return boto3.client(
            "s3",
            aws_access_key_id=connection.login or None,
            aws_secret_access_key=connection.password or None,
            aws_session_token=extra.get("aws_session_token"),
            region_name=extra.get("region_name"),
            endpoint_url=extra.get("endpoint_url") or extra.get("host") or None,
            verify=extra.get("verify"),
            config=client_config(),
        )
    except (ValueError, BotoCoreError) as problem:
        raise ConfigurationError(
            f"no S3 client can be made ({problem})",
            where=f"connection {connection.id}",
            remedy="correct its endpoint_url (a whole URL, https://host:port) and region_name",
        ) from None


class S3Store:
    """The objects below one prefix of one bucket."""

    def __init__(self, client: S3Client, settings: S3Repository) -> None:
        self._client, self._settings = client, settings
        self._bucket, self._prefix = settings.bucket, settings.prefix
        # Shared by all uploads of this store: one may be finishing while the next fills.
        self._threads = ThreadPoolExecutor(_UPLOADERS, thread_name_prefix="upload")
        self._budget = _Budget(_BYTES_IN_FLIGHT)

    @property
    def description(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    def put(
        self,
        key: str,
        data: bytes,
        *,
        only_if_absent: bool = False,
        locked: bool = True,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if only_if_absent else {}
        with self._explained(key):
            self._client.put_object(
                **self._at(key),
                Body=data,
                ChecksumSHA256=_sha256(data),
                Metadata=dict(metadata or {}),
                **condition,
                **(self._lock() if locked else {}),
            )

    def upload(self, key: str, *, size_limit: int) -> _MultipartUpload:
        return _MultipartUpload(self, key, part_size=part_size(size_limit))

    def get(self, key: str) -> bytes:
        with self._explained(key):
            return self._client.get_object(**self._at(key))["Body"].read()

    def open(self, key: str) -> _ResumingReader:
        return _ResumingReader(self, key)

    def head(self, key: str) -> ObjectInfo:
        with self._explained(key):
            answer = self._client.head_object(**self._at(key))
        return ObjectInfo(
            key,
            answer["ContentLength"],
            answer["LastModified"],
            answer.get("Metadata", {}),
            answer.get("ObjectLockRetainUntilDate"),
        )

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2")
        with self._explained(prefix):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._key(prefix)):
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(self._key(""))
                    yield ObjectInfo(key=key, size=entry["Size"], modified=entry["LastModified"])

    def folders(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2")
        whole = self._key(prefix)
        with self._explained(prefix):
            return sorted(
                entry["Prefix"].removeprefix(whole).rstrip("/")
                for page in pages.paginate(Bucket=self._bucket, Prefix=whole, Delimiter="/")
                for entry in page.get("CommonPrefixes", [])
            )

    def delete(self, key: str) -> None:
        """Remove every version of one object: on a versioned bucket a plain delete would only hide it."""
        with self._explained(key):
            pages = self._client.get_paginator("list_object_versions")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._key(key)):
                for entry in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                    if entry["Key"] == self._key(key):
                        self._client.delete_object(**self._at(key), VersionId=entry["VersionId"])

    def unfinished(self, prefix: str) -> list[Unfinished]:
        pages = self._client.get_paginator("list_multipart_uploads")
        with self._explained(prefix):
            return [
                Unfinished(
                    entry["Key"].removeprefix(self._key("")),
                    entry["Initiated"],
                    partial(self._abort, entry["Key"], entry["UploadId"]),
                )
                for page in pages.paginate(Bucket=self._bucket, Prefix=self._key(prefix))
                for entry in page.get("Uploads", [])
            ]

    def now(self) -> datetime:
        with self._explained(""):
            answer = self._client.head_bucket(Bucket=self._bucket)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(date) if date else datetime.now(UTC)

    def check(self) -> None:
        with self._explained(""):
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._key(""), MaxKeys=1)
        if self._settings.object_lock is None:
            return
        try:
            answer = self._client.get_object_lock_configuration(Bucket=self._bucket)
            enabled = answer["ObjectLockConfiguration"].get("ObjectLockEnabled") == "Enabled"
        except ClientError as problem:
            if problem.response["Error"]["Code"] not in ("ObjectLockConfigurationNotFoundError", "404"):
                raise self._error(problem, "") from None
            enabled = False
        if not enabled:
            raise ConfigurationError(
                "the configuration asks for Object Lock, and the bucket does not have it",
                where=self.description,
                remedy="make a bucket with Object Lock enabled, or remove object_lock from the configuration",
            )

    def _abort(self, whole_key: str, upload: str) -> None:
        # One that ended by itself meanwhile is as good as aborted.
        with (
            self._explained(whole_key.removeprefix(self._key(""))),
            contextlib.suppress(self._client.exceptions.NoSuchUpload),
        ):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=whole_key, UploadId=upload)

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._key(key)}

    def _lock(self) -> dict[str, Any]:
        lock = self._settings.object_lock
        if lock is None:
            return {}
        until = datetime.now(UTC) + timedelta(days=lock.days)
        return {"ObjectLockMode": lock.mode, "ObjectLockRetainUntilDate": until}

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError, HTTPClientError) as problem:
            raise self._error(problem, key) from problem

    def _error(self, problem: Exception, key: str) -> StoreError:
        where = f"{self.description}/{key}" if key else self.description
        if not isinstance(problem, ClientError):
            if isinstance(problem, ConnectionError | HTTPClientError):
                endpoint = self._client.meta.endpoint_url
                return StoreUnreachable(
                    f"no answer from {endpoint}",
                    where=where,
                    remedy="check the endpoint, the network and the store itself",
                )
            remedy = f"check the connection {self._settings.connection}"
            return StoreError(f"the request could not be made ({problem})", where=where, remedy=remedy)
        code = problem.response["Error"].get("Code", "")
        if code == "NoSuchBucket" or (code in _MISSING and not key):
            return StoreError(
                "the bucket does not exist",
                where=where,
                remedy="create it (with Object Lock), or correct the bucket's name",
            )
        if code in _MISSING:
            return ObjectMissing("the object is not there", where=where)
        if code in _EXISTS:
            return ObjectExists("an object of this name exists already", where=where)
        if code in _UNSUPPORTED:
            return ConditionsUnsupported(
                "the store does not implement what was asked (conditional writes?)",
                where=where,
                remedy="use a store that takes If-None-Match: it keeps two writers apart",
            )
        if code in _CREDENTIALS:
            return StoreError(
                f"the store refused the credentials ({code})",
                where=where,
                remedy=f"check connection {self._settings.connection}",
            )
        if code in ("AccessDenied", "403"):
            return StoreError(
                "the store denied access",
                where=where,
                remedy=f"check the keys of connection {self._settings.connection} and what their policy allows",
            )
        message = problem.response["Error"].get("Message", "")
        return StoreError(f"the store answered {code}: {message}", where=where, remedy="see the store's log")


def part_size(size_limit: int) -> int:
    """The part size in bytes for an object of at most `size_limit` bytes: 8 MiB, or what fits 10,000 parts."""
    needed = -(-size_limit // MOST_PARTS)
    if needed > LARGEST_PART:
        raise ConfigurationError(
            f"an object of {size_limit / 1e12:.1f} TB is too large for one S3 upload",
            remedy="compress in the client (base.compression.where: client): it cuts volumes of about 1 GiB",
        )
    return max(PART_SIZE, needed)


class _Budget:
    """The bytes of parts that are in memory on their way to the store, over all uploads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._change = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until `size` fits; a part larger than the whole budget goes alone."""
        with self._change:
            self._change.wait_for(lambda: not self._used or self._used + size <= self._limit)
            self._used += size

    def give_back(self, size: int) -> None:
        with self._change:
            self._used -= size
            self._change.notify_all()


class _MultipartUpload:
    """Parts go up side by side within the store's budget. An object of one part is a plain put."""

    def __init__(self, store: S3Store, key: str, *, part_size: int) -> None:
        self.part_size = part_size
        self._store, self._key = store, key
        self._first: bytes | None = None
        self._id = ""
        self._done: list[dict[str, Any]] = []
        self._flying: deque[Future[dict[str, Any]]] = deque()

    def write_part(self, data: bytes, /) -> None:
        if not self._id and self._first is None:
            self._first = data
            return
        if not self._id:
            self._begin()
        self._send(data)

    def complete(self) -> None:
        if not self._id:
            self._store.put(self._key, self._first or b"")
            return
        while self._flying:
            self._collect()
        with self._store._explained(self._key):
            self._store._client.complete_multipart_upload(
                **self._store._at(self._key),
                UploadId=self._id,
                MultipartUpload={"Parts": self._done},  # type: ignore[typeddict-item]
            )

    def abort(self) -> None:
        for future in self._flying:
            future.cancel()
        wait(self._flying)
        self._flying.clear()
        if self._id:
            with contextlib.suppress(ClientError, BotoCoreError, HTTPClientError):
                self._store._client.abort_multipart_upload(**self._store._at(self._key), UploadId=self._id)
            self._id = ""

    def _begin(self) -> None:
        with self._store._explained(self._key):
            answer = self._store._client.create_multipart_upload(
                **self._store._at(self._key), ChecksumAlgorithm="CRC32", **self._store._lock()
            )
        self._id = answer["UploadId"]
        first, self._first = self._first, None
        self._send(first or b"")

    def _send(self, data: bytes) -> None:
        while self._flying and self._flying[0].done():
            self._collect()
        budget, size = self._store._budget, len(data)
        budget.take(size)
        number = len(self._done) + len(self._flying) + 1
        future = self._store._threads.submit(self._put_part, number, data)
        # Also when it is cancelled before it began.
        future.add_done_callback(lambda _: budget.give_back(size))
        self._flying.append(future)

    def _put_part(self, number: int, data: bytes) -> dict[str, Any]:
        checksum = _crc32(data)
        with self._store._explained(self._key):
            answer = self._store._client.upload_part(
                **self._store._at(self._key), UploadId=self._id, PartNumber=number, Body=data, ChecksumCRC32=checksum
            )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": checksum}

    def _collect(self) -> None:
        self._done.append(self._flying[0].result())
        self._flying.popleft()


class _ResumingReader:
    """The body of one object. A connection that breaks is opened again at the byte where it broke."""

    def __init__(self, store: S3Store, key: str) -> None:
        self._store, self._key = store, key
        self._position = 0
        self._etag = ""
        self._body = self._request()

    def read(self, size: int = -1, /) -> bytes:
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                data = bytes(self._body.read(None if size < 0 else size))
            except (BotoCoreError, HTTPClientError) as problem:
                if attempt == _READ_ATTEMPTS:
                    raise self._store._error(problem, self._key) from problem
                self._body = self._request()
                continue
            self._position += len(data)
            return data
        raise AssertionError("unreachable")

    def close(self) -> None:
        self._body.close()

    def _request(self) -> Any:
        resumed: dict[str, Any] = {"Range": f"bytes={self._position}-", "IfMatch": self._etag} if self._position else {}
        try:
            with self._store._explained(self._key):
                answer = self._store._client.get_object(**self._store._at(self._key), **resumed)
        except ObjectExists:
            # IfMatch failed: going on would mix two objects.
            raise IntegrityError(
                "the object was replaced while it was read",
                where=f"{self._store.description}/{self._key}",
                remedy="find out who writes there, and verify the backup",
            ) from None
        self._etag = answer["ETag"]
        return answer["Body"]


def _sha256(data: bytes) -> str:
    return _base64(hashlib.sha256(data).digest())


def _crc32(data: bytes) -> str:
    return _base64(zlib.crc32(data).to_bytes(4, "big"))


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
