"""Means of metrics over the steps between two rows of the log."""

from collections.abc import Mapping
from typing import Any

LAST = ("learning_rate", "beta", "skipped_updates", "empty_updates")
"""Metrics of which a row has the last step's value: settings that change over time and counters of the whole run."""


class MetricWindow:
    """Sums of the metrics of the steps since the last row.

    Args:
      saved: result of `saved()` from a checkpoint.
    """

    def __init__(self, saved: Mapping[str, list] | None = None):
        self._sums: dict[str, tuple[Any, int]] = {
            name: (float(total), count) for name, (total, count) in (saved or {}).items()
        }

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds the metrics of one step: numbers (or NumPy scalars) and strings."""
        for name, value in metrics.items():
            value = value if isinstance(value, str) else value.item() if hasattr(value, "item") else value
            total, count = self._sums.get(name, (0, 0))
            replaces = name in LAST or isinstance(value, str)
            self._sums[name] = (value, 1) if replaces else (value if count == 0 else total + value, count + 1)

    def take(self) -> dict[str, Any]:
        """The row, after which the window is empty: the mean of each metric over the steps that have it; for `LAST` and
        strings the last value."""
        row = {name: total if count == 1 else total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return row

    def saved(self) -> dict[str, list]:
        """The window as JSON for a checkpoint, without strings. Numbers are text, since JSON has no NaN."""
        numbers = {name: pair for name, pair in self._sums.items() if not isinstance(pair[0], str)}
        return {name: [repr(float(total)), count] for name, (total, count) in numbers.items()}
