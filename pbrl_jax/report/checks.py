"""The report's sections on whether a result is real: the audit of the reward, and the contamination check."""

from collections.abc import Mapping
from html import escape
from typing import Any

from pbrl_jax.report.data import language_name
from pbrl_jax.report.html import section, span, table
from pbrl_jax.report.plots import percent

WEAK = 0.95
"""AUCs below this are marked."""


def audit_section(audit: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Attack by language, of each audited reward; "" without an audit."""
    if not audit:
        return ""
    parts = []
    for title, by_language in audit.items():
        codes = list(by_language)
        attacks = list(dict.fromkeys(name for row in by_language.values() for name in row))
        rows = [
            [escape(name.replace("_", " ").replace("/", ", ")), *(_auc(by_language[c].get(name)) for c in codes)]
            for name in attacks
        ]
        worst = [min(by_language[code].values()) for code in codes]
        parts.append(f"<h3>{escape(title.capitalize())}</h3>")
        parts.append(table(("attack", *codes), rows, ["worst", *map(_auc, worst)]))
    note = (
        "Share of problems in which the faithful reply scores above the attack; 0.5 is chance, below "
        f"{WEAK} is marked. Held out: templates and problems that no training saw."
    )
    return section("Can the reward be cheated?", note, "".join(parts))


def _auc(value: float | None) -> str:
    if value is None:
        return "–"
    text = f"{value:.3f}"
    return span("down", text) if value < WEAK else text


def contamination_section(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What the training text shares with benchmarks; "" where nothing was looked for."""
    if not found:
        return ""
    rows = []
    for name, record in found.items():
        if "share" not in record:
            rows.append([escape(name), "–", "–", escape(str(record.get("not_checked", "")))])
            continue
        languages = ", ".join(f"{language_name(c)} {percent(s)}" for c, s in record.get("languages", {}).items() if s)
        example = next((str(e.get("shared")) for e in record.get("examples", ())), "")
        shown = escape(languages or "none") + (f"<br>{span('note', '“' + example + '”')}" if example else "")
        rows.append(
            [escape(name), f"{record.get('overlapping')} of {record.get('n', '–')}", percent(record["share"]), shown]
        )
    note = "Problems that share a run of words (or characters, where words are not divided) with the training text."
    return section(
        "Does the training text contain the test?", note, table(("benchmark", "problems", "share", "where"), rows)
    )
