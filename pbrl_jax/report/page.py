"""The HTML page of a report and its sections. All strings from files are escaped."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pbrl_jax.core.version import __version__
from pbrl_jax.logs.progress import duration
from pbrl_jax.report.curves import compare_section, curve_section
from pbrl_jax.report.data import (
    CONTROLS,
    ReportData,
    accuracy_intervals,
    end_means,
    interval_methods,
    language_metrics,
    mean_record,
    metric_names,
    order_languages,
    pair,
    problem_count,
    series_of,
)
from pbrl_jax.report.evaluation import against_section, audit_section, contamination_section, numbers_section
from pbrl_jax.report.html import (
    card,
    folded,
    grid,
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
from pbrl_jax.report.plots import accuracy_bars, sparkline
from pbrl_jax.report.samples import samples_section

STYLE, SCRIPT = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
"""Style sheet and script: light and dark by the system's setting, phone and desktop, nothing from the network."""


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {_source(SCRIPT)}; style-src-elem {_source(STYLE)}; "
    "style-src-attr 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)
"""Content security policy: the browser runs only this script and loads nothing, even if a string were not escaped."""

SHORT = {
    "language/consistency": "right language",
    "completions/clipped_ratio": "truncated",
    "eval/accuracy": "accuracy",
    "eval/right_language": "right language, greedy",
}
"""Metric of a language -> label of its curve; all are shares."""

REWARD_LABELS = {"mean": "reward", "std": "spread"}
"""Last part of a reward's metric -> label after the reward's name."""


