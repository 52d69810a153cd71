"""What a run says: metrics.jsonl, samples/, TensorBoard, console lines, phase times.

In:  one dict of scalars a step, sample rows, phases that want to be timed.
Out: `W/metrics.jsonl` with exactly one object a step, `W/evaluations.jsonl`, `W/samples/step_<n>.jsonl`,
`W/tensorboard/`, W&B where asked, and a live panel on a terminal or one plain line a step (pbrl_jax.logs.live). A
resumed run continues the same files.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import rich
from etils import epath
from rich.console import Console
from rich.text import Text

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import append_json_lines, is_remote, work_dir, write_atomic, write_json_lines
from pbrl_jax.logs.live import LiveView, Pace, evaluation_line, plain_line
from pbrl_jax.mesh import watch

SAMPLE_FIELDS = ("step", "prompt_id", "language", "prompt", "completion", "reference", "reward", "parts", "valid")
"""Fields of a row in samples/step_<n>.jsonl."""

MORE_SAMPLE_FIELDS = ("translation",)
"""Fields that a row may have too: the English translation of the completion, where a reward made one."""

REMOTE_FLUSH_SECONDS = 60.0
"""Objects of a bucket are rewritten whole for every append, so remote rows are gathered for this long."""


def plain_scalars(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics as Python numbers, booleans and strings; one transfer for all device arrays.

    Raises:
      ValueError: a value is not a scalar.
    """
    host = jax.device_get(dict(metrics))
    return {name: value if isinstance(value, str) else _scalar(name, value) for name, value in host.items()}


def _scalar(name: str, value: Any) -> Any:
    array = np.asarray(value)
    if array.size != 1 or array.dtype == object:
        raise ValueError(f"Metric {name!r} is {type(value).__name__} of shape {array.shape}; expected one number.")
    return array.reshape(()).item()


def kept_lines(text: str, resume_step: int) -> tuple[list[str], int]:
    """The lines of a metrics file that a run resumed at `resume_step` keeps, and how many it drops.

    Kept are readable rows with `step <= resume_step`; of two rows of one step the later. Unreadable is, above all, a
    last line that the end of the process tore.
    """
    by_step: dict[int, str] = {}
    lines = [line for line in text.split("\n") if line]
    for line in lines:
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            continue
        if step <= resume_step:
            by_step[step] = line
    return [line + "\n" for line in by_step.values()], len(lines) - len(by_step)


def _cannot_write(what: str, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"Cannot write {what}: {error.strerror or error}. Free space there and run the same command again; it goes on "
        "from the last checkpoint."
    )


