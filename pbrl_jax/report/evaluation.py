"""The report's sections on `pbrl eval`: every number of a language, means over languages, and earlier evaluations."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pbrl_jax.report.data import language_name
from pbrl_jax.report.html import named_language, section, span, table
from pbrl_jax.report.plots import percent, points, short_number

COLUMNS = (
    ("extraction_failures", "no answer"),
    ("marker_missing", "not announced"),
    ("truncated", "truncated"),
    ("right_language", "right language"),
    ("line_pass_rate", "lines pass"),
    ("word_pass_rate", "words pass"),
    ("code_switch_share", "code switch"),
)
"""(name in eval.json, heading) of the shares of a language that have a column each, where they were measured."""
LENGTHS = (("mean_tokens", "tokens"), ("mean_characters", "characters"))
"""(name in eval.json, heading) of the lengths: means over the responses."""
SAMPLED = ("pass@", "mean@", "maj@")
"""Beginnings of the names of the metrics of several samples."""
MEANS = (("mean", "all languages"), ("seen", "seen in training, without English"), ("unseen", "unseen in training"))
"""(name in eval.json, what it is the mean of)."""


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _interval(low: float, high: float) -> str:
    return span("soft", f"{100 * low:.1f} to {100 * high:.1f}")


def numbers_section(result: Mapping[str, Any]) -> str:
    """What eval.json says of every language, and the means; "" without an evaluation."""
    if not result.get("languages"):
        return ""
    rows = list(result["languages"].values())
    shares = [(name, head) for name, head in COLUMNS if any(row.get(name) is not None for row in rows)]
    lengths = [(name, head) for name, head in LENGTHS if any(row.get(name) is not None for row in rows)]
    published = list(dict.fromkeys(name for row in rows for name in row.get("published", ())))
    sampled = [name for name in rows[0] if name.startswith(SAMPLED)]
    header = ["language", "accuracy", "95\u00a0% interval", "problems", *(name.replace("_", " ") for name in published)]
    header += [*sampled, *(head for _, head in (*shares, *lengths))]
    body = []
    for code, row in result["languages"].items():
        cells = [named_language(code), _percent(row["accuracy"]), _interval(row["low"], row["high"]), str(row["n"])]
        cells += [_percent(row.get("published", {}).get(name)) for name in published]
        cells += [_percent(row.get(name)) for name in (*sampled, *(name for name, _ in shares))]
        body.append(cells + ["–" if row.get(n) is None else short_number(row[n]) for n, _ in lengths])
    note = "Accuracy is ours; lm eval and the like are the published gradings of the same responses. Lengths are means."
    return section("The numbers", note, table(header, body) + table(("mean of", "accuracy", "95\u00a0% interval"),
                                                                    _means(result)))  # fmt: skip


def _means(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    if result.get("mean_non_english") is not None:
        between = _interval(*result["mean_non_english_interval"]) if result.get("mean_non_english_interval") else ""
        rows.append(["all languages but English", _percent(result["mean_non_english"]), between])
    for name, title in MEANS:
        found = result.get(name)
        if isinstance(found, Mapping):
            listed = ", ".join(found["languages"])
            text = f"{title} {span('soft', listed)}"
            rows.append([text, _percent(found["accuracy"]), _interval(found["low"], found["high"])])
        elif found is not None:
            rows.append([title, _percent(found), ""])
    worst = result.get("worst_language")
    if worst:
        rows.append([f"worst language, {escape(language_name(worst['language']))}", _percent(worst["accuracy"]), ""])
    return rows


def against_section(result: Mapping[str, Any]) -> str:
    """Gains over earlier evaluations of the same problems, in points and relative, and whether they are real."""
    against = result.get("against") or {}
    parts = []
    for label, found in against.items():
        rows = [[named_language(code), *_gain(row)] for code, row in found["languages"].items()]
        mean = found.get("mean_non_english")
        total = ["all but English", *_gain(mean)] if mean else ()
        parts.append(f"<h3>{escape(label)}</h3>")
        parts.append(table(("language", "before", "now", "points", "95\u00a0% interval", "relative", "p, bootstrap",
                            "p, McNemar"), rows, total))  # fmt: skip
        if found.get("english_retention") is not None:
            parts.append(f'<p class="note">English keeps {percent(found["english_retention"])} of its accuracy.</p>')
    if not parts:
        return ""
    note = "The same problems, pair by pair. A change in grey may be chance: its interval holds 0."
    return section("Gain over earlier evaluations", note, "".join(parts))


def _gain(row: Mapping[str, Any]) -> Sequence[str]:
    real = row["low"] > 0 or row["high"] < 0
    kind = ("up" if row["points"] > 0 else "down") if real else "soft"
    relative = "–" if row["relative"] is None else f"{points(row['relative'])}\u00a0%"
    mcnemar = "–" if row["p_mcnemar"] is None else _p(row["p_mcnemar"])
    return (
        percent(row["base"]), percent(row["base"] + row["points"]), span(kind, points(row["points"])),
        span("soft", f"{points(row['low'])} to {points(row['high'])}"), relative, _p(row["p_bootstrap"]), mcnemar,
    )  # fmt: skip


def _p(value: float) -> str:
    return "&lt;\u00a00.001" if value < 0.001 else f"{value:.3f}"
