"""App038, the sample system: a Laravel shop's databases, filled to a given size, under a small steady load."""

from lab.app038._create import BACKUP_ROLE, DATABASE, REPORTING_DATABASE, SETTINGS, create
from lab.app038._fill import fill
from lab.app038._load import Load, paused
from lab.app038._secrets import BACKUP_POLICY, TRANSIT_KEY, create_secrets

__all__ = [
    "BACKUP_POLICY",
    "BACKUP_ROLE",
    "DATABASE",
    "REPORTING_DATABASE",
    "SETTINGS",
    "TRANSIT_KEY",
    "Load",
    "create",
    "create_secrets",
    "fill",
    "paused",
]
