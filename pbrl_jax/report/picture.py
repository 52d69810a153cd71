"""The report's main figure as a PNG: accuracy per language, before and after, with 95 % intervals."""

import io
from collections.abc import Mapping
from typing import Any

from pbrl_jax.report.data import language_name, pair, problem_count
from pbrl_jax.report.plots import wilson_interval

COLOURS = {"before": "#96948a", "after": "#2a6fd0"}
INK, SOFT, RULE = "#14140f", "#5c5b55", "#e2e1da"


def picture_bytes(summary: Mapping[str, Any]) -> bytes:
    """PNG of about 900 x 360 points on white: English first, then the languages by their gain.

    Args:
      summary: as in ReportData; every accuracy a fraction in [0, 1].
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    languages = summary["languages"]
    gains = {code: row["after"] - row.get("before", 0.0) for code, row in languages.items()}
    order = sorted(languages, key=lambda code: (code != "en", -gains[code], code))
    figure, axes = pyplot.subplots(figsize=(max(4.5, 1.0 * len(order) + 1), 3.4), dpi=100)
    for side, shift in (("before", -0.2), ("after", 0.2)):
        for place, code in enumerate(order):
            if side in languages[code]:
                _bar(axes, place + shift, languages[code], side, problem_count(summary, code))
    if "en" in languages:
        axes.axhline(100 * languages["en"]["after"], color=SOFT, linestyle=(0, (3, 3)), linewidth=1, zorder=1)
    axes.set_xticks(range(len(order)), [language_name(code) for code in order], color=INK)
    axes.set_ylim(0, 105)
    axes.set_yticks((0, 25, 50, 75, 100), [f"{tick} %" for tick in (0, 25, 50, 75, 100)], color=SOFT)
    axes.set_title(_title(summary), loc="left", fontsize=10, color=INK)
    axes.grid(axis="y", color=RULE)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9)
    axes.tick_params(axis="x", pad=12)
    for label in axes.get_xticklabels():
        label.set_verticalalignment("baseline")  # a name without tall letters would stand higher
    for spine in axes.spines.values():
        spine.set_visible(False)
    if any("before" in row for row in languages.values()):
        handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
        figure.legend(handles, list(COLOURS), loc="upper right", ncols=2, frameon=False, fontsize=9)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    pyplot.close(figure)
    return file.getvalue()


def _bar(axes: Any, x: float, record: Mapping[str, Any], side: str, count: int | None) -> None:
    share = record[side]
    axes.bar(x, 100 * share, 0.38, color=COLOURS[side], zorder=2)
    interval = (record.get("intervals") or {}).get(side) or (wilson_interval(share, count) if count else None)
    if interval:
        low, high = (100 * bound for bound in interval)
        axes.plot((x, x), (low, high), color=INK, linewidth=1, zorder=3)
    top = high if interval else 100 * share
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # the line of English does not cross it
    axes.text(
        x, top + 1.5, f"{100 * share:.0f}", ha="center", fontsize=8, color=INK, bbox=behind if share < 0.98 else None
    )


def _title(summary: Mapping[str, Any]) -> str:
    before, after = pair(summary, "mean_non_english")
    if after is None:
        return "Accuracy on held-out problems"
    start = "" if before is None else f"{100 * before:.1f} to "
    return f"Accuracy on held-out problems; outside English {start}{100 * after:.1f} %"
