"""The report's curves over training steps, of one run and of several compared runs."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from pbrl_jax.report.data import (
    ReportData,
    Series,
    end_means,
    evaluation_lines,
    gap_line,
    language_metrics,
    metric_names,
    pair,
    part_lines,
    problem_count,
    series_of,
)
from pbrl_jax.report.html import (
    card,
    folded,
    grid,
    named_language,
    paragraph,
    percent,
    points,
    section,
    short_number,
    span,
    table,
)
from pbrl_jax.report.plots import line_chart, lines_chart

CURVES = {
    "reward": ("Reward", "mean over the scored responses of a step"),
    "language/consistency": ("Right language", "share of responses in the language of their prompt"),
    "kl": ("KL to the reference", "how far the policy has moved from its start"),
    "completions/mean_length": ("Response length", "tokens, the end token included"),
    "entropy": ("Entropy", "nats per token; near 0 the policy no longer explores"),
    "loss": ("Loss", "of the clipped objective; its value does not measure progress"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "completions/clipped_ratio": ("Truncated responses", "share that reached the length limit"),
    "frac_reward_zero_std": ("Groups without a signal", "share whose samples all have the same reward"),
}
"""Metrics with their own chart -> (title, explanation)."""

ACCURACY_NOTE = "greedy, on the evaluation problems"


def _compared(name: str) -> tuple[str, str, Callable[[ReportData], Series]]:
    return *CURVES[name], lambda run: series_of(run.metrics, name)


COMPARED: tuple[tuple[str, str, Callable[[ReportData], Series]], ...] = (
    ("Accuracy outside English", ACCURACY_NOTE, lambda run: evaluation_lines(run).get("other languages", [])),
    ("Gap to English", "of accuracy if it was measured, else of the reward", lambda run: gap_line(run)[1]),
    *map(_compared, ("reward", "language/consistency", "completions/mean_length", "kl", "entropy")),
)
"""(title, explanation, run -> its line) of the charts with one line per run."""


def curve_section(data: ReportData) -> str:
    """The main curves, and all other curves in a folded part; "" without metrics."""
    if not data.metrics:
        return ""
    names = metric_names(data.metrics)
    languages = language_metrics(data.metrics, tuple(data.summary.get("languages") or ()))
    shown = {name for listed in languages.values() for name in listed} | set(CURVES)
    gap_of, gap = gap_line(data)
    curves = [_chart_card(f"curve-{i}", *CURVES[name], series_of(data.metrics, name)) for i, name in enumerate(CURVES)]
    main = [
        _lines_card("accuracy", "Accuracy", ACCURACY_NOTE, evaluation_lines(data)),
        _chart_card("gap", "Gap to English", f"English minus the mean of the others, in {gap_of}", gap),
        curves[0],
        _lines_card("parts", "Reward parts", "means over the scored responses", part_lines(data.metrics)),
        *curves[1:],
    ]
    others = [
        _chart_card(f"more-{index}", name, "", series_of(data.metrics, name))
        for index, name in enumerate(names)
        if name not in shown and not name.startswith(("time/", "eval/"))
    ]
    body = grid("charts", list(filter(None, main)))
    body += folded(f"All other metrics ({len(others)})", grid("charts", others)) if others else ""
    note = "Thin: single steps; thick: moving average; top right: means of the first and the last tenth."
    return section("Over the steps", note, body)


def _chart_card(key: str, title: str, note: str, series: Series) -> str:
    if not series:
        return ""
    start, end = end_means(series)
    change = span("soft", f"{short_number(start)} → {short_number(end)}")
    return card(escape(title), change, paragraph(note) + line_chart(key, title, series))


def _lines_card(key: str, title: str, note: str, lines: Mapping[str, Series]) -> str:
    return card(escape(title), "", paragraph(note) + lines_chart(key, title, lines)) if lines else ""


# Several runs.


def compare_section(runs: Mapping[str, ReportData]) -> str:
    """Tables and curves of all runs; "" for fewer than two."""
    if len(runs) < 2:
        return ""
    charts = []
    for index, (title, note, line_of) in enumerate(COMPARED):
        lines = {label: line for label, run in runs.items() if (line := line_of(run))}
        charts.append(_lines_card(f"compare-{index}", title, note, lines))
    return section(
        "Comparison of the runs",
        "The first run is shown in full below. Accuracies are those after training; lines are moving averages.",
        _outcomes(runs) + _languages(runs) + grid("charts", list(filter(None, charts))) + _settings(runs),
    )


def _outcomes(runs: Mapping[str, ReportData]) -> str:
    """Accuracies of each run, and the gain of the first run over each other run."""
    rows = []
    first = next(iter(runs))
    for label, run in runs.items():
        cells = []
        for name in ("mean_non_english", "en", "gap_to_english"):
            before, after = pair(run.summary, name)
            change = "" if before is None or after is None else " " + span("soft", points(after - before))
            cells.append(percent(after) + change)
        cells.append("" if label == first else _gain(runs[first].summary, run.summary))
        steps = str(run.metrics[-1].get("step", len(run.metrics))) if run.metrics else "–"
        rows.append([escape(label), *cells, escape(steps), escape(str(run.summary.get("benchmark", "–")))])
    return table(("run", "other languages", "English", "gap", f"gain of {first}", "steps", "benchmark"), rows)


def _gain(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Gain of the first run over another in the mean outside English, in points and relative; a dash if the languages
    differ."""
    mean, other_mean = pair(first, "mean_non_english")[1], pair(other, "mean_non_english")[1]
    if mean is None or not other_mean or set(first.get("languages") or {}) != set(other.get("languages") or {}):
        return "–"
    return f"{points(mean - other_mean)} {span('soft', points(mean / other_mean - 1) + ' %')}"


def _languages(runs: Mapping[str, ReportData]) -> str:
    """Accuracy of every language in every run; the best run of each language in bold."""
    codes = list(dict.fromkeys(code for run in runs.values() for code in run.summary.get("languages") or {}))
    rows = []
    for code in codes:
        shares = [pair(run.summary, code)[1] for run in runs.values()]
        counts = {count for run in runs.values() if (count := problem_count(run.summary, code)) is not None}
        best = max((share for share in shares if share is not None), default=None)
        cells = [f"<b>{percent(share)}</b>" if share == best is not None else percent(share) for share in shares]
        rows.append([named_language(code), *cells, escape(" / ".join(map(str, sorted(counts))))])
    return table(("language", *runs, "problems"), rows) if rows else ""


def _settings(runs: Mapping[str, ReportData]) -> str:
    """Settings that differ, and settings that only some of the configs have."""
    configs = [_flatten(run.config) for run in runs.values()]
    differ: list[list[str]] = []
    partial: list[list[str]] = []
    for name in dict.fromkeys(name for values in configs for name in values):
        values = [config.get(name) for config in configs]
        if len(set(values)) > 1:
            cells = ("–" if value is None else f"<code>{escape(value)}</code>" for value in values)
            (partial if None in values else differ).append([escape(name), *cells])
    return _setting_table("Settings that differ", runs, differ, " open") + _setting_table(
        "Settings that only some of these runs have", runs, partial
    )


def _setting_table(title: str, runs: Mapping[str, ReportData], rows: Sequence[Sequence[str]], state: str = "") -> str:
    return folded(f"{title} ({len(rows)})", table(("", *runs), rows), state) if rows else ""


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat
