"""Every error a user can cause or meet, in one small tree. Each says what failed, where, and what to do.

RecoveryError                    exit status 1
├── ConfigurationError           2: recovery.yaml, the call, or a connection is wrong
│   └── ConfigurationProblems    2: several at once, each on its own line
├── StoreError                   the object store refused or failed
│   ├── StoreUnreachable         no answer after retries
│   ├── ObjectMissing            a named object is not there
│   ├── ObjectExists             a conditional write found one already there
│   └── ConditionsUnsupported    the store has no conditional writes
├── SealError                    a recipient or an identity does not fit
├── IntegrityError               what is stored is not what was written
├── FormatError                  a manifest this version cannot read
├── LeaseError                   another writer holds the lease, or took it
├── PreconditionError            a server cannot be backed up, or a backup not restored, as things stand
├── BackupError                  a backup failed under way; nothing was committed
│   └── ChainBroken              an incremental cannot build on its parent: a full backup can be taken
├── WalError                     WAL cannot be streamed: the server, its slot or its timeline is not what it must be
│   └── WalGone                  the server no longer has the WAL that comes next: a gap
├── VaultError                   Vault or OpenBao refused, or what it answered is not what it must be
│   └── VaultUnreachable         no answer, sealed, or no active node
├── RestoreError                 a restore failed; the target was cleaned, or what is left is named
└── ServerError                  a sandbox server did not start or stopped
"""

from __future__ import annotations

from collections.abc import Sequence


class RecoveryError(Exception):
    """What failed (`what`), on what (`where`), and the next step (`remedy`); printed as one line."""

    exit_status = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        line = f"{line} -> {self.remedy}" if self.remedy else line
        return " ".join(line.split())

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.remedy))


def _rebuild(kind: type[RecoveryError], what: str, where: str, remedy: str) -> RecoveryError:
    return kind(what, where=where, remedy=remedy)


class ConfigurationError(RecoveryError):
    exit_status = 2


class ConfigurationProblems(ConfigurationError):
    """All problems of one configuration, found in one pass."""

    def __init__(self, problems: Sequence[ConfigurationError]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{len(self.problems)} in the configuration")

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    def __reduce__(self) -> tuple[object, ...]:
        return (ConfigurationProblems, (self.problems,))


class StoreError(RecoveryError):
    pass


class StoreUnreachable(StoreError):
    pass


class ObjectMissing(StoreError):
    pass


class ObjectExists(StoreError):
    pass


class ConditionsUnsupported(StoreError):
    pass


class SealError(RecoveryError):
    pass


class IntegrityError(RecoveryError):
    pass


class FormatError(RecoveryError):
    pass


class LeaseError(RecoveryError):
    pass


class PreconditionError(RecoveryError):
    pass


class BackupError(RecoveryError):
    pass


class ChainBroken(BackupError):
    pass


class WalError(RecoveryError):
    pass


class WalGone(WalError):
    pass


class VaultError(RecoveryError):
    pass


class VaultUnreachable(VaultError):
    pass


class RestoreError(RecoveryError):
    pass


class ServerError(RecoveryError):
    pass
