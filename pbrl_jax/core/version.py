"""The version of this package, which saved files carry; setup.py reads it."""

__version__ = "0.2.0"
