"""The report's section that puts several runs beside each other."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from pbrl_jax.report.curves import CURVES
from pbrl_jax.report.data import (
    ReportData,
    evaluation_lines,
    gap_line,
    pair,
    problem_count,
    series_of,
)
from pbrl_jax.report.html import card, grid, named_language, section, span, table
from pbrl_jax.report.plots import legend, lines_chart, percent, points

Series = Sequence[tuple[float, float]]


def _metric(name: str) -> Callable[[ReportData], Series]:
    return lambda run: series_of(run.metrics, name)


def _curve(name: str) -> tuple[str, str, Callable[[ReportData], Series]]:
    return *CURVES[name], _metric(name)


COMPARED: tuple[tuple[str, str, Callable[[ReportData], Series]], ...] = (
    ("Accuracy outside English", "greedy, on the evaluation problems",
     lambda run: evaluation_lines(run).get("other languages", [])),
    ("Gap to English", "of accuracy where it was measured, else of the reward", lambda run: gap_line(run)[1]),
    _curve("reward"), _curve("language/consistency"), _curve("completions/mean_length"), _curve("kl"),
    _curve("entropy"),
)  # fmt: skip
"""(title, what it is, run -> its line) of the pictures with one line a run."""


def compare_section(runs: Mapping[str, ReportData]) -> str:
    """Tables and curves of all runs; "" for fewer than two."""
    if len(runs) < 2:
        return ""
    return section(
        "The runs beside each other",
        "The first run is shown in full below. Accuracies are those after training; lines are moving averages.",
        _outcomes(runs) + _languages(runs) + grid("charts", _charts(runs)) + _settings(runs),
    )


def _outcomes(runs: Mapping[str, ReportData]) -> str:
    rows = []
    first = next(iter(runs))
    for label, run in runs.items():
        cells = []
        for name in ("mean_non_english", "en", "gap_to_english"):
            before, after = pair(run.summary, name)
            change = "" if before is None or after is None else " " + span("soft", points(after - before))
            cells.append(("–" if after is None else percent(after)) + change)
        cells.append("" if label == first else _gain(runs[first].summary, run.summary))
        steps = str(run.metrics[-1].get("step", len(run.metrics))) if run.metrics else "–"
        rows.append([escape(label), *cells, escape(steps), escape(str(run.summary.get("benchmark", "–")))])
    return table(("run", "other languages", "English", "gap", f"gain of {first}", "steps", "benchmark"), rows)


def _gain(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Points and relative gain of the first run over another in the mean outside English, of the same languages."""
    ends = [pair(summary, "mean_non_english")[1] for summary in (first, other)]
    same = set(first.get("languages") or {}) == set(other.get("languages") or {})
    if None in ends or not ends[1] or not same:
        return "–"
    return f"{points(ends[0] - ends[1])} {span('soft', points(ends[0] / ends[1] - 1) + ' %')}"


def _languages(runs: Mapping[str, ReportData]) -> str:
    """Accuracy of every language in every run, the best of each language in bold."""
    codes = list(dict.fromkeys(code for run in runs.values() for code in run.summary.get("languages") or {}))
    if not codes:
        return ""
    rows = []
    for code in codes:
        found = [(run.summary.get("languages") or {}).get(code, {}).get("after") for run in runs.values()]
        counts = {problem_count(run.summary, code) for run in runs.values()} - {None}
        best = max((value for value in found if value is not None), default=None)
        cells = ["–" if value is None else percent(value) for value in found]
        cells = [f"<b>{c}</b>" if v is not None and v == best else c for c, v in zip(cells, found, strict=True)]
        rows.append([named_language(code), *cells, escape(" / ".join(map(str, sorted(counts))))])
    return table(("language", *runs, "problems"), rows)


def _charts(runs: Mapping[str, ReportData]) -> list[str]:
    cards = []
    for index, (title, note, line_of) in enumerate(COMPARED):
        lines = {label: line for label, run in runs.items() if (line := line_of(run))}
        if lines:
            explained = f'<p class="note">{escape(note)}</p>'
            body = explained + legend(lines) + lines_chart(f"compare-{index}", title, lines)
            cards.append(card(escape(title), "", body))
    return cards


def _settings(runs: Mapping[str, ReportData]) -> str:
    """Settings that are not the same everywhere, and folded in, those that only some of the configs have."""
    flat = [_flat(run.config) for run in runs.values()]
    names = list(dict.fromkeys(name for values in flat for name in values))
    differ, partly = [], []
    for name in names:
        values = [each.get(name) for each in flat]
        if len(set(values)) > 1:
            cells = ("–" if value is None else f"<code>{escape(value)}</code>" for value in values)
            (partly if None in values else differ).append([escape(name), *cells])
    return _folded(" open", "Settings that differ", runs, differ) + _folded(
        "", "Settings that only some of these runs have", runs, partly
    )


def _folded(state: str, title: str, runs: Mapping[str, ReportData], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    return f"<details{state}><summary>{title} ({len(rows)})</summary>{table(('', *runs), rows)}</details>"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(value)
    return found
