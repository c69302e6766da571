"""The `recovery` command: arguments in, library calls, a document or a few readable lines out. No logic lives here."""

from __future__ import annotations

from recovery.cli._app import main

__all__ = ["main"]