def page(data: ReportData) -> str:
    """The HTML document."""
    sections = [
        _head_section(data),
        compare_section(data.runs),
        _language_section(data),
        against_section(data.evaluation),
        numbers_section(data.evaluation),
        curve_section(data),
        audit_section(data.audit),
        contamination_section(data.contamination),
        _seed_section(data.summary),
        _control_section(data.summary),
        _time_section(data),
        samples_section({label: run.samples for label, run in data.runs.items()} or {"": data.samples}),
        _config_section(data.config),
        _next_section(data.next_commands),
        _missing_section(data.missing),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(data.title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + f'\n<p class="note">Written by pbrl_jax {__version__}.</p>'
        + f"\n</main><script>{SCRIPT}</script></body></html>\n"
    )


def result_sentence(data: ReportData) -> str:
    """The result in one sentence of plain text."""
    before, after = pair(data.summary, "mean_non_english")
    if after is None:
        series = series_of(data.metrics, "reward") or series_of(data.metrics, "loss")
        if not series:
            return f"{len(data.metrics)} steps were logged." if data.metrics else "No training was logged here."
        name = "reward" if series_of(data.metrics, "reward") else "loss"
        start, end = (short_number(value) for value in end_means(series))
        return f"The {name} went from {start} to {end} over {series[-1][0]:g} steps; accuracies were not measured."
    if before is None:
        gap = pair(data.summary, "gap_to_english")[1]
        text = f"Mean accuracy outside English is {percent(after)}"
        return text + ("." if gap is None else f", {100 * gap:.1f} points behind English.")
    text = f"Mean accuracy outside English {_movement(before, after, ('rose', 'fell'), percent)}"
    text += f" ({points(after - before)} points)"
    gap_before, gap_after = pair(data.summary, "gap_to_english")
    if gap_before is not None and gap_after is not None:
        moved = _movement(gap_before, gap_after, ("widened", "narrowed"), lambda gap: f"{100 * gap:.1f}")
        text += f", and the gap to English {moved} points"
    return text + "."


def _movement(before: float, after: float, verbs: tuple[str, str], show: Callable[[float], str]) -> str:
    """`rose from 30.0 % to 50.0 %`, with the verbs for up and down, or `stayed at 30.0 %`."""
    if before == after:
        return f"stayed at {show(after)}"
    return f"{verbs[after < before]} from {show(before)} to {show(after)}"


def _tile(label: str, value: str, note: str) -> str:
    return f'<div class="card tile">{span("soft", label)}<b>{escape(value)}</b><span class="note">{note}</span></div>'


def _change(before: float | None, after: float | None, good: int = 1, by_chance: bool = False) -> str:
    """The change in points: green if its sign is `good`, else red; grey if it may be chance."""
    if before is None or after is None:
        return ""
    kind = "soft" if by_chance or abs(after - before) < 0.0005 else "up" if (after - before) * good > 0 else "down"
    return span(f"gain {kind}", points(after - before))


def _language_change(summary: Mapping[str, Any], code: str) -> str:
    """The change of a language: grey if its paired interval contains 0 or, without one, if Wilson intervals overlap."""
    before, after = pair(summary, code)
    interval, intervals = summary["languages"][code].get("change"), accuracy_intervals(summary, code)
    if interval:
        return _change(before, after, 1, interval[0] <= 0 <= interval[1])
    if not intervals or len(intervals.bounds) < 2:
        return _change(before, after)
    (low, high), (other_low, other_high) = intervals.bounds["before"], intervals.bounds["after"]
    return _change(before, after, 1, low <= other_high and other_low <= high)


def _head_section(data: ReportData) -> str:
    summary, tiles = data.summary, []
    for label, name, good in (
        ("Other languages", "mean_non_english", 1),
        ("English", "en", 1),
        ("Gap to English", "gap_to_english", -1),
    ):
        before, after = pair(summary, name)
        if after is not None:
            shown = f"{100 * after:.1f} points" if name == "gap_to_english" else percent(after)
            was = f"before {100 * before:.1f}" if before is not None else ""
            change = _language_change(summary, "en") if name == "en" else _change(before, after, good)
            tiles.append(_tile(label, shown, f"{was} &ensp;{change}"))
    total = (summary.get("seconds") or {}).get("total")
    if total is not None:
        tiles.append(_tile("Time", duration(total), "all stages"))
    facts = [str(summary["benchmark"])] if "benchmark" in summary else []
    if "seed" in summary:
        facts.append(f"seed {summary['seed']}")
    count = summary.get("problems_per_language")
    if isinstance(count, Mapping):
        facts.append("problems: " + ", ".join(f"{code} {number}" for code, number in count.items()))
    elif count:
        facts.append(f"{count} held-out problems per language")
    if data.metrics:
        facts.append(f"{data.metrics[-1].get('step', len(data.metrics))} training steps")
    whose = next((f"{label}: " for label in data.runs), "")
    return (
        f'<header><h1>{escape(data.title)}</h1><p class="lead">{escape(whose + result_sentence(data))}</p>'
        f'<p class="note">{escape("; ".join(facts))}</p></header>' + grid("tiles", tiles)
    )


def _language_section(data: ReportData) -> str:
    languages = data.summary.get("languages") or {}
    metrics = language_metrics(data.metrics, tuple(languages))
    order = order_languages(data.summary, tuple(metrics))
    if not order:
        return ""
    english = languages.get("en", {}).get("after")
    cards = []
    for code in order:
        change = body = ""
        if code in languages:
            change, count = _language_change(data.summary, code), problem_count(data.summary, code)
            sides = zip(("before", "after"), pair(data.summary, code), strict=True)
            shares = {side: share for side, share in sides if share is not None}
            line = None if code == "en" else english
            title, intervals = f"Accuracy in {language_name(code)}", accuracy_intervals(data.summary, code)
            body = accuracy_bars(f"bars-{code}", title, shares, intervals, count, line)
        body += _language_lines(data.metrics, code, metrics.get(code, []))
        cards.append(card(named_language(code), change, body))
    return section("Language by language", _language_note(data.summary, bool(metrics)), grid("cards", cards))


def _language_note(summary: Mapping[str, Any], curves: bool) -> str:
    """Explanation of bars, intervals and colours."""
    languages = summary.get("languages") or {}
    notes = []
    if languages:
        notes.append("Accuracy on held-out problems; the number at the top right is the change in points.")
    if methods := interval_methods(summary):
        notes.append(f"The thin lines are 95\u00a0% {methods} intervals over problems.")
    if any(record.get("change") for record in languages.values()):
        notes.append("A change without colour may be chance: its paired bootstrap interval contains 0.")
    elif methods and any("before" in record for record in languages.values()):
        notes.append("A change without colour may be chance: the two intervals overlap.")
    if "en" in languages:
        notes.append("The dashed line is English" + (" after training." if "before" in languages["en"] else "."))
    return " ".join(notes + ["Curves: over the training steps, with the mean of the last tenth."] * curves)


def _language_lines(metrics: Sequence[Mapping[str, Any]], code: str, names: Sequence[str]) -> str:
    """Small curves of the metrics of one language."""
    lines = ""
    for index, name in enumerate(names):
        group, series = name.rpartition("/")[0], series_of(metrics, name)
        if group == "eval/problems":
            continue
        label, end = SHORT.get(group) or group.replace("/", " "), end_means(series)[1]
        if group.startswith("rewards/"):
            _, reward, *parts = group.split("/")
            label = " ".join([reward, *(REWARD_LABELS.get(part, part) for part in parts)])
        lines += (
            f'<div class="spark">{span("soft", label)}{sparkline(f"spark-{code}-{index}", name, series)}'
            f"<span>{percent(end) if group in SHORT else short_number(end)}</span></div>"
        )
    return lines


OUTCOME = ("before", "after", "points", "English")


def _outcome(record: Any) -> list[str]:
    """Table cells: mean outside English before and after, its change, English after."""
    before, after = pair(record, "mean_non_english")
    return [percent(before), percent(after), _change(before, after) or "–", percent(pair(record, "en")[1])]


def _seed_section(summary: Mapping[str, Any]) -> str:
    seeds = summary.get("seeds") or []
    if isinstance(seeds, Mapping):
        seeds = [{"seed": seed, **record} for seed, record in seeds.items()]
    records = [record for record in seeds if isinstance(record, Mapping)]
    if not records:
        return paragraph(f"Seeds: {', '.join(map(str, seeds))}") if seeds else ""
    rows = [[escape(str(record.get("seed", "–"))), *_outcome(record)] for record in records]
    body = table(("seed", *OUTCOME), rows, ["mean", *_outcome(mean_record(records))])
    return section("Seeds", "Mean accuracy outside English, of every seed that was run; English after training.", body)


def _control_section(summary: Mapping[str, Any]) -> str:
    controls = summary.get("controls") or {}
    rows = [[_named("This run", "reward from the pivots"), *_outcome(summary)]]
    for name, record in controls.items():
        title, note = CONTROLS.get(name, (name.replace("_", " ").capitalize(), ""))
        rows.append([_named(title, note), *_outcome(record)])
    note = "The same start policy with one change. Mean accuracy outside English, and English after training."
    return section("Controls", note, table(("", *OUTCOME), rows)) if controls else ""


def _named(name: str, note: str) -> str:
    return f"{escape(name)}<br>{span('note', note)}"


def _seconds_table(header: str, seconds: Mapping[str, float], total: float) -> str:
    rows = []
    for name, value in seconds.items():
        share = value / total if total else 0.0
        bar = f'<span class="bar" style="width:{180 * share:.0f}px"></span>'
        shown = duration(value) if value >= 10 else f"{value:.2g} s"
        rows.append([escape(name.replace("_", " ")), shown, f"{100 * share:.0f}\u00a0%", bar])
    return table((header, "time", "share", ""), rows)


def _time_section(data: ReportData) -> str:
    seconds = data.summary.get("seconds") or {}
    stages = {name: value for name, value in seconds.items() if name != "total"}
    phases = {}
    for name in metric_names(data.metrics):
        if name.startswith("time/"):
            values = [value for _, value in series_of(data.metrics, name)]
            phases[name.removeprefix("time/")] = sum(values) / len(values)
    parts = ""
    if stages:
        parts += _seconds_table("stage", stages, seconds.get("total") or sum(stages.values()))
    if phases:
        parts += paragraph("Of one training step, on average:")
        parts += _seconds_table("phase", phases, sum(phases.values()))
    return section("Where the time went", "", parts) if parts else ""


def _config_section(config: Mapping[str, Any]) -> str:
    blocks = []
    loose = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    for name, fields in [*((n, v) for n, v in config.items() if isinstance(v, Mapping)), ("other", loose)]:
        rows = "".join(
            f"<tr><td>{escape(str(key))}</td><td><code>{escape(json.dumps(value, ensure_ascii=False, default=str))}"
            "</code></td></tr>"
            for key, value in fields.items()
        )
        if rows:
            blocks.append(folded(name, f'<table class="config">{rows}</table>'))
    return section("Resolved config", "", "".join(blocks)) if blocks else ""


def _next_section(commands: Sequence[tuple[str, str]]) -> str:
    if not commands:
        return ""
    lines = "\n".join(f'<span class="soft"># {escape(note)}</span>\n{escape(command)}' for note, command in commands)
    return section("Next: real models", "", f"<pre>{lines}</pre>")


def _missing_section(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    names = "".join(f"<li>{escape(name)}</li>" for name in missing)
    return section("Not on this page", "These files were not found:", f"<ul>{names}</ul>")
