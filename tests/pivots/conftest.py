"""Fixtures of the pivot tests."""

from tiny_store import bucket  # noqa: F401
