"""Trackers: TensorBoard event files, and Weights & Biases where `log.wandb` names a project.

Both have `write(step, row)`, which leaves out strings, `flush()` and `close()`.
"""

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import WorkDir, write_atomic

RUN_FILE = "wandb_run"
"""File of a work directory with the id of its W&B run, so that a resumed run continues the same one."""


class TensorBoardLog:
    """Event files in `W/tensorboard`; those of steps after `resume_step` are superseded."""

    def __init__(self, folder: epath.Path, resume_step: int):
        from tensorboardX import SummaryWriter  # slow to import, and not every run uses it

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)
        self.flush, self.close = self._writer.flush, self._writer.close

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and not isinstance(value, str):
                self._writer.add_scalar(name, value, step)


class WandbLog:
    """One W&B run for one work directory.

    Args:
      project: the W&B project.
      root: the work directory; its last folder names the run.
      config: JSON of the resolved config.

    Raises:
      ConfigError: wandb is not installed, or does not start (no login, no network).
    """

    def __init__(self, project: str, root: epath.Path, config: str):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"log.wandb is {project!r}, but wandb is not installed. pip install -e '.[wandb]', or leave log.wandb "
                "empty: TensorBoard files are written all the same."
            ) from error
        file = root / RUN_FILE
        if not file.exists():
            write_atomic(file, secrets.token_hex(6))
        try:
            with unasked():
                self._run = wandb.init(
                    project=project, id=file.read_text().strip(), name=root.name, resume="allow",
                    config=json.loads(config),
                )  # fmt: skip
        except Exception as error:  # its own error classes differ by version
            raise ConfigError(
                f"W&B does not start: {error}. Log in with `wandb login`, or set WANDB_MODE=offline and sync later."
            ) from error
        self.close = self._run.finish

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        self._run.log({name: value for name, value in row.items() if not isinstance(value, str)}, step=step)

    def flush(self) -> None:
        """W&B uploads by itself."""


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """No question on the terminal: a library that would ask there finds none, and raises."""
    before = sys.stdin
    with open(os.devnull) as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


Tracker = TensorBoardLog | WandbLog


def make_trackers(paths: WorkDir, resume_step: int, tensorboard: bool, wandb: str, config: str) -> list[Tracker]:
    """The trackers of a run; arguments as in MetricWriter."""
    trackers: list[Tracker] = [TensorBoardLog(paths.tensorboard, resume_step)] if tensorboard else []
    return trackers + ([WandbLog(wandb, paths.root, config)] if wandb else [])
