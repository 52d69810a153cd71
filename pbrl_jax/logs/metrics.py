"""The metrics of a run: metrics.jsonl, evaluations.jsonl, trackers, console lines, phase times.

In:  one dict of scalars per step or evaluation.
Out: `W/metrics.jsonl` with exactly one object per step, `W/evaluations.jsonl`, TensorBoard and tracking services
(logs.trackers), and a live panel or one plain line per step (logs.live). A resumed run continues the same files.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import rich
from etils import epath
from rich.console import Console
from rich.text import Text

from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import append_json_lines, is_remote, parse_json, work_dir, write_atomic, write_json_lines
from pbrl_jax.logs.live import LiveView, Pace, evaluation_line, plain_line
from pbrl_jax.logs.trackers import Tracker, make_trackers
from pbrl_jax.mesh import watch
from pbrl_jax.mesh.ahead import waited_seconds

REMOTE_FLUSH_SECONDS = 60.0
"""Time for which remote rows are buffered, since appending to an object in a bucket rewrites it."""


def plain_scalars(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics as Python numbers, booleans and strings, with one transfer for all device arrays.

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
    """The lines of a metrics file that a run resumed at `resume_step` keeps, and the number of dropped lines.

    It keeps readable rows with `step <= resume_step`, and the later of two rows of one step. An unreadable line is
    usually the last one, left incomplete by a killed process.
    """
    by_step: dict[int, str] = {}
    lines = [line for line in text.split("\n") if line]
    for line in lines:
        try:
            step = parse_json(line)["step"]
        except (ValueError, TypeError, KeyError):
            continue
        if type(step) is int and step <= resume_step:
            by_step[step] = line
    return [line + "\n" for line in by_step.values()], len(lines) - len(by_step)


def _cannot_write(what: str, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"Cannot write {what}: {error.strerror or error}. Free space there and run the same command again; it "
        "continues from the last checkpoint."
    )


class MetricWriter:
    """Writes one row per step to metrics.jsonl, the console and the trackers.

    Args:
      workdir: the work directory, local or remote (`gs://`); created if it does not exist.
      resume_step: step of the loaded checkpoint, 0 for a new run. Later rows are dropped.
      max_steps: for the console line (`step 3/100`); 0 omits it.
      tensorboard: also write event files to `W/tensorboard`.
      active: False writes nothing; for all processes of a run but the first.
      quiet: no console line per step, if there is a progress bar.
      console: default: rich's shared console, which prints above a live progress bar.
      live: title of a live panel, which replaces the lines if the console is a terminal; "": lines.
      config: JSON of the resolved config, for the services.
      projects: project in each service of logs.trackers.SERVICES; "": off.
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
        config: str = "{}",
        **projects: str,
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
        self._trackers: list[Tracker] = []
        self._view: LiveView | None = None
        self._pace = Pace(max_steps)
        self._thread: ThreadPoolExecutor | None = None
        self._pending: list[Future] = []
        if not active:
            return
        self._repair(self.path, resume_step)
        if self.evaluations.exists() and resume_step:
            self._repair(self.evaluations, resume_step)
        else:
            self.evaluations.unlink(missing_ok=True)
        self._trackers = make_trackers(paths, resume_step, tensorboard, projects, config)
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
          step: the optimizer step; larger than that of the previous row.
          metrics: name -> number, NumPy or JAX scalar, or string. Names containing "/" group in TensorBoard.

        Raises:
          ValueError: the step was already written, or a value is not a scalar.
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

    def extend(self, metrics: Mapping[str, Any]) -> None:
        """Adds metrics to the row of the last step; trackers, which have the row, get these alone."""
        if not self.active:
            return
        self._append_waiting()
        new, step = plain_scalars(metrics), self.last_step
        rows = [parse_json(line) for line in kept_lines(self.path.read_bytes().decode(), step)[0]]
        old = rows.pop() if rows and rows[-1]["step"] == step else {}
        write_json_lines(self.path, [*rows, {"step": step} | dict(sorted((old | new).items()))])
        self._track(step, new)

    def _track(self, step: int, row: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.write(step, row)

    def write_evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes a row to W/evaluations.jsonl and prints a line; step 0 is the evaluation before the first step."""
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
        """Runs `function(*arguments)` in a single background thread, so that a slow disk delays no step.

        Its exception is raised by the next call of this method, flush or close; rows that it returns then go to
        trackers that take tables.
        """
        if not self.active:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="samples")
        self._collect(wait=False)
        self._pending.append(self._thread.submit(function, *arguments))

    def _collect(self, wait: bool) -> None:
        """Raises exceptions of finished background functions; `wait`: after waiting for all."""
        done = [future for future in self._pending if wait or future.done()]
        self._pending = [future for future in self._pending if future not in done]
        for future in done:
            try:
                rows = future.result()
            except OSError as error:
                raise _cannot_write("samples", error) from error
            for tracker in self._trackers if rows else ():
                tracker.table(rows)

    def _append_waiting(self) -> None:
        try:
            append_json_lines(self.path, self._waiting)
        except OSError as error:
            raise _cannot_write(str(self.path), error) from error
        self._waiting, self._flushed_at = [], time.monotonic()

    def say(self, message: str) -> None:
        """Prints one line on the console."""
        if self.active:
            self.console.print(Text(visible(message)), highlight=False, soft_wrap=True)

    def flush(self) -> None:
        """Makes the rows written so far durable.

        Call it after writing a step's row and before saving its checkpoint, since a resumed run writes only later rows.
        """
        if not self.active:
            return
        self._append_waiting()
        self._collect(wait=True)
        if not is_remote(self.path):
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Flushes and closes; later calls write nothing."""
        try:
            self.flush()
        finally:
            if self._view is not None:
                self._view.__exit__()
            if self._thread is not None:
                self._thread.shutdown()
            for tracker in self._trackers:
                tracker.close()
            self.active, self._trackers, self._view = False, [], None

    def __enter__(self) -> "MetricWriter":
        if self._view is not None:
            self._view.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self.close()


class PhaseTimer:
    """Seconds spent in the named phases of one step. Each step has its own timer:

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
        """Adds the time inside the block to `name`; a phase may be entered several times, and may raise.

        Seconds that it waits for programs to be compiled (mesh.ahead) are added to the phase `compile` instead.
        """
        start, waited = self._clock(), waited_seconds()
        try:
            with watch.phase(name):
                yield
        finally:
            waited = waited_seconds() - waited
            spent = {name: self._clock() - start - waited} | ({"compile": waited} if waited else {})
            self.seconds |= {phase: self.seconds.get(phase, 0.0) + more for phase, more in spent.items()}

    def metrics(self) -> dict[str, float]:
        """`{"time/<phase>": seconds}`."""
        return {f"time/{name}": seconds for name, seconds in self.seconds.items()}
