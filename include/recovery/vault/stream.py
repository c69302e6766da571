"""The bytes of a Raft snapshot as a node sends them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from recovery.errors import PreconditionError, VaultUnreachable
from recovery.vault.session import errors_of

if TYPE_CHECKING:
    import hvac
    import requests

_PATH = "sys/storage/raft/snapshot"
_CHUNK_BYTES = 1 << 20
# A large Raft state takes its time before the first byte; a node that is gone is noticed by the broken connection.
_TIMEOUT_SECONDS = (10, 300)


def snapshot_of(client: hvac.Client) -> Iterator[bytes]:
    """The bytes of a Raft snapshot as they come.

    Raises VaultUnreachable when the stream breaks off, PreconditionError where the token lacks the right, VaultError.
    """
    import requests

    where = client.url
    with errors_of(where), contextlib.closing(_request(client)) as answer:
        try:
            yield from answer.iter_content(_CHUNK_BYTES)
        except requests.exceptions.RequestException as problem:
            raise VaultUnreachable(
                f"the snapshot broke off ({type(problem).__name__})", where=where, remedy="take it again"
            ) from None


def _request(client: hvac.Client) -> requests.Response:
    """As hvac's take_raft_snapshot(), which would give up after 30 s."""
    import hvac.adapters
    import hvac.exceptions

    raw = hvac.adapters.RawAdapter.from_adapter(client.adapter)
    try:
        answer: requests.Response = raw.get(f"/v1/{_PATH}", stream=True, timeout=_TIMEOUT_SECONDS)
    except hvac.exceptions.Forbidden:
        raise PreconditionError(
            f"the token may not read {_PATH}",
            where=client.url,
            remedy="give its role the policy include/config/vault/backup.hcl; it must hold: "
            f'path "{_PATH}" {{ capabilities = ["read"] }}',
        ) from None
    return answer
