"""The report's browser of sampled responses: question, English reference, response, reward parts, with filters."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pbrl_jax.report.html import card, language_name, section, short_number, span

MOST_SAMPLES = 240
"""Largest number of responses on the page, which must stay small enough for a phone."""


def choose_samples(samples: Sequence[Mapping[str, Any]], most: int = MOST_SAMPLES) -> list[Mapping[str, Any]]:
    """At most `most` rows, of steps spread evenly over the run, including the first and the last step; the rows of
    these steps are thinned evenly, so that every language is included."""
    if len(samples) <= most:
        return list(samples)
    steps = sorted({row["step"] for row in samples})
    count = max(2, most * len(steps) // len(samples))
    kept = {steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)}
    rows = [row for row in samples if row["step"] in kept]
    return [rows[index * len(rows) // most] for index in range(most)] if len(rows) > most else rows


def _number(value: Any) -> str:
    return "–" if value is None else short_number(float(value))


def _sample_card(row: Mapping[str, Any], run: str = "") -> str:
    code, step, reward = str(row.get("language", "")), str(row.get("step")), row.get("reward")
    parts = row.get("parts") or {}
    chips = "".join(span("chip", f"{name} {_number(value)}") for name, value in parts.items())
    if row.get("valid") is False:
        chips += span("chip down", "not scored")
    texts = "".join(
        f'<dt>{label}</dt><dd dir="auto" lang="{escape(language)}">{escape(str(row.get(field) or "–"))}</dd>'
        for label, field, language, always in (
            ("Question", "prompt", code, True),
            ("English pivot", "reference", "en", "gold" not in row),
            ("Response", "completion", code, True),
            ("Its translation", "translation", "en", False),
            ("Right answer", "gold", "en", False),
        )
        if always or row.get(field)
    )
    where = f"{run}{', ' * bool(run)}step {step}, prompt {row.get('prompt_id')}"
    head = f"{escape(language_name(code))} {span('soft', where)}"
    value = "" if reward is None else float(reward)
    attributes = f' data-language="{escape(code)}" data-step="{escape(step)}" data-reward="{value}"'
    attributes += f' data-run="{escape(run)}"'
    return card(head, _number(reward), f'<div class="chips">{chips}</div><dl>{texts}</dl>', attributes)


def _choice(key: str, label: str, options: Sequence[tuple[str, str]]) -> str:
    listed = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return f'<label>{escape(label)} <select id="{key}">{listed}</select></label>'


def _bound(key: str, label: str) -> str:
    return f'<label>{escape(label)} <input id="{key}" type="number" step="any" inputmode="decimal" size="5"></label>'


def samples_section(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The section with samples of each run; "" without samples. Without JavaScript all cards are shown."""
    by_run = {run: rows for run, rows in samples.items() if rows}
    if not by_run:
        return ""
    shown = [(run, row) for run, rows in by_run.items() for row in choose_samples(rows, MOST_SAMPLES // len(by_run))]
    languages = sorted({str(row.get("language", "")) for _, row in shown}, key=language_name)
    steps = sorted({row["step"] for _, row in shown})
    choices = (
        *([("by-run", "Run", [("", "all"), *((run, run) for run in by_run)])] if len(by_run) > 1 else []),
        ("by-language", "Language", [("", "all"), *((code, language_name(code)) for code in languages)]),
        ("by-step", "Step", [("", "all"), *((str(step), str(step)) for step in steps)]),
    )
    controls = "".join(_choice(*choice) for choice in choices)
    controls += _bound("reward-from", "Reward from") + _bound("reward-to", "to")
    order = [("", "as sampled"), ("low", "lowest reward"), ("high", "highest reward")]
    controls += _choice("by-order", "Order", order)
    hidden = sum(map(len, by_run.values())) - len(shown)
    note = "Sampled responses, with the reward at the top right and its parts below."
    note += f" {hidden} more are in the work directory." if hidden else ""
    body = (
        f'<div class="filters" id="filters" hidden>{controls}<span class="soft" id="sample-count" role="status"></span>'
        f'</div><div id="samples">{"".join(_sample_card(row, run) for run, row in shown)}</div>'
    )
    return section("What the policy says", note, body)