class MetricWriter:
    """Writes one row a step to metrics.jsonl, the console and, when asked, TensorBoard.

    Args:
      workdir: the work directory, local or remote (`gs://`); made where it does not exist.
      resume_step: last step that the loaded checkpoint contains, 0 for a new run. Later rows are dropped.
      max_steps: for the console line (`step 3/100`); 0 leaves it out.
      tensorboard: also write event files to `W/tensorboard`.
      active: False writes nothing; for all processes of a run but the first.
      quiet: no console line a step (a progress bar tells the same).
      console: where lines go; rich's shared console by default, which prints above a live progress bar.
      live: title of a live panel that stands in the place of the lines where the console is a terminal; "": lines.
      wandb: W&B project that gets the rows too; "" is off.
      config: JSON of the resolved config, for W&B.
    """

    def __init__(
        self,
        workdir: Any,
        *,
        resume_step: int = 0,
        max_steps: int = 0,
        tensorboard: bool = False,
        active: bool = True,
        quiet: bool = False,
        console: Console | None = None,
        live: str = "",
        wandb: str = "",
        config: str = "{}",
    ):
        paths = work_dir(workdir)
        self.path, self.evaluations = paths.metrics, paths.evaluations
        self.console = console or rich.get_console()
        self.max_steps = max_steps
        self.last_step = resume_step
        self.active = active
        self.quiet = quiet
        self._waiting: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()
        self._tensorboard = self._wandb = self._view = None
        self._pace = Pace(max_steps)
        self._later: ThreadPoolExecutor | None = None
        self._pending: list[Future] = []
        if not active:
            return
        self._repair(self.path, resume_step)
        if self.evaluations.exists() and resume_step:
            self._repair(self.evaluations, resume_step)
        else:
            self.evaluations.unlink(missing_ok=True)
        if tensorboard:
            from tensorboardX import SummaryWriter  # slow to import, and not every run wants it

            first = resume_step + 1 if resume_step else None
            self._tensorboard = SummaryWriter(str(paths.tensorboard), purge_step=first)
        if wandb:
            from pbrl_jax.logs.wandb_log import WandbLog

            self._wandb = WandbLog(wandb, paths.root, config)
        if live and not quiet and self.console.is_terminal:
            self._view = LiveView(live, self._pace, self.console)

    def _repair(self, path: epath.Path, resume_step: int) -> None:
        before = path.read_bytes().decode(errors="replace") if path.exists() else ""
        kept, dropped = kept_lines(before, resume_step)
        if dropped:
            self.say(f"{path.name}: dropped {dropped} lines that were unreadable or later than step {resume_step}")
        if "".join(kept) != before or not path.exists():
            write_atomic(path, "".join(kept))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the row of one step.

        Args:
          step: the optimizer step; larger than that of the row before.
          metrics: name -> number, NumPy or JAX scalar, or string. Names containing "/" group in TensorBoard.

        Raises:
          ValueError: the step was written before, or a value is not a scalar.
          CheckpointError: the disk is full.
        """
        if step <= self.last_step:
            raise ValueError(f"Step {step} comes after step {self.last_step}: a step has exactly one row.")
        self.last_step = step
        if not self.active:
            return
        row = {"step": step, **plain_scalars(metrics)}
        self._waiting.append(row)
        if not is_remote(self.path) or time.monotonic() - self._flushed_at > REMOTE_FLUSH_SECONDS:
            self._append_waiting()
        self._track(step, row)
        self._pace.add(row)
        if self._view is not None:
            self._view.update(row)
        elif not self.quiet:
            self.console.print(plain_line(row, self._pace), highlight=False, soft_wrap=True)

    def reopen(self, step: int) -> None:
        """Takes back the row of the last step, which is to be written again with more in it."""
        self.last_step = step - 1
        if self.active:
            self._append_waiting()
            kept, _ = kept_lines(self.path.read_bytes().decode(), step - 1)
            write_atomic(self.path, "".join(kept))

    def _track(self, step: int, row: Mapping[str, Any]) -> None:
        if self._tensorboard is not None:
            for name, value in row.items():
                if name != "step" and not isinstance(value, str):
                    self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.write(step, row)

    def write_evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A row of W/evaluations.jsonl, and a line; step 0 is the evaluation before the first step."""
        if not self.active:
            return
        row = {"step": step, **plain_scalars(metrics)}
        try:
            append_json_lines(self.evaluations, [row])
        except OSError as error:
            raise _cannot_write(str(self.evaluations), error) from error
        if step == 0:
            self._track(step, row)
        line = evaluation_line(step, row)
        if self._view is not None:
            self._view.update({name: value for name, value in row.items() if name != "step"})
        if line is not None and not self.quiet:
            self.console.print(line, highlight=False, soft_wrap=True)

    def later(self, function: Callable, *arguments: Any) -> None:
        """Runs `function(*arguments)` in a thread, one after the other, so that a slow disk delays no step.

        What one raises is raised by the next call, by flush or by close.
        """
        if not self.active:
            return
        if self._later is None:
            self._later = ThreadPoolExecutor(max_workers=1, thread_name_prefix="samples")
        self._collect(wait=False)
        self._pending.append(self._later.submit(function, *arguments))

    def _collect(self, wait: bool) -> None:
        """Raises what a finished function raised; with `wait` all are finished."""
        done = [future for future in self._pending if wait or future.done()]
        self._pending = [future for future in self._pending if future not in done]
        for future in done:
            try:
                future.result()
            except OSError as error:
                raise _cannot_write("samples", error) from error

    def _append_waiting(self) -> None:
        try:
            append_json_lines(self.path, self._waiting)
        except OSError as error:
            raise _cannot_write(str(self.path), error) from error
        self._waiting, self._flushed_at = [], time.monotonic()

    def say(self, message: str) -> None:
        """One line on the console."""
        if self.active:
            self.console.print(Text(message), highlight=False, soft_wrap=True)

    def flush(self) -> None:
        """Makes the rows written so far durable.

        Call it, with the row of the step written, before the step's checkpoint is saved: a resumed run writes only the
        later rows.
        """
        if not self.active:
            return
        self._append_waiting()
        self._collect(wait=True)
        if not is_remote(self.path):
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flushes, and writes nothing any more."""
        try:
            self.flush()
        finally:
            if self._view is not None:
                self._view.__exit__()
            if self._later is not None:
                self._later.shutdown()
            for tracker in (self._tensorboard, self._wandb):
                if tracker is not None:
                    tracker.close()
            self.active, self._tensorboard, self._wandb, self._view = False, None, None, None

    def __enter__(self) -> "MetricWriter":
        if self._view is not None:
            self._view.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self.close()


def round_robin(rows: Sequence[Mapping[str, Any]], count: int, turn: int = 0) -> list[Mapping[str, Any]]:
    """At most `count` rows, taking one of each language in turn, in the order of the rows.

    `turn` rotates which language comes first, so that over the steps all are seen even where `count` is smaller than
    the number of languages.
    """
    queues: dict[str, list] = {}
    for row in rows:
        queues.setdefault(row["language"], []).append(row)
    order = sorted(queues)
    order = order[turn % len(order) :] + order[: turn % len(order)] if order else []
    chosen: list[Mapping[str, Any]] = []
    depth = 0
    while len(chosen) < min(count, len(rows)):
        chosen.extend(queues[language][depth] for language in order if depth < len(queues[language]))
        depth += 1
    return chosen[:count]


def write_samples(workdir: Any, step: int, rows: Sequence[Mapping[str, Any]], count: int) -> None:
    """Writes `W/samples/step_<step>.jsonl`: at most `count` rows, round-robin over languages; none where count is 0.

    Args:
      rows: one mapping a response with the fields SAMPLE_FIELDS; `parts` maps a reward's name to its value.

    Raises:
      ValueError: a row lacks a field, or has another one.
    """
    if count <= 0 or not rows:
        return
    for row in rows:
        if set(row) - set(MORE_SAMPLE_FIELDS) != set(SAMPLE_FIELDS):
            raise ValueError(f"A sample row has the fields {sorted(row)}; expected {sorted(SAMPLE_FIELDS)}.")
    names = (*SAMPLE_FIELDS, *MORE_SAMPLE_FIELDS)
    chosen = [{name: row[name] for name in names if name in row} for row in round_robin(rows, count, turn=step)]
    write_json_lines(work_dir(workdir).samples_of(step), chosen)


class PhaseTimer:
    """Seconds spent in the named phases of one step.

    A value that is made for a step and passed along, so that nothing is shared between steps:

      timer = PhaseTimer()
      with timer.phase("generate"):
          ...
      writer.write(step, metrics | timer.metrics())
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.seconds: dict[str, float] = {}
        self._clock = clock

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside the block to `name`; a phase may be entered more than once, or left by an error."""
        start = self._clock()
        try:
            with watch.phase(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - start

    def metrics(self) -> dict[str, float]:
        """`{"time/<phase>": seconds}`."""
        return {f"time/{name}": seconds for name, seconds in self.seconds.items()}
