"""Continuous WAL: received, sealed, stored, audited, and given back to a recovering server."""
