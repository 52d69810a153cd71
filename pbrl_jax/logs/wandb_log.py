"""Weights & Biases beside TensorBoard, where `log.wandb` names a project."""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from etils import epath

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import write_atomic

RUN_FILE = "wandb_run"
"""File of a work directory with the id of its W&B run, so that a resumed run goes on in the same one."""


class WandbLog:
    """One W&B run for one work directory.

    Args:
      project: the W&B project.
      root: the work directory; its last folder names the run.
      config: JSON of the resolved config.

    Raises:
      ConfigError: wandb is not installed, or it refuses to start (no login, no network).
    """

    def __init__(self, project: str, root: epath.Path, config: str):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"log.wandb is {project!r}, but wandb is not installed. pip install -e .[wandb], or leave log.wandb "
                "empty: TensorBoard files are written all the same."
            ) from error
        file = root / RUN_FILE
        if not file.exists():
            write_atomic(file, secrets.token_hex(6))
        try:
            self._run = wandb.init(
                project=project, id=file.read_text().strip(), name=root.name, resume="allow", config=json.loads(config)
            )
        except Exception as error:  # its own error classes differ by version
            raise ConfigError(
                f"W&B does not start: {error}. Log in with `wandb login`, or set WANDB_MODE=offline and sync later."
            ) from error

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """The numbers of a step."""
        self._run.log({name: value for name, value in row.items() if not isinstance(value, str)}, step=step)

    def close(self) -> None:
        """Ends the W&B run; what is not uploaded yet is uploaded first."""
        self._run.finish()
