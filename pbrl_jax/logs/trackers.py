"""Trackers: TensorBoard event files, and the tracking services for which section log names a project.

Each has `write(step, row)`, which skips strings, `table(rows)` of sampled responses, `flush()` and `close()`.
"""

import contextlib
import importlib
import json
import os
import secrets
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from pbrl_jax.config.log import LogConfig
from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import WorkDir, write_atomic

MLFLOW_LETTERS = 500
"""Largest length of a parameter in every store of MLflow."""


class TensorBoardLog:
    """Event files in `W/tensorboard`; events of an earlier run after `resume_step` are superseded, all of them by a run
    that starts anew."""

    def __init__(self, folder: epath.Path, resume_step: int):
        from tensorboardX import SummaryWriter  # slow to import, and not every run uses it

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else 0)
        self.flush, self.close = self._writer.flush, self._writer.close

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and not isinstance(value, str):
                self._writer.add_scalar(name, value, step)

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """TensorBoard has no tables."""


class Service(ABC):
    """The run of a tracking service for one work directory; a resumed training run continues it, one that starts anew
    has a new one, as services drop or mix rows of steps that they have. Where it fails after its start, as without a
    network, the training goes on.

    Args:
      project: project (MLflow: experiment) in the service.
      root: the work directory; its last folder names the run.
      config: JSON of the resolved config.
      resume_step: step of the loaded checkpoint, 0 for a run that starts anew.

    Raises:
      ConfigError: the service's package is not installed, or does not start (no login, no network).
    """

    package = title = advice = ""
    _failed = False

    def __init__(self, project: str, root: epath.Path, config: str, resume_step: int):
        try:
            self._module = importlib.import_module(self.package)
        except ImportError as error:
            raise ConfigError(
                f"log.{self.package} is {project!r}, but {self.package} is not installed. pip install -e "
                f"'.[{self.package}]', or leave log.{self.package} empty: TensorBoard files are written all the same."
            ) from error
        file = root / f"{self.package}_run"
        saved = file.read_text().strip() if resume_step and file.exists() else ""
        try:
            with without_input():
                run_id = self.start(project, saved, root.name, json.loads(config))
        except Exception as error:  # each service has its own error classes
            raise ConfigError(f"{self.title} does not start: {error}. {self.advice}") from error
        if run_id != saved:
            write_atomic(file, run_id)

    @abstractmethod
    def start(self, project: str, run_id: str, name: str, config: dict[str, Any]) -> str:
        """Start a new run ("") or continue the run `run_id`; returns its id."""

    @abstractmethod
    def log(self, step: int, row: dict[str, Any]) -> None:
        """Log one row of numbers."""

    @abstractmethod
    def log_table(self, columns: dict[str, list]) -> None:
        """A table of sampled responses, column by column."""

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        self._tell(self.log_table, {
            name: [json.dumps(row[name]) if isinstance(row.get(name), dict) else row.get(name) for row in rows]
            for name in names
        })  # fmt: skip

    @abstractmethod
    def end(self) -> None:
        """End the run."""

    def close(self) -> None:
        self._tell(self.end)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        self._tell(self.log, step, {name: value for name, value in row.items() if not isinstance(value, str)})

    def _tell(self, call: Callable[..., None], *values: Any) -> None:
        """Call the service; its first failure is said on stderr."""
        try:
            call(*values)
        except Exception as error:  # each service has its own error classes
            if not self._failed:
                print(f"{self.title} fails: {visible(str(error))}. The run goes on without it; metrics.jsonl has "
                      "every row.", file=sys.stderr)  # fmt: skip
            self._failed = True

    def flush(self) -> None:  # noqa: B027
        """Do nothing: services upload by themselves."""


