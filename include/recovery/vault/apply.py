"""The steps of a restore on a node: the snapshot goes in, the node applies it and seals itself, the shares open it."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from recovery.errors import PreconditionError, RecoveryError, RestoreError, VaultError, VaultUnreachable
from recovery.manifest import Seal
from recovery.vault.session import errors_of

if TYPE_CHECKING:
    import hvac

_POLL_SECONDS = 0.1
_APPLY_SECONDS = 300.0
_ACTIVE_SECONDS = 120.0
_UPLOAD_TIMEOUT_SECONDS = (10, 3600)
_OTHER_KEYS = "different set of unseal keys"
_TIMED_OUT = "i/o timeout"


class SealMismatch(RestoreError):
    """The node's keys are not those that sealed the snapshot."""


class NotServing(RestoreError):
    """The node took the snapshot and does not come to serve it; its log says why."""


def initialise(client: hvac.Client, seal: Seal) -> str:
    """Give a fresh node keys of its own, for as long as it takes to throw them away; returns its root token.

    As many shares as the snapshot's seal has: OpenBao 2.7 keeps counting by the numbers that it was initialised with.
    """
    with errors_of(client.url):
        if seal.type != "shamir":
            made = client.sys.initialize(
                secret_shares=None,
                secret_threshold=None,
                recovery_shares=seal.shares,
                recovery_threshold=seal.threshold,
            )
        else:
            made = client.sys.initialize(secret_shares=seal.shares, secret_threshold=seal.threshold)
            for key in made["keys"][: seal.threshold]:
                client.sys.submit_unseal_key(key)
    wait_active(client)
    return str(made["root_token"])


def restore(client: hvac.Client, pieces: Iterable[bytes], *, force: bool) -> None:
    """Send a snapshot. Without `force` a node takes only what its own keys have sealed: SealMismatch otherwise.

    Raises RestoreError where the node refuses it, and whatever `pieces` raises: the node has then kept what it had.
    """
    import hvac.adapters

    path = "/v1/sys/storage/raft/snapshot" + ("-force" if force else "")
    raw = hvac.adapters.RawAdapter.from_adapter(client.adapter)
    source = _Pieces(pieces)
    try:
        with errors_of(client.url, remedy="restoring needs a token that may write sys/storage/raft/snapshot-force"):
            raw.post(path, data=iter(source), timeout=_UPLOAD_TIMEOUT_SECONDS)
    except VaultError as problem:
        if source.problem is not None:
            raise source.problem from None
        if _OTHER_KEYS in problem.what:
            raise SealMismatch(
                "the node's keys are not those that sealed this snapshot",
                where=client.url,
                remedy="the shares in escrow are of another time (a rekey?): find those of the snapshot's",
            ) from None
        # A listener gives up on a request that takes longer than its http_read_timeout, 30 s by default.
        remedy = "raise http_read_timeout of its listener, and try again" if _TIMED_OUT in problem.what else ""
        raise RestoreError(
            f"the node does not take the snapshot: {problem.what}", where=client.url, remedy=remedy
        ) from None


class _Pieces:
    """An iterator that keeps what went wrong inside it: requests would turn it into a broken connection."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.problem: BaseException | None = None

    def __iter__(self) -> Any:
        try:
            yield from self._pieces
        except BaseException as problem:
            self.problem = problem
            raise


def wait_applied(client: hvac.Client) -> None:
    """A forced restore returns before it is applied: wait for that. Raises NotServing.

    The node then seals itself. One that a key service unseals opens itself again at once: what tells is that the token
    of `client`, which is not in the snapshot, is refused.
    """
    deadline = time.monotonic() + _APPLY_SECONDS
    while time.monotonic() < deadline:
        # Meanwhile it answers late or not at all, for it stops its services.
        with contextlib.suppress(VaultError):
            try:
                with errors_of(client.url):
                    status = client.seal_status
                    if status["sealed"] and status["initialized"]:
                        return
                    if status["type"] != "shamir":
                        client.auth.token.lookup_self()
            except PreconditionError:
                return
        time.sleep(_POLL_SECONDS)
    raise NotServing(f"the node has not applied the snapshot in {_APPLY_SECONDS:.0f} s", where=client.url)


def unseal(client: hvac.Client, shares: Sequence[str]) -> None:
    """Submit the original shares until the node is open; raises RestoreError, which quotes none of them."""
    with errors_of(client.url):
        status = client.seal_status
        if status["sealed"]:
            status = client.sys.submit_unseal_key(reset=True)
    for share in dict.fromkeys(shares):
        if not status["sealed"]:
            return
        try:
            with errors_of(client.url):
                status = client.sys.submit_unseal_key(share)
        except VaultUnreachable:
            raise
        except RecoveryError:
            raise RestoreError(
                "the shares given do not open this snapshot",
                where=client.url,
                remedy="give the original shares of the time of the snapshot; after a rekey the older ones open it",
            ) from None
    if status["sealed"]:
        needed, given = int(status["t"]), len(set(shares))
        raise RestoreError(
            f"{given} different shares were given, and this snapshot needs {needed}",
            where=client.url,
            remedy="give as many of the original shares as its threshold says",
        )


def wait_active(client: hvac.Client) -> None:
    """Until the node is unsealed and leads its cluster; raises RestoreError."""
    deadline = time.monotonic() + _ACTIVE_SECONDS
    last: Any = "no answer"
    while time.monotonic() < deadline:
        try:
            with errors_of(client.url):
                last = client.sys.read_health_status(method="GET")
            if isinstance(last, dict) and last["initialized"] and not last["sealed"] and not last["standby"]:
                return
        except VaultError as problem:
            last = problem.what
        time.sleep(_POLL_SECONDS)
    raise NotServing("the restored node does not become active", where=client.url, remedy="see its log")


def generate_root(client: hvac.Client, shares: Sequence[str]) -> str:
    """A root token made from the shares (Vault: operator generate-root); raises RestoreError."""
    try:
        with errors_of(client.url):
            begun = client.sys.start_root_token_generation()
            answer: dict[str, Any] = {}
            for share in dict.fromkeys(shares):
                answer = client.sys.generate_root(key=share, nonce=begun["nonce"])
                if answer["complete"]:
                    break
    except RecoveryError as problem:
        _cancel_root(client)
        raise RestoreError(f"no root token can be made from the shares: {problem.what}", where=client.url) from None
    if not answer.get("complete"):
        _cancel_root(client)
        raise RestoreError("the shares given are too few for a root token", where=client.url)
    return _decoded(str(answer["encoded_root_token"]), str(begun["otp"]))


def _cancel_root(client: hvac.Client) -> None:
    with contextlib.suppress(RecoveryError), errors_of(client.url):
        client.sys.cancel_root_generation()


def _decoded(encoded: str, otp: str) -> str:
    token = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
    return bytes(left ^ right for left, right in zip(token, otp.encode(), strict=True)).decode()
