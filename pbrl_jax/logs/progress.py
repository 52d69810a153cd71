"""Progress and remaining time of a stage: a rich bar on a terminal, else a plain line every few seconds."""

import time
from collections.abc import Callable

import rich
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from pbrl_jax.core.characters import visible


def duration(seconds: float) -> str:
    """`8 s`, `3 min 29 s` or `2 h 05 min`."""
    rounded = max(0, round(seconds))
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


class Progress:
    """Progress of one named stage.

      with Progress("train", total=150, unit="step", part=(5, 7)) as progress:
          for ...:
              progress.advance(note="reward 0.61")

    The remaining time is estimated from the steps after the first, which compiles.

    Args:
      stage: its name, in a word or two.
      total: steps of the stage; None if unknown.
      done: steps finished by an earlier run.
      unit: name of a step ("step", "batch", "prompt").
      part: (number of this stage, number of stages).
      console: default: rich's shared console.
      every_seconds: time between two plain lines.
      active: False shows nothing; for all processes of a run but the first.
      clock: returns seconds; replaced in tests.
    """

    def __init__(
        self,
        stage: str,
        total: int | None = None,
        *,
        done: int = 0,
        unit: str = "step",
        part: tuple[int, int] | None = None,
        console: Console | None = None,
        every_seconds: float = 5.0,
        active: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.title = f"[{part[0]}/{part[1]}] {stage}" if part else stage
        self.total, self.done, self.unit = total, done, unit
        self.console = console or rich.get_console()
        self.every_seconds, self.active, self._clock = every_seconds, active, clock
        self._started = self._last_line = clock()
        self._measured_from: tuple[int, float] | None = None
        self._bar: RichProgress | None = None
        self._note = ""

    def seconds_left(self) -> float | None:
        """Seconds until the end of the stage at the current pace; None while unknown."""
        if self.total is None or self._measured_from is None:
            return None
        done, since = self._measured_from
        if self.done <= done:
            return None
        return (self.total - self.done) * (self._clock() - since) / (self.done - done)

    def describe(self) -> str:
        """One line: the stage, its progress, the remaining time, and the last note."""
        units = self.unit if (self.total or self.done) == 1 else self.unit + "s"
        if self.total:
            text = f"{self.title}: {self.done} of {self.total} {units} ({100 * self.done // self.total} %)"
        else:
            text = f"{self.title}: {self.done} {units}"
        left = self.seconds_left()
        if left is not None and self.total and self.done < self.total:
            text += f", {duration(left)} left"
        else:
            text += f", {duration(self._clock() - self._started)} so far"
        return visible(f"{text}, {self._note}" if self._note else text)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished steps; `note` (for example a metric) is shown until the next note."""
        self.done += count
        self._note = note or self._note
        now = self._clock()
        if self._measured_from is None:
            self._measured_from = (self.done, now)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, text=self.describe())
        elif self.active and now - self._last_line >= self.every_seconds:
            self._last_line = now
            self._print(self.describe())

    def _print(self, text: str) -> None:
        self.console.print(Text(text), highlight=False, soft_wrap=True)

    def __enter__(self) -> "Progress":
        self._started = self._last_line = self._clock()
        if not self.active:
            return self
        if self.console.is_terminal:
            columns = (BarColumn(bar_width=24), TextColumn("{task.fields[text]}", markup=False))
            self._bar = RichProgress(*columns, console=self.console, transient=True)
            self._bar.add_task("", total=self.total, completed=self.done, text=self.describe())
            self._bar.start()
        else:
            self._print(f"{self.title}: started{self._goal()}")
        return self

    def _goal(self) -> str:
        if self.total is None:
            return ""
        left = self.total - self.done
        return f", {left} {self.unit if left == 1 else self.unit + 's'} to do"

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self.active:
            state = "done" if kind is None else "stopped"
            self._print(f"{self.title}: {state} after {duration(self._clock() - self._started)}")
