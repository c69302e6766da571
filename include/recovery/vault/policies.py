"""Writing policies of an export into a running server again: a plan first, then each is written and read back.

A policy is chosen by its name, one of a child namespace by its file in the export
(`namespaces/team/policies/deploy.hcl`). Policies that the export does not hold are never touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from recovery.errors import ConfigurationError, PreconditionError, RecoveryError, VaultError, VaultUnreachable
from recovery.vault.ask import ask
from recovery.vault.diff import unified
from recovery.vault.export import ROOT_POLICY, Tree

if TYPE_CHECKING:
    import hvac

_POLICY = "include/config/vault/restore-policies.hcl"
_FILE = re.compile(r"((?:namespaces/[^/]+/)*)policies/([^/]+)\.hcl")
# OpenBao's settings of a policy beside its text. A write without them would reset them.
_SETTINGS = (
    "allow_slashes_in_identity_templates",
    "allow_wildcards_in_identity_templates",
    "cas_required",
    "expiration",
)


@dataclass(frozen=True, kw_only=True)
class PolicyChange:
    """What applying one policy would do; `diff` leads from the live text to the export's."""

    name: str
    action: Literal["create", "replace", "unchanged"]
    diff: tuple[str, ...]
    namespace: str
    """The child namespace with a slash at its end; empty for the client's own."""
    policy: str
    text: str
    live: str | None


def plan(tree: Tree, client: hvac.Client, names: Sequence[str] | None) -> list[PolicyChange]:
    """What applying these policies (None: all of the export) would do, sorted by name. Changes nothing.

    Raises ConfigurationError for a name that the export does not hold, PreconditionError for a right that is missing.
    """
    known = {file: found for file in tree if (found := _place(file))}
    chosen = {_file_of(name, known) for name in names} if names else set(known)
    if any(known[file].policy == ROOT_POLICY for file in chosen):
        raise _root_is_built_in()
    return [_change(client, file, known[file], tree[file].decode()) for file in sorted(chosen)]


def apply(client: hvac.Client, changes: Sequence[PolicyChange]) -> list[str]:
    """Write what the plan would create or replace, each read back and compared; returns the names that were written.

    Ends at the first that fails, and says which were written and which not: VaultError (the server refuses the text),
    PreconditionError (a right or the namespace is missing, or the live policy was changed after the plan).
    """
    due = [change for change in changes if change.action != "unchanged"]
    written: list[str] = []
    for position, change in enumerate(due):
        try:
            _write(client, change)
        except _Uncertain as sent:
            raise _stopped(sent.problem, "may have been written", change, written, due[position + 1 :]) from None
        except RecoveryError as problem:
            raise _stopped(problem, "was not applied", change, written, due[position:]) from None
        written.append(change.name)
    return written


class _Uncertain(Exception):
    """The write was sent, and what became of it is not known: no answer came, or it does not read back."""

    def __init__(self, problem: RecoveryError) -> None:
        self.problem = problem
        super().__init__(problem)


def _stopped(
    problem: RecoveryError, outcome: str, change: PolicyChange, written: Sequence[str], rest: Sequence[PolicyChange]
) -> RecoveryError:
    return type(problem)(
        f"the policy {change.name!r} {outcome}: {problem.what};"
        f" written: {_listed(written)}; not written: {_listed([other.name for other in rest])}",
        where=problem.where,
        remedy=problem.remedy,
    )


@dataclass(frozen=True)
class _Place:
    namespace: str
    policy: str


def _place(file: str) -> _Place | None:
    """Where a file of the export belongs; None if it holds no policy."""
    match = _FILE.fullmatch(file)
    if match is None:
        return None
    return _Place(unquote(match[1].replace("namespaces/", "")), unquote(match[2]))


def _file_of(name: str, known: Mapping[str, _Place]) -> str:
    if name == ROOT_POLICY:
        raise _root_is_built_in()
    for file, place in known.items():
        # Vault keeps the names of policies in lower case.
        if place == _Place("", name.lower()) or file == name:
            return file
    raise ConfigurationError(
        f"the export holds no policy {name!r}",
        where="policies",
        remedy="use one of: " + (", ".join(_name(file, place) for file, place in sorted(known.items())) or "none"),
    )


def _name(file: str, place: _Place) -> str:
    return file if place.namespace else place.policy


def _root_is_built_in() -> ConfigurationError:
    return ConfigurationError(
        "the policy 'root' is built into every server and cannot be written",
        where="policies",
        remedy="leave it out: an export does not hold it either",
    )


def _change(client: hvac.Client, file: str, place: _Place, text: str) -> PolicyChange:
    found = _read(client, place.namespace, place.policy)
    live = str(found["policy"]) if found else None
    action: Literal["create", "replace", "unchanged"] = "unchanged" if live == text else "replace"
    return PolicyChange(
        name=_name(file, place),
        action="create" if live is None else action,
        diff=unified(live or "", text),
        namespace=place.namespace,
        policy=place.policy,
        text=text,
        live=live,
    )


def _write(client: hvac.Client, change: PolicyChange) -> None:
    found = _read(client, change.namespace, change.policy)
    if (str(found["policy"]) if found else None) != change.live:
        raise PreconditionError(
            "it was changed on the server after the plan was made", where=client.url, remedy="plan again"
        )
    body: dict[str, Any] = {"policy": change.text}
    if found:
        body |= {name: found[name] for name in _SETTINGS if found.get(name)}
        body |= {"cas": found["version"]} if "version" in found else {}
    try:
        _ask(client, "put", change.namespace, change.policy, needs=("create", "update"), body=body)
    except VaultUnreachable as problem:
        raise _Uncertain(problem) from None
    try:
        answer = _read(client, change.namespace, change.policy)
    except RecoveryError as problem:
        raise _Uncertain(problem) from None
    if answer is None and change.namespace:
        raise PreconditionError(
            f"there is no namespace {change.namespace.rstrip('/')}", where=client.url, remedy="make it first"
        )
    if answer is None or answer["policy"] != change.text:
        raise _Uncertain(
            VaultError(
                "it does not read back as it was written", where=client.url, remedy="see who else writes policies there"
            )
        )


def _read(client: hvac.Client, namespace: str, policy: str) -> dict[str, Any] | None:
    return _ask(client, "get", namespace, policy, needs=("read",))


def _ask(
    client: hvac.Client,
    method: str,
    namespace: str,
    policy: str,
    *,
    needs: Sequence[str],
    body: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    return ask(
        client,
        method,
        f"{namespace}sys/policies/acl/{policy}",
        needs=needs,
        rule=f"{namespace}sys/policies/acl/*",
        hint=f"give its role the policy {_POLICY}",
        body=body,
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
