"""What the forms of several DAGs ask."""

from __future__ import annotations

from airflow.sdk import Param


def systems(*, otherwise: str = "all of them") -> Param:
    """Names of systems; `otherwise` says which an empty field means."""
    return Param(
        None,
        type=["null", "array"],
        items={"type": "string"},
        title="Systems",
        description=f"Names from recovery.yaml, one a line. Empty: {otherwise}.",
    )
