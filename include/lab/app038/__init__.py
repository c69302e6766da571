"""App038, the sample system: a Laravel shop's databases, filled to a given size, under a small steady load."""

from lab.app038._create import BACKUP_ROLE, CANARY_ROLE, DATABASE, REPORTING_DATABASE, SETTINGS, create
from lab.app038._fill import fill
from lab.app038._load import Load, paused
from lab.app038._vault import BACKUP_APPROLE, CANARY_KEY, MANAGEMENT_ROLE, TRANSIT_KEY, fill_vault

__all__ = [
    "BACKUP_APPROLE",
    "BACKUP_ROLE",
    "CANARY_KEY",
    "CANARY_ROLE",
    "DATABASE",
    "MANAGEMENT_ROLE",
    "REPORTING_DATABASE",
    "SETTINGS",
    "TRANSIT_KEY",
    "Load",
    "create",
    "fill",
    "fill_vault",
    "paused",
]
