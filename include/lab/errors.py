"""The lab's errors: each is one message that names the server and what to do."""

from __future__ import annotations


class LabError(Exception):
    """Something in the lab could not be started, reached or used."""


class AlreadyRunningError(LabError):
    """Another launcher holds this lab directory."""
