"""The version of this package: of saved configurations, checkpoints, model folders and reports; setup.py reads it."""

__version__ = "0.2.0"
