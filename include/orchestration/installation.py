"""An Installation whose secrets and S3 clients come from Airflow: its connections, and S3 through its own hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from recovery import config
from recovery.connections import Connection
from recovery.errors import ConfigurationError
from recovery.installation import Installation
from recovery.repository.s3 import client_config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def open_installation() -> Installation:
    """The configuration that RECOVERY_CONFIG names, with Airflow's connections."""
    return Installation(config.load(), resolve=resolve, s3_client=s3_client)


def resolve(connection_id: str) -> Connection:
    """An Airflow connection in the library's form; raises ConfigurationError when Airflow has none of this id."""
    try:
        found = BaseHook.get_connection(connection_id)
    except AirflowNotFoundException:
        raise ConfigurationError(
            "the connection is not defined in Airflow",
            where=f"connection {connection_id}",
            remedy=f"add it under Admin, Connections, or set AIRFLOW_CONN_{connection_id.upper()}",
        ) from None
    return Connection(
        id=connection_id,
        type=found.conn_type or "",
        host=found.host or "",
        port=found.port,
        login=found.login or "",
        password=found.password or "",
        schema=found.schema or "",
        extra=found.extra_dejson,
    )


def s3_client(connection_id: str) -> S3Client:
    """Airflow's own S3 client for a connection: assumed roles and rotating credentials work as they do elsewhere."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    resolve(connection_id)
    client: S3Client = S3Hook(aws_conn_id=connection_id, config=client_config()).get_conn()
    return client
