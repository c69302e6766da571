"""The bodies of the tasks around Vault. Each takes and returns plain values; everything else is the library's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from orchestration.work import guarded, judged, log_progress, logged, retained

if TYPE_CHECKING:
    from recovery.vault.backup import Kind

log = logging.getLogger(__name__)


def chosen_vaults(wanted: list[str] | None) -> list[str]:
    """The Vaults that a run works on: those named in its form, or all of the configuration."""
    with guarded():
        from recovery import config

        configuration = config.load()
        for name in wanted or []:
            configuration.vault_system(name)
        return list(wanted or configuration.vault)


def canaries(vaults: list[str] | None = None) -> list[str]:
    """The PostgreSQL systems that keep a canary; with `vaults`, those whose keys lie there."""
    with guarded():
        from recovery import config

        return [
            name
            for name, system in config.load().postgres.items()
            if system.keys is not None
            and system.keys.canary is not None
            and (vaults is None or system.keys.vault in vaults)
        ]


def refresh_canary(system: str) -> dict[str, Any]:
    """Write the canary of a PostgreSQL system anew, and say whether a snapshot is due for its key."""
    with guarded():
        from orchestration.installation import open_installation
        from recovery.vault import canaries

        found = canaries.refresh(open_installation(), system)
        if found.due:
            log.warning("a snapshot of %s is due: %s", found.vault, found.due)
        return logged({"system": system, "vault": found.vault, "version": found.version, "due": found.due})


def back_up(vault: str, kind: Kind) -> dict[str, Any]:
    """Take a backup of a Vault and commit it; returns its summary."""
    with guarded():
        from orchestration.installation import open_installation
        from recovery.vault import backup

        made = backup.take(open_installation().vault_source(vault), kind, progress=log_progress())
        return logged(made.summary())


def check(summary: dict[str, Any]) -> dict[str, Any]:
    """Read every object of a new backup back from the store and compare it with what was written. Needs no key."""
    with guarded():
        from orchestration.installation import open_installation
        from recovery.repository.verify import Level, Verdict
        from recovery.vault import catalog
        from recovery.vault.verify import verify

        installation = open_installation()
        vault, identifier = summary["system"], summary["id"]
        found = catalog.read(installation.vault_store(vault), vault).find(identifier)
        report = verify(installation, vault, found, Level.CHECKSUM)
        for finding in report.findings:
            log.error("%s: %s", finding.verdict, finding.problem)
        if report.verdict is not Verdict.OK:
            raise AirflowFailException(f"{identifier}: the check ended {report.verdict}: {report.findings[0].problem}")
        log.info("%s: %d objects, %d bytes read back and equal", identifier, report.objects, report.bytes_read)
        return summary


def lone_vaults() -> list[str]:
    """The Vaults that can be drilled (their shares are configured) and are half of no recovery set."""
    with guarded():
        from recovery import config

        configuration = config.load()
        paired = {system.keys.vault for system in configuration.postgres.values() if system.keys is not None}
        return [name for name, vault in configuration.vault.items() if vault.shares is not None and name not in paired]


def drill(vault: str) -> dict[str, Any]:
    """Restore the newest snapshot into a throwaway node and check it; a bad verdict fails the task."""
    with guarded():
        from orchestration.installation import open_installation
        from recovery.drill.vault import drill as run_drill
        from recovery.vault import catalog

        installation = open_installation()
        snapshot = catalog.read(installation.vault_store(vault), vault).choose(None)
        return judged(run_drill(installation, vault, snapshot, progress=log_progress()))


def retain(vault: str, *, apply: bool) -> str:
    """Log what retention keeps and why, and delete what may go if `apply` says so; returns what was done in a line."""
    with guarded():
        from orchestration.installation import open_installation
        from recovery.vault import retention

        installation = open_installation()
        if apply:
            return retained(*retention.apply(installation, vault, progress=log_progress()))
        return retained(retention.plan(installation, vault))
