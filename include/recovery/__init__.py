"""Backups of PostgreSQL and Vault that have already been restored. This package never imports Airflow."""

__version__ = "0.1.0"