class WandbLog(Service):
    """A run of Weights & Biases."""

    package, title = "wandb", "W&B"
    advice = "Log in with `wandb login`, or set WANDB_MODE=offline and sync later."

    def start(self, project: str, run_id: str, name: str, config: dict[str, Any]) -> str:
        run_id = run_id or secrets.token_hex(6)
        self._run = self._module.init(project=project, id=run_id, name=name, resume="allow", config=config)
        return run_id

    def log(self, step: int, row: dict[str, Any]) -> None:
        self._run.log(row, step=step)

    def log_table(self, columns: dict[str, list]) -> None:
        table = self._module.Table(columns=list(columns), data=list(zip(*columns.values(), strict=True)))
        self._run.log({"samples": table}, commit=False)  # W&B drops rows of steps before the last one

    def end(self) -> None:
        self._run.finish()


class TrackioLog(Service):
    """A run of trackio, local unless TRACKIO_SPACE_ID names a Space of the hub. Trackio identifies runs by name."""

    package, title, advice = "trackio", "trackio", "Leave TRACKIO_SPACE_ID empty to log on this machine."

    def start(self, project: str, run_id: str, name: str, config: dict[str, Any]) -> str:
        run_id = run_id or f"{name}-{secrets.token_hex(3)}"
        self._module.init(project=project, name=run_id, resume="allow", config=config, embed=False)
        return run_id

    def log(self, step: int, row: dict[str, Any]) -> None:
        self._module.log(row, step=step)

    def log_table(self, columns: dict[str, list]) -> None:
        table = self._module.Table(columns=list(columns), data=list(map(list, zip(*columns.values(), strict=True))))
        self._module.log({"samples": table}, step=columns["step"][0])

    def end(self) -> None:
        self._module.finish()


class MlflowLog(Service):
    """A run of MLflow, at MLFLOW_TRACKING_URI or in the local store; settings are its parameters."""

    package, title, advice = "mlflow", "MLflow", "Check MLFLOW_TRACKING_URI."

    def start(self, project: str, run_id: str, name: str, config: dict[str, Any]) -> str:
        self._module.set_experiment(project)
        run = self._module.start_run(**({"run_id": run_id} if run_id else {"run_name": name}))
        if not run_id:
            self._module.log_params({
                f"{section}.{field}": str(value)[:MLFLOW_LETTERS]
                for section, fields in config.items() if isinstance(fields, dict) for field, value in fields.items()
            })  # fmt: skip
        return run.info.run_id

    def log(self, step: int, row: dict[str, Any]) -> None:
        self._module.log_metrics({name: float(value) for name, value in row.items() if name != "step"}, step=step)

    def log_table(self, columns: dict[str, list]) -> None:
        self._module.log_table(data=columns, artifact_file="samples.json")  # appended to what is there

    def end(self) -> None:
        self._module.end_run()


@contextlib.contextmanager
def without_input() -> Iterator[None]:
    """Replace standard input by an empty file, so that a library raises instead of waiting for an answer."""
    before = sys.stdin
    with open(os.devnull) as empty:
        sys.stdin = empty
        try:
            yield
        finally:
            sys.stdin = before


Tracker = TensorBoardLog | Service
SERVICES: dict[str, type[Service]] = {"wandb": WandbLog, "trackio": TrackioLog, "mlflow": MlflowLog}
"""Name of a service and of its setting in section log -> its tracker."""


def projects_of(log: LogConfig) -> dict[str, Any]:
    """Service -> project, "" if it is off."""
    return {"wandb": log.wandb, "trackio": log.trackio, "mlflow": log.mlflow}


def make_trackers(
    paths: WorkDir, resume_step: int, tensorboard: bool, projects: Mapping[str, str], config: str
) -> list[Tracker]:
    """The trackers of a run; arguments as in MetricWriter."""
    trackers: list[Tracker] = [TensorBoardLog(paths.tensorboard, resume_step)] if tensorboard else []
    named = {name: project for name, project in projects.items() if project}
    return trackers + [SERVICES[name](project, paths.root, config, resume_step) for name, project in named.items()]
