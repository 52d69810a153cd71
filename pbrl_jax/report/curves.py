"""The report's curves over the training steps."""

from collections.abc import Mapping, Sequence
from html import escape

from pbrl_jax.report.data import (
    ReportData,
    end_means,
    evaluation_lines,
    gap_line,
    language_metrics,
    metric_names,
    part_lines,
    series_of,
)
from pbrl_jax.report.html import card, grid, section, span
from pbrl_jax.report.plots import legend, line_chart, lines_chart, short_number

CURVES = {
    "reward": ("Reward", "mean over the scored responses of a step"),
    "language/consistency": ("Right language", "share of responses in the language of their prompt"),
    "kl": ("KL to the reference", "how far the policy went from where it started"),
    "completions/mean_length": ("Response length", "tokens, the end token included"),
    "entropy": ("Entropy", "nats a token; near 0 the policy no longer explores"),
    "loss": ("Loss", "of the clipped objective; its size says little"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "completions/clipped_ratio": ("Truncated responses", "share that reached the length limit"),
    "frac_reward_zero_std": ("Groups without a signal", "share whose samples all have one reward"),
}
"""Metrics with a picture of their own: (title, what it is)."""


OF_EVALUATIONS = "eval/"
"""Metrics that are shown as accuracies and not one by one."""


def curve_section(data: ReportData) -> str:
    """The main curves, and all others behind a click; "" without metrics."""
    if not data.metrics:
        return ""
    names = metric_names(data.metrics)
    languages = language_metrics(data.metrics, tuple(data.summary.get("languages") or ()))
    shown = {name for listed in languages.values() for name in listed} | set(CURVES)
    gap_of, gap = gap_line(data)
    main = [
        _lines_card("accuracy", "Accuracy", "greedy, on the evaluation problems", evaluation_lines(data)),
        _chart_card("gap", "Gap to English", f"English less the mean of the others, in {gap_of}", gap),
        *(
            _chart_card(f"curve-{index}", *CURVES[name], series_of(data.metrics, name))
            for index, name in enumerate(CURVES)
        ),
    ]
    main.insert(3, _lines_card("parts", "Reward parts", "means over the scored responses", part_lines(data.metrics)))
    rest = [
        _chart_card(f"more-{index}", name, "", series_of(data.metrics, name))
        for index, name in enumerate(names)
        if name not in shown and not name.startswith(("time/", OF_EVALUATIONS))
    ]
    body = grid("charts", list(filter(None, main)))
    if rest:
        body += f"<details><summary>All other metrics ({len(rest)})</summary>{grid('charts', rest)}</details>"
    note = "Thin: single steps; thick: moving average; top right: mean of the first and of the last tenth."
    return section("Over the steps", note, body)


def _chart_card(key: str, title: str, note: str, series: Sequence[tuple[float, float]]) -> str:
    if not series:
        return ""
    start, end = end_means(series)
    change = span("soft", f"{short_number(start)} → {short_number(end)}")
    explained = f'<p class="note">{escape(note)}</p>' if note else ""
    return card(escape(title), change, explained + line_chart(key, title, series))


def _lines_card(key: str, title: str, note: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    if not lines:
        return ""
    explained = f'<p class="note">{escape(note)}</p>' if note else ""
    return card(escape(title), "", explained + legend(lines) + lines_chart(key, title, lines))
