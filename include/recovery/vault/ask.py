"""One call of Vault's API. Its refusal names the path, what the token lacks on it, and the rule that would allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from recovery.errors import PreconditionError
from recovery.vault.session import errors_of

if TYPE_CHECKING:
    import hvac


def ask(
    client: hvac.Client,
    method: str,
    path: str,
    *,
    needs: Sequence[str],
    hint: str,
    rule: str = "",
    body: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """The `data` of one answer; None where there is nothing at that path, or no data in the answer.

    A refusal raises PreconditionError that names the path and what the token `needs` on it; `rule` is the path for a
    policy to allow where that is wider, and `hint` how to give it.
    """
    import hvac.exceptions

    with errors_of(client.url):
        try:
            answer = client.adapter.request(method, f"/v1/{quote(path)}", **({"json": body} if body else {}))
        except hvac.exceptions.InvalidPath:
            return None
        except hvac.exceptions.Forbidden:
            raise _refused(client, path, needs, rule=rule or path, hint=hint) from None
    return answer["data"] if isinstance(answer, dict) else None


def _refused(client: hvac.Client, path: str, needs: Sequence[str], *, rule: str, hint: str) -> PreconditionError:
    import hvac.exceptions

    try:
        client.auth.token.lookup_self()
    except hvac.exceptions.Forbidden:
        return PreconditionError(
            "the token is not valid, or may not even look itself up",
            where=client.url,
            remedy="correct the connection's secret; a valid token needs read on auth/token/lookup-self",
        )
    quoted = ", ".join(f'"{capability}"' for capability in needs)
    return PreconditionError(
        f"the token may not {' and '.join(needs)} {path}",
        where=client.url,
        remedy=f'{hint}; it must hold: path "{rule}" {{ capabilities = [{quoted}] }}',
    )
