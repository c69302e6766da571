"""HTTP to the lab's own servers: never through a proxy, and without loading certificates for plain http."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import httpx


def call(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: object = None,
    timeout_seconds: float = 30.0,
) -> httpx.Response:
    """One request with an optional JSON body; an error status raises httpx.HTTPStatusError."""
    with httpx.Client(trust_env=False, verify=_NO_CERTIFICATES, timeout=timeout_seconds) as client:
        answer = client.request(method, url, headers=headers, json=body)
    answer.raise_for_status()
    return answer


# A default context reads the machine's certificates, some 20 ms of work in every poll.
_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
