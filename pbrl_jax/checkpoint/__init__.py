"""Checkpoints that are whole or not there: saving, restoring, and what makes a checkpoint belong to a run."""

from pbrl_jax.checkpoint.background import BackgroundSaver
from pbrl_jax.checkpoint.restore import (
    Restored,
    check_same_experiment,
    list_checkpoints,
    params_sha256,
    read_meta,
    restore_checkpoint,
    restore_latest,
    saved_leaves,
)
from pbrl_jax.checkpoint.save import save_checkpoint

__all__ = [
    "BackgroundSaver",
    "Restored",
    "check_same_experiment",
    "list_checkpoints",
    "params_sha256",
    "read_meta",
    "restore_checkpoint",
    "restore_latest",
    "save_checkpoint",
    "saved_leaves",
]
