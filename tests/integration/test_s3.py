"""What only S3 has: Object Lock, multipart uploads that must not be left behind, checksums, retries, resumed reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyrage
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError

from lab.objectstore import SeaweedFS
from recovery.config import ObjectLock, S3Repository
from recovery.errors import ConfigurationError, IntegrityError, ObjectMissing, StoreError, StoreUnreachable
from recovery.repository import s3
from recovery.repository.s3 import MIB, S3Store, make_client, part_size
from recovery.repository.sealing import SealingWriter, check_stored, unseal_bytes
from tests.conftest import s3_repository
from tests.proxy import Proxy
from tests.support import Site, s3_connection

IDENTITY = pyrage.x25519.Identity.generate()


@pytest.fixture(scope="module")
def client(objects: SeaweedFS) -> Iterator[Any]:
    with contextlib.closing(make_client(s3_connection(objects))) as made:
        yield made


@pytest.fixture
def hooked(objects: SeaweedFS) -> Iterator[Any]:
    """A client of its own, for event hooks."""
    with contextlib.closing(make_client(s3_connection(objects))) as made:
        yield made


@pytest.fixture
def proxy(objects: SeaweedFS) -> Iterator[Proxy]:
    with Proxy(objects.port) as started:
        yield started


@pytest.fixture
def through_proxy(objects: SeaweedFS, proxy: Proxy) -> Iterator[S3Store]:
    with contextlib.closing(make_client(s3_connection(objects, endpoint=proxy.endpoint))) as made:
        yield S3Store(made, settings())


def settings(*, bucket: str = "locked", **changes: Any) -> S3Repository:
    return S3Repository.model_validate(s3_repository(bucket=bucket, locked=bucket == "locked")["s3"] | changes)


def open_uploads(client: Any, store: S3Store) -> list[str]:
    answer = client.list_multipart_uploads(Bucket=store._bucket, Prefix=store._key(""))
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def write_megabytes(store: S3Store, megabytes: int) -> Any:
    """Random content: what does not compress fills its parts."""
    writer = SealingWriter(store, "object", recipients=[IDENTITY.to_public()], compression="none", size_limit=1 << 30)
    try:
        for number in range(megabytes):
            writer.write(bytes([number]) * MIB)
    except BaseException:
        writer.abort()
        raise
    return writer.commit()


# Object Lock.


@pytest.mark.parametrize("megabytes", [1, 20])
def test_every_object_is_locked_when_it_is_written(client: Any, megabytes: int) -> None:
    store = S3Store(client, settings(object_lock={"mode": "COMPLIANCE", "days": 7}))
    write_megabytes(store, megabytes)
    found = client.head_object(Bucket="locked", Key=store._key("object"))
    assert found["ObjectLockMode"] == "COMPLIANCE"
    left = found["ObjectLockRetainUntilDate"] - datetime.now(UTC)
    assert timedelta(days=7) - timedelta(minutes=1) < left < timedelta(days=7)
    with pytest.raises(ClientError) as caught:
        client.delete_object(Bucket="locked", Key=store._key("object"), VersionId=found["VersionId"])
    assert caught.value.response["Error"]["Code"] == "AccessDenied"
    assert store.head("object").size > 0


def test_a_locked_object_cannot_be_deleted_through_the_store_either(client: Any) -> None:
    store = S3Store(client, settings())
    store.put("manifest.json", b"{}")
    with pytest.raises(StoreError, match="denied access"):
        store.delete("manifest.json")
    assert store.get("manifest.json") == b"{}"


def test_the_retention_of_a_locked_object_cannot_be_shortened(client: Any) -> None:
    store = S3Store(client, settings())
    store.put("manifest.json", b"{}")
    version = client.head_object(Bucket="locked", Key=store._key("manifest.json"))["VersionId"]
    retention = {"Mode": "COMPLIANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(minutes=5)}
    with pytest.raises(ClientError):
        client.put_object_retention(
            Bucket="locked", Key=store._key("manifest.json"), VersionId=version, Retention=retention
        )


def test_leases_carry_no_lock(client: Any) -> None:
    store = S3Store(client, settings())
    store.put("leases/1", b"", locked=False)
    assert "ObjectLockMode" not in client.head_object(Bucket="locked", Key=store._key("leases/1"))


def test_a_bucket_without_object_lock_is_refused_where_the_configuration_asks_for_it(client: Any) -> None:
    store = S3Store(client, settings(bucket="plain", object_lock={"mode": "COMPLIANCE", "days": 1}))
    with pytest.raises(ConfigurationError) as caught:
        store.check()
    assert "the configuration asks for Object Lock, and the bucket does not have it" in str(caught.value)


# Uploads.


def test_a_source_that_fails_leaves_no_upload(client: Any) -> None:
    store = S3Store(client, settings())
    writer = SealingWriter(store, "object", recipients=[IDENTITY.to_public()], compression="none", size_limit=1 << 30)
    for number in range(64):
        writer.write(bytes([number]) * MIB)
    assert open_uploads(client, store) == [store._key("object")]
    writer.abort()
    assert open_uploads(client, store) == []
    with pytest.raises(ObjectMissing):
        store.head("object")


def test_a_part_that_fails_once_is_sent_again(hooked: Any) -> None:
    failures: list[int] = []

    def fail_first(request: Any, **_: Any) -> AWSResponse | None:
        if "partNumber=2" in request.url and not failures:
            failures.append(2)
            return AWSResponse(request.url, 500, {}, _Raw(b"<Error><Code>InternalError</Code></Error>"))
        return None

    hooked.meta.events.register("before-send.s3.UploadPart", fail_first)
    store = S3Store(hooked, settings())
    sealed = write_megabytes(store, 40)
    assert failures == [2]
    check_stored(store, sealed)
    assert unseal_bytes(store, sealed, identities=[IDENTITY])[::MIB] == bytes(range(40))


class _Raw:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self._body


def test_a_part_that_goes_on_failing_ends_the_upload_and_leaves_none(hooked: Any) -> None:
    def fail(request: Any, **_: Any) -> AWSResponse:
        return AWSResponse(
            request.url, 403, {}, _Raw(b"<Error><Code>QuotaExceeded</Code><Message>full</Message></Error>")
        )

    store = S3Store(hooked, settings())
    hooked.meta.events.register("before-send.s3.UploadPart", fail)
    with pytest.raises(StoreError, match="the store answered QuotaExceeded: full"):
        write_megabytes(store, 40)
    assert open_uploads(hooked, store) == []


@pytest.mark.parametrize(("operation", "megabytes"), [("UploadPart", 40), ("PutObject", 1)])
def test_bytes_that_change_on_their_way_are_refused_by_the_store(hooked: Any, operation: str, megabytes: int) -> None:
    def corrupt(request: Any, **_: Any) -> None:
        body = bytearray(request.body if isinstance(request.body, bytes) else request.body.read())
        body[len(body) // 2] ^= 1
        request.body = bytes(body)

    hooked.meta.events.register(f"before-send.s3.{operation}", corrupt)
    store = S3Store(hooked, settings())
    with pytest.raises(StoreError):
        write_megabytes(store, megabytes)
    assert open_uploads(hooked, store) == []
    with pytest.raises(ObjectMissing):
        store.head("object")


def test_a_checksum_goes_with_every_part_and_the_store_compares_it(client: Any) -> None:
    store = S3Store(client, settings())
    upload = store.upload("object", size_limit=1 << 30)
    upload.write_part(b"1" * upload.part_size)
    upload.write_part(b"2" * upload.part_size)
    with pytest.raises(ClientError) as caught:
        client.upload_part(
            **store._at("object"), UploadId=upload._id, PartNumber=3, Body=b"x", ChecksumCRC32=s3._crc32(b"y")
        )
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    upload.abort()
    store.put("small", b"x")
    assert client.head_object(**store._at("small"), ChecksumMode="ENABLED")["ChecksumSHA256"] == s3._sha256(b"x")


def test_a_cut_line_during_an_upload_costs_a_retry_and_no_more(through_proxy: S3Store, proxy: Proxy) -> None:
    sent = 0

    def pull_the_cable(data: bytes) -> bytes:
        nonlocal sent
        before, sent = sent, sent + len(data)
        if before < 20 * MIB <= sent:
            proxy.break_connections()
        return data

    proxy.change_request = pull_the_cable
    sealed = write_megabytes(through_proxy, 40)
    check_stored(through_proxy, sealed)


# Reads.


def test_a_read_that_breaks_in_mid_object_goes_on_where_it_broke(through_proxy: S3Store, proxy: Proxy) -> None:
    sealed = write_megabytes(through_proxy, 12)
    proxy.cut_answers_after, proxy.cuts_left = 2 * MIB + 12345, 4
    assert unseal_bytes(through_proxy, sealed, identities=[IDENTITY])[::MIB] == bytes(range(12))
    assert proxy.cuts == 4


def test_a_read_from_a_store_that_went_away_is_given_up_with_the_endpoint_named(
    through_proxy: S3Store, proxy: Proxy
) -> None:
    write_megabytes(through_proxy, 20)
    reader = through_proxy.open("object")
    reader.read(1000)
    proxy.close()
    with pytest.raises(StoreUnreachable, match=f"no answer from {proxy.endpoint}"):
        while reader.read(MIB):
            pass
    reader.close()


def test_an_object_that_is_replaced_while_it_is_read_is_never_mixed(through_proxy: S3Store, proxy: Proxy) -> None:
    write_megabytes(through_proxy, 20)
    reader = through_proxy.open("object")
    reader.read(1000)
    through_proxy.put("object", b"other bytes " * 2 * MIB)
    proxy.break_connections()
    with pytest.raises(IntegrityError, match="the object was replaced while it was read"):
        while reader.read(MIB):
            pass
    reader.close()


def test_a_store_that_is_not_there_is_named_with_its_endpoint(objects: SeaweedFS) -> None:
    from lab.ports import free_port

    endpoint = f"http://127.0.0.1:{free_port()}"
    with contextlib.closing(make_client(s3_connection(objects, endpoint=endpoint))) as lost:
        store = S3Store(lost, settings())
        with pytest.raises(StoreUnreachable, match=f"no answer from {endpoint}"):
            store.get("x")


# What is asked of a bucket and a client before any work.


def test_a_missing_bucket_is_told_as_one(client: Any) -> None:
    with pytest.raises(StoreError, match="the bucket does not exist -> create it"):
        S3Store(client, settings(bucket="nowhere")).check()


def test_wrong_credentials_are_told_with_the_connection_and_no_key(objects: SeaweedFS) -> None:
    connection = s3_connection(objects, secret_key="wrong-secret")
    with contextlib.closing(make_client(connection)) as wrong, pytest.raises(StoreError) as caught:
        S3Store(wrong, settings()).check()
    assert "the store refused the credentials (SignatureDoesNotMatch) -> check connection recovery_s3" in str(
        caught.value
    )
    assert "wrong-secret" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["localhost:8333", "not a url", "http://"])
def test_an_endpoint_that_is_no_url_is_a_configuration_error(objects: SeaweedFS, endpoint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_client(s3_connection(objects, endpoint=endpoint))
    assert str(caught.value).startswith("connection recovery_s3: ")
    assert objects.secret_key not in str(caught.value)


def test_parts_grow_with_the_object_and_an_impossible_object_is_refused() -> None:
    assert part_size(1 << 30) == s3.PART_SIZE
    assert part_size(1 << 39) * s3.MOST_PARTS >= 1 << 39
    assert part_size(s3.LARGEST_OBJECT) == s3.LARGEST_PART
    with pytest.raises(ConfigurationError, match="too large for one S3 upload"):
        part_size(s3.LARGEST_OBJECT + 1)


def test_a_lock_is_left_out_where_none_is_configured(client: Any) -> None:
    assert S3Store(client, settings(bucket="plain"))._lock() == {}
    assert ObjectLock(mode="GOVERNANCE", days=3).days == 3


def test_config_check_names_a_lock_that_ends_before_the_chain_that_needs_it(s3_site: Site) -> None:
    def lock(expect: int) -> dict[str, str]:
        found = s3_site.json("config", "check", expect=expect)["systems"]
        return {each["what"]: f"{each['state']}: {each['detail']}" for each in found}

    del s3_site.system["incremental"]
    assert lock(1)["lock app038"] == (
        "failed: Object Lock ends after 1 day, and a full is needed longer: 12 incrementals every six hours, and the "
        "window after them -> set object_lock.days to 4 or more, or incremental.max_chain to 4 or less"
    )
    s3_site.system["incremental"] = {"max_chain": 4}
    assert lock(0)["lock app038"].startswith("ok: 1 day,")
    s3_site.document["repositories"]["main"]["s3"].pop("object_lock")
    assert "lock app038" not in lock(0)
