"""What a Vault, its client library and the network say when something fails, in this project's words."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING

from recovery.errors import PreconditionError, VaultError, VaultUnreachable

if TYPE_CHECKING:
    import hvac.exceptions

_POLICY = "include/config/vault/backup.hcl"
# What a server says, and what helps.
_REMEDIES = {
    "unavailable in namespaces": "remove namespace from the connection: snapshots exist in the root namespace only",
    "namespace not found": "correct namespace in the connection's extra",
    "HTTP request to an HTTPS server": "set use_tls in the connection's extra",
}
_NO_ACTIVE_NODE = "active cluster node not found"
# OpenSSL's codes (X509_V_ERR_...) for a certificate of another host or address, and for one out of its time.
_WRONG_NAME, _WRONG_TIME = (62, 64), (9, 10)


@contextlib.contextmanager
def errors_of(where: str, *, remedy: str = "") -> Iterator[None]:
    """What hvac and requests raise, in this project's words. None of it quotes a token."""
    import hvac.exceptions
    import requests
    import urllib3

    try:
        yield
    except hvac.exceptions.Forbidden as problem:
        raise PreconditionError(
            f"Vault refuses: {said_by(problem)}",
            where=where,
            remedy=remedy or f"give its role the policy {_POLICY}, or correct the connection's secret",
        ) from None
    except (hvac.exceptions.VaultDown, hvac.exceptions.VaultNotInitialized) as problem:
        raise VaultUnreachable(f"it does not serve: {said_by(problem)}", where=where, remedy="unseal it") from None
    except hvac.exceptions.VaultError as problem:
        said = said_by(problem)
        if isinstance(problem, hvac.exceptions.BadGateway) or _NO_ACTIVE_NODE in said:
            raise VaultUnreachable(
                f"it does not serve: {said}", where=where, remedy="wait for an active node"
            ) from None
        raise VaultError(f"Vault answers: {said}", where=where, remedy=remedy_for(said) or remedy) from None
    except requests.exceptions.SSLError as problem:
        raise _no_tls(_root(problem), where) from None
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as problem:
        raise VaultUnreachable(
            f"no answer ({_reason(_root(problem))})", where=where, remedy="see that it runs"
        ) from None


def _no_tls(problem: BaseException, where: str) -> VaultUnreachable:
    code = problem.verify_code if isinstance(problem, ssl.SSLCertVerificationError) else None
    if code in _WRONG_NAME:
        remedy = "name it as its certificate does, or give it a certificate for this name"
    elif code in _WRONG_TIME:
        remedy = "renew its certificate"
    elif getattr(problem, "reason", "") == "WRONG_VERSION_NUMBER":
        remedy = "it speaks plain http: set use_tls to false, or give it TLS"
    else:
        remedy = "name the private CA's file in ca_cert"
    return VaultUnreachable(f"no TLS connection ({_reason(problem)})", where=where, remedy=remedy)


def said_by(problem: hvac.exceptions.VaultError) -> str:
    texts = [str(text) for text in problem.errors or [] if text] or [str(problem.text or type(problem).__name__)]
    return " ".join("; ".join(texts).split())[:300]


def remedy_for(said: str) -> str:
    return next((remedy for words, remedy in _REMEDIES.items() if words in said), "")


def _root(problem: BaseException) -> BaseException:
    """The innermost reason: requests wraps urllib3, which wraps the operating system."""
    inner = getattr(problem, "reason", None)
    if not isinstance(inner, BaseException):
        inner = next((arg for arg in problem.args if isinstance(arg, Exception)), problem.__cause__)
    return _root(inner) if inner is not None else problem


def _reason(problem: BaseException) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return problem.verify_message.rstrip(".")
    if isinstance(problem, ssl.SSLError) and problem.reason:
        return problem.reason.replace("_", " ").lower()
    if isinstance(problem, ValueError):  # Of a header or URL, which it would quote.
        return type(problem).__name__
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return " ".join(str(problem).split()) or type(problem).__name__
