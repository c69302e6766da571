"""Drills: restore in isolation, check, measure, and keep the evidence."""
