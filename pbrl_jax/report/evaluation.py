"""The report's tables of `pbrl eval` and `pbrl audit`: accuracies, gains, attacks, contamination."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pbrl_jax.report.html import (
    language_name,
    named_language,
    paragraph,
    percent,
    points,
    section,
    short_number,
    span,
    table,
)

COLUMNS = (
    ("extraction_failures", "no answer"),
    ("marker_missing", "not announced"),
    ("truncated", "truncated"),
    ("right_language", "right language"),
    ("line_pass_rate", "lines pass"),
    ("word_pass_rate", "words pass"),
    ("code_switch_share", "code switch"),
)
"""(name in eval.json, heading) of the shares that have a column if they were measured."""
LENGTHS = (("mean_tokens", "tokens"), ("mean_characters", "characters"))
"""(name in eval.json, heading) of the mean lengths of responses."""
SAMPLED = ("pass@", "mean@", "maj@")
"""Prefixes of metrics of several samples."""
MEANS = (("mean", "all languages"), ("seen", "seen in training, without English"), ("unseen", "unseen in training"))
"""(name in eval.json, languages of the mean)."""
INTERVAL = "95\u00a0% interval"
WEAK = 0.95
"""AUCs below this are marked."""


def _interval(record: Mapping[str, Any]) -> str:
    return span("soft", f"{100 * record['low']:.1f} to {100 * record['high']:.1f}")


def numbers_section(result: Mapping[str, Any]) -> str:
    """The table of languages in eval.json, and of means; "" without an evaluation."""
    if not result.get("languages"):
        return ""
    rows = list(result["languages"].values())
    shares, lengths = (
        [(name, head) for name, head in columns if any(row.get(name) is not None for row in rows)]
        for columns in (COLUMNS, LENGTHS)
    )
    published = list(dict.fromkeys(name for row in rows for name in row.get("published") or ()))
    sampled = [name for name in rows[0] if name.startswith(SAMPLED)]
    header = ["language", "accuracy", INTERVAL, "problems", *(name.replace("_", " ") for name in published)]
    header += [*sampled, *(head for _, head in (*shares, *lengths))]
    body = []
    for code, row in result["languages"].items():
        cells = [named_language(code), percent(row["accuracy"]), _interval(row), escape(str(row["n"]))]
        cells += [percent((row.get("published") or {}).get(name)) for name in published]
        cells += [percent(row.get(name)) for name in (*sampled, *(name for name, _ in shares))]
        body.append(cells + ["–" if row.get(n) is None else short_number(row[n]) for n, _ in lengths])
    note = "Accuracy is ours; lm eval and others are published gradings of the same responses. Lengths are means."
    means = table(("mean of", "accuracy", INTERVAL), _means(result))
    return section("The numbers", note, table(header, body) + means)


def _means(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    if result.get("mean_non_english") is not None:
        ends = result.get("mean_non_english_interval")
        interval = _interval({"low": ends[0], "high": ends[1]}) if ends else ""
        rows.append(["all languages but English", percent(result["mean_non_english"]), interval])
    for name, title in MEANS:
        mean = result.get(name)
        if isinstance(mean, Mapping):
            listed = span("soft", ", ".join(mean["languages"]))
            rows.append([f"{title} {listed}", percent(mean["accuracy"]), _interval(mean)])
        elif mean is not None:
            rows.append([title, percent(mean), ""])
    worst = result.get("worst_language")
    if worst:
        rows.append([f"worst language, {escape(language_name(worst['language']))}", percent(worst["accuracy"]), ""])
    return rows


def against_section(result: Mapping[str, Any]) -> str:
    """Gains over earlier evaluations of the same problems, in points and relative, with intervals and p-values."""
    header = ("language", "before", "now", "points", INTERVAL, "relative", "p, bootstrap", "p, McNemar")
    body = ""
    for label, compared in (result.get("against") or {}).items():
        rows = [[named_language(code), *_gain(row)] for code, row in compared["languages"].items()]
        mean = compared.get("mean_non_english")
        body += f"<h3>{escape(label)}</h3>" + table(header, rows, ["all but English", *_gain(mean)] if mean else ())
        if compared.get("english_retention") is not None:
            body += paragraph(f"English keeps {percent(compared['english_retention'])} of its accuracy.")
    note = "Paired over the same problems. A change in grey may be chance: its interval contains 0."
    return section("Gain over earlier evaluations", note, body) if body else ""


def _gain(row: Mapping[str, Any]) -> Sequence[str]:
    significant = row["low"] > 0 or row["high"] < 0
    kind = ("up" if row["points"] > 0 else "down") if significant else "soft"
    relative = "–" if row["relative"] is None else f"{points(row['relative'])}\u00a0%"
    mcnemar = "–" if row["p_mcnemar"] is None else _p_value(row["p_mcnemar"])
    interval = span("soft", f"{points(row['low'])} to {points(row['high'])}")
    before, now = percent(row["base"]), percent(row["base"] + row["points"])
    return before, now, span(kind, points(row["points"])), interval, relative, _p_value(row["p_bootstrap"]), mcnemar


def _p_value(value: float) -> str:
    return "&lt;\u00a00.001" if value < 0.001 else f"{value:.3f}"


def audit_section(audit: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A table of attacks and languages for each audited reward; "" without an audit."""
    body = ""
    for title, by_language in audit.items():
        codes = list(by_language)
        attacks = dict.fromkeys(name for row in by_language.values() for name in row)
        rows = [
            [escape(name.replace("_", " ").replace("/", ", ")), *(_auc(by_language[c].get(name)) for c in codes)]
            for name in attacks
        ]
        worst = ["worst", *(_auc(min(by_language[code].values(), default=None)) for code in codes)]
        body += f"<h3>{escape(title.capitalize())}</h3>" + table(("attack", *codes), rows, worst)
    note = (
        "Share of problems in which the faithful reply scores above the attack; 0.5 is chance, below "
        f"{WEAK} is marked. Held out: templates and problems that no training saw."
    )
    return section("Can the reward be cheated?", note, body) if body else ""


def _auc(value: float | None) -> str:
    if value is None:
        return "–"
    return span("down", f"{value:.3f}") if value < WEAK else f"{value:.3f}"


def contamination_section(benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    """Overlap of the training text with benchmarks; "" if nothing was checked."""
    rows = []
    for name, record in benchmarks.items():
        if record.get("share") is None:
            rows.append([escape(name), "–", "–", escape(str(record.get("not_checked", "")))])
            continue
        languages = ", ".join(
            f"{language_name(c)} {percent(s)}" for c, s in (record.get("languages") or {}).items() if s
        )
        example = next((str(e.get("shared")) for e in record.get("examples") or ()), "")
        shown = escape(languages or "none") + (f"<br>{span('note', '“' + example + '”')}" if example else "")
        count = escape(f"{record.get('overlapping')} of {record.get('n', '–')}")
        rows.append([escape(name), count, percent(record["share"]), shown])
    note = "Problems that share an n-gram of words (characters, in scripts without spaces) with the training text."
    body = table(("benchmark", "problems", "share", "where"), rows)
    return section("Does the training text contain the test?", note, body) if rows else ""
