"""Console output of a training run: a live panel on a terminal, else one plain line per step.

It shows step, reward, accuracy per language, tokens per second and the remaining time.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pbrl_jax.core.characters import visible
from pbrl_jax.logs.progress import duration

LINE_METRICS = ("reward", "loss", "kl", "completions/mean_length", "grad_norm", "step_time")
"""Metrics of a plain line, in this order."""
PANEL_METRICS = {
    "reward": "reward", "reward_std": "reward spread", "language/consistency": "right language", "kl": "KL",
    "entropy": "entropy", "completions/mean_length": "length", "completions/clipped_ratio": "truncated",
    "loss": "loss", "grad_norm": "gradient norm",
}  # fmt: skip
"""Metrics of the panel -> label."""
PER_LANGUAGE = {"eval/accuracy/": "accuracy", "language/consistency/": "right language"}
"""Columns of the panel's table of languages: metric -> heading."""
PACE = 20
"""Number of recent steps from whose times the remaining time is estimated."""


class Pace:
    """Estimate of the remaining time from the rows of a run."""

    def __init__(self, max_steps: int):
        self.max_steps = max_steps
        self._seconds: deque[float] = deque(maxlen=PACE)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the row of a step."""
        if isinstance(row.get("step_time"), int | float):
            self._seconds.append(row["step_time"])

    def left(self, step: int) -> str:
        """The remaining time, such as `3 min 20 s`; "" before the second step, since the first one compiles."""
        if not self.max_steps or len(self._seconds) < 2 or step >= self.max_steps:
            return ""
        usual = sorted(self._seconds)[:-1]  # without the slowest step, which compiled, saved or evaluated
        return duration((self.max_steps - step) * sum(usual) / len(usual))


def tokens_a_second(row: Mapping[str, Any]) -> float | None:
    """Response tokens per second of a step; None if the row lacks tokens or time."""
    tokens, seconds = row.get("num_tokens"), row.get("step_time")
    return tokens / seconds if isinstance(tokens, int | float) and seconds else None


def plain_line(row: Mapping[str, Any], pace: Pace) -> Text:
    """The console line of a step."""
    limit = f"/{pace.max_steps}" if pace.max_steps else ""
    line = Text(f"step {row['step']}{limit}", style="bold")
    for name in LINE_METRICS:
        if isinstance(row.get(name), int | float):
            _append(line, name.rsplit("/", 1)[-1], f"{row[name]:.4g}")
    speed, left = tokens_a_second(row), pace.left(row["step"])
    if speed is not None:
        _append(line, "tokens/s", f"{speed:.0f}")
    if left:
        _append(line, "left", left)
    return line


def _append(line: Text, name: str, value: str) -> None:
    line.append(f"  {name} ", style="dim not bold")
    line.append(value, style="not bold")


def evaluation_line(step: int, metrics: Mapping[str, Any]) -> Text | None:
    """The console line of an evaluation; None if it has no accuracies."""
    accuracies = {name: value for name, value in metrics.items() if name.startswith("eval/accuracy/")}
    if not accuracies:
        return None
    line = Text(f"evaluation at step {step}", style="bold")
    for name, value in accuracies.items():
        _append(line, name.rpartition("/")[2], f"{100 * value:.1f}")
    mean = metrics.get("eval/mean_non_english")
    return line if mean is None else line.append(f"  mean without en {100 * mean:.1f}", style="not bold")


class LiveView:
    """A panel at the bottom of the terminal with the newest row of a run; a context manager.

    Args:
      title: title of the panel.
      pace: of the run.
      console: a terminal.
    """

    def __init__(self, title: str, pace: Pace, console: Console):
        self.title, self.pace = title, pace
        self._languages: dict[str, dict[str, float]] = {}
        self._row: dict[str, Any] = {}
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self.panel)

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self._live.stop()

    def update(self, row: Mapping[str, Any]) -> None:
        """Show the row of a step or an evaluation; metrics that it lacks keep their last value."""
        self._row |= row
        for name, value in row.items():
            group, _, code = name.rpartition("/")
            if group + "/" in PER_LANGUAGE and isinstance(value, int | float):
                self._languages.setdefault(code, {})[PER_LANGUAGE[group + "/"]] = value

    def panel(self) -> Panel:
        """The current panel."""
        step, max_steps = self._row.get("step", 0), self.pace.max_steps
        head = Table.grid(padding=(0, 2))
        speed, left = tokens_a_second(self._row), self.pace.left(step)
        facts = [f"step {step}" + (f" of {max_steps}" if max_steps else "")]
        facts += [f"{speed:.0f} tokens/s"] if speed is not None else []
        facts += [f"{left} left"] if left else ["the first step compiles"] if not self._row.get("step") else []
        head.add_row(ProgressBar(total=max_steps or None, completed=step, width=24), *facts)
        numbers = Table.grid(padding=(0, 2))
        for name, label in PANEL_METRICS.items():
            if isinstance(self._row.get(name), int | float):
                numbers.add_row(Text(label, style="dim"), f"{self._row[name]:.4g}")
        body = Table.grid(padding=(0, 6))
        body.add_row(numbers, self._language_table() if self._languages else "")
        return Panel(Group(head, Text(), body), title=Text(self.title), expand=False)

    def _language_table(self) -> Table:
        columns = [c for c in PER_LANGUAGE.values() if any(c in values for values in self._languages.values())]
        table = Table(box=None, padding=(0, 1))
        for column in ("", *columns):
            table.add_column(column, justify="right")
        for code in sorted(self._languages):
            cells = (self._languages[code].get(column) for column in columns)
            table.add_row(
                Text(visible(code)), *(Text("" if c is None else f"{100 * c:.1f}", justify="right") for c in cells)
            )
        return table
