"""Fixtures of this folder's tests."""

from tiny_store import bucket  # noqa: F401
