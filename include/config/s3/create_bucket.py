"""Creates the repository's bucket with versioning and Object Lock, for docker-compose.yaml; run again it checks both.

Object Lock can only be asked for when a bucket is made. A bucket without it holds backups that anybody with the keys
can delete, so one that is there already and lacks it is an error, not something to go on with.
"""

from __future__ import annotations

import json
import os
import sys

import boto3
from botocore.exceptions import ClientError


def main() -> int:
    connection = json.loads(os.environ["AIRFLOW_CONN_RECOVERY_S3"])
    bucket = os.environ["RECOVERY_BUCKET"]
    s3 = boto3.client(
        "s3",
        aws_access_key_id=connection["login"],
        aws_secret_access_key=connection["password"],
        region_name=connection["extra"]["region_name"],
        endpoint_url=connection["extra"]["endpoint_url"],
    )
    try:
        s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    except ClientError as problem:
        if problem.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
    try:
        lock = s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"].get("ObjectLockEnabled")
    except ClientError as problem:
        lock = problem.response["Error"]["Code"]
    versioning = s3.get_bucket_versioning(Bucket=bucket).get("Status")
    if (lock, versioning) != ("Enabled", "Enabled"):
        sys.stderr.write(
            f"bucket {bucket}: Object Lock is {lock}, versioning is {versioning}; both must be Enabled. "
            "Object Lock cannot be added later: name a new bucket in RECOVERY_BUCKET.\n"
        )
        return 1
    sys.stderr.write(f"bucket {bucket}: versioning and Object Lock are enabled\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
