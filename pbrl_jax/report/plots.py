"""Plots of the report: inline SVG for the page, and PNG by matplotlib.

Every SVG has a <title> and a <desc> for screen readers. Widths are in units of the view box; the page scales them.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from pbrl_jax.core.errors import ConfigError, installed
from pbrl_jax.report.data import Intervals, Series, accuracy_intervals, interval_methods, order_languages, pair
from pbrl_jax.report.html import language_name, percent, short_number

BAR_WIDTH = 320
CHART_WIDTH, CHART_HEIGHT = 360, 190
MAX_POINTS = 400
"""Largest number of points of a line; more would not be visible."""
COLOURS = 8
"""Number of line colours, c0 to c7 in the style sheet."""
SIDES = {"before": "#96948a", "after": "#2a6fd0"}
"""Colours of bars in a PNG."""
INK, SOFT, RULE = "#14140f", "#5c5b55", "#e2e1da"


def tick_values(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that cover [low, high]; steps are 1, 2 or 5 times a power of ten."""
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # constant up to rounding in float32
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, 1 - round(math.log10(power)))
    return [round(index * step, decimals) for index in range(first, last + 1)]


def moving_average(values: Sequence[float], reach: int) -> list[float]:
    """Centred moving average of each value and up to `reach` neighbours on each side; fewer at both ends."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    means = []
    for index in range(len(values)):
        start, end = max(0, index - reach), min(len(values), index + reach + 1)
        means.append((sums[end] - sums[start]) / (end - start))
    return means


def thin_out(series: Series, most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `most` evenly spaced points, including the first and the last."""
    if len(series) <= most:
        return list(series)
    return [series[round(index * (len(series) - 1) / (most - 1))] for index in range(most)]


def averaged(series: Series, windows: int = 40, most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """The moving average of a series over length / `windows` points on each side, thinned out."""
    averages = moving_average([value for _, value in series], len(series) // windows)
    return thin_out([(step, mean) for (step, _), mean in zip(series, averages, strict=True)], most)


def svg_picture(name: str, width: float, height: float, title: str, description: str, body: str) -> str:
    """An SVG image with title and description; `name` is its id, unique on the page."""
    key = escape(name, quote=True)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>{body}</svg>'
    )


def _svg_bar(y: float, label: str, share: float, interval: tuple[float, float] | None, kind: str) -> str:
    left, right = 50, 262
    end = left + share * (right - left)
    body = (
        f'<text x="0" y="{y + 14}" class="soft">{escape(label)}</text>'
        f'<rect x="{left}" y="{y}" width="{max(end - left, 1):.1f}" height="20" rx="2" class="{kind}"/>'
    )
    if interval:
        low, high = (left + bound * (right - left) for bound in interval)
        body += f'<path d="M{low:.1f} {y + 10}H{high:.1f}M{low:.1f} {y + 6}v8M{high:.1f} {y + 6}v8" class="whisker"/>'
    return body + f'<text x="314" y="{y + 14.5}" class="value end">{percent(share)}</text>'


def accuracy_bars(name: str, title: str, shares: Mapping[str, float], intervals: Intervals | None = None,
                  count: int | None = None, english: float | None = None) -> str:  # fmt: skip
    """One or two bars on a scale of 0 to 100 %.

    Args:
      name: id of the image, unique on the page.
      title: of the image.
      shares: `before` and `after`, or one of them, in [0, 1].
      intervals: drawn as thin lines on the bars.
      count: number of problems, for the description.
      english: share marked by a dashed line.
    """
    described = ", ".join(f"{side} {percent(share)}" for side, share in shares.items()).capitalize()
    bounds = intervals.bounds if intervals else {}
    if intervals:
        texts = [" to ".join(percent(bound) for bound in bounds[side]) for side in shares if side in bounds]
        described += f"; 95 % {intervals.method} intervals {' and '.join(texts)}" + f", {count} problems" * bool(count)
    height = 10 + 32 * len(shares)
    body = f'<path d="M50 4V{height - 6}M262 4V{height - 6}" class="grid"/>'
    if english is not None:
        described += f"; English after {percent(english)}"
        body += f'<path d="M{50 + english * 212:.1f} 0V{height - 2}" class="english"/>'
    for place, (side, share) in enumerate(shares.items()):
        body += _svg_bar(10 + 32 * place, side if "before" in shares else "", share, bounds.get(side), side)
    return svg_picture(name, BAR_WIDTH, height, title, described + ".", body)


class Axes(NamedTuple):
    """Scales of a chart, from values to units of the view box, and its grid as SVG."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    grid: str

    def line(self, series: Series, kind: str) -> str:
        """A series as a line of the style class `kind`."""
        points = "L".join(f"{self.x(step):.1f} {self.y(value):.1f}" for step, value in series)
        return f'<path d="M{points}" class="{kind}"/>'

    def dot(self, point: tuple[float, float], radius: float, kind: str) -> str:
        """A dot at the end of a line."""
        return f'<circle cx="{self.x(point[0]):.1f}" cy="{self.y(point[1]):.1f}" r="{radius}" class="{kind}"/>'


def chart_axes(first: float, last: float, lowest: float, highest: float) -> Axes:
    """The axes of a chart with steps `first` to `last` and values `lowest` to `highest`."""
    ticks = tick_values(lowest, highest)
    left, right, top, bottom = 46.0, CHART_WIDTH - 12.0, 8.0, CHART_HEIGHT - 24.0
    span = (last - first) or 1

    def x(step: float) -> float:
        return left + (step - first) / span * (right - left)

    def y(value: float) -> float:
        return bottom - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (bottom - top)

    body = ""
    for tick in ticks:
        body += f'<path d="M{left} {y(tick):.1f}H{right}" class="grid"/>'
        body += f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" class="soft end">{short_number(tick)}</text>'
    middle = [tick for tick in tick_values(first, last) if first < tick < last and tick == int(tick)]
    labels = [(first, "", f"step {first:g}"), *((tick, " mid", f"{tick:g}") for tick in middle)]
    labels += [(last, " end", f"{last:g}")] if last > first else []
    for step, anchor, text in labels:
        if anchor == " mid" and not 60 < x(step) - left < right - left - 50:
            continue
        body += f'<text x="{x(step):.1f}" y="{CHART_HEIGHT - 6}" class="soft{anchor}">{text}</text>'
    return Axes(x, y, body)


def line_chart(name: str, title: str, series: Series) -> str:
    """A chart of a series, not empty: values as a thin line, their moving average thick. `name` is the image's id."""
    first, last = series[0], series[-1]
    lowest, highest = min(v for _, v in series), max(v for _, v in series)
    described = (
        f"From {short_number(first[1])} at step {first[0]:g} to {short_number(last[1])} at step {last[0]:g}; "
        f"lowest {short_number(lowest)}, highest {short_number(highest)}."
    )
    axes, average = chart_axes(first[0], last[0], lowest, highest), averaged(series)
    body = axes.grid + axes.line(thin_out(series), "raw") + axes.line(average, "line")
    body += axes.dot((last[0], average[-1][1]), 3.5, "dot")
    return svg_picture(name, CHART_WIDTH, CHART_HEIGHT, title, described, body)


def lines_chart(name: str, title: str, lines: Mapping[str, Series]) -> str:
    """A chart of several series as moving averages, with a legend.

    Args:
      name: id of the image, unique on the page.
      title: of the image.
      lines: label -> series, not empty, in the order of the colours.
    """
    shown = {label: averaged(series) for label, series in lines.items()}
    steps, values = zip(*(point for series in shown.values() for point in series), strict=True)
    axes = chart_axes(min(steps), max(steps), min(values), max(values))
    body = axes.grid
    for place, series in enumerate(shown.values()):
        colour = f"c{place % COLOURS}"
        body += axes.line(series, f"line {colour}") + axes.dot(series[-1], 3, f"dot {colour}")
    texts = (f"{label}: from {short_number(s[0][1])} to {short_number(s[-1][1])}" for label, s in shown.items())
    return _legend(lines) + svg_picture(name, CHART_WIDTH, CHART_HEIGHT, title, "; ".join(texts) + ".", body)


def _legend(labels: Iterable[str]) -> str:
    """The labels of a chart in the colours of their lines."""
    keys = (f'<span class="key c{place % COLOURS}">{escape(label)}</span>' for place, label in enumerate(labels))
    return f'<p class="legend">{"".join(keys)}</p>'


def sparkline(name: str, title: str, series: Series) -> str:
    """A small curve of a moving average without axes. `name` is the image's id."""
    line = averaged(series, 25, 120)
    first, low, high = line[0][0], min(v for _, v in line), max(v for _, v in line)
    span, height = (line[-1][0] - first) or 1, (high - low) or 1
    axes = Axes(lambda step: 2 + (step - first) / span * 116, lambda value: 22 - (value - low) / height * 18, "")
    described = f"From {short_number(line[0][1])} to {short_number(line[-1][1])}."
    return svg_picture(name, 124, 26, title, described, axes.line(line, "line") + axes.dot(line[-1], 2.5, "dot"))


# PNG, for a README and for `pbrl audit`.


def accuracy_png(summary: Mapping[str, Any]) -> bytes:
    """PNG of about 900 x 360 pixels on white: accuracy per language, English first, then by gain.

    Args:
      summary: as in ReportData; every accuracy a fraction in [0, 1].
    """
    pyplot = _pyplot()
    languages, order = summary["languages"], order_languages(summary)
    figure, axes = pyplot.subplots(figsize=(max(6.5, 1.0 * len(order) + 1), 3.4), dpi=100)
    for place, code in enumerate(order):
        bounds = getattr(accuracy_intervals(summary, code), "bounds", {})
        for side, shift in (("before", -0.2), ("after", 0.2)):
            if side in languages[code]:
                _png_bar(axes, place + shift, languages[code][side], bounds.get(side), SIDES[side])
    if "en" in languages:
        axes.axhline(100 * languages["en"]["after"], color=SOFT, linestyle=(0, (3, 3)), linewidth=1, zorder=1)
    axes.set_xticks(range(len(order)), [language_name(code) for code in order], color=INK)
    axes.set_ylim(0, 105)
    axes.set_yticks((0, 25, 50, 75, 100), [f"{tick} %" for tick in (0, 25, 50, 75, 100)], color=SOFT)
    axes.set_title(_accuracy_title(summary), loc="left", fontsize=10, color=INK)
    if methods := interval_methods(summary):
        axes.set_xlabel(f"thin lines: 95 % {methods} intervals", loc="right", fontsize=8, color=SOFT)
    axes.grid(axis="y", color=RULE)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9)
    axes.tick_params(axis="x", pad=12)
    for label in axes.get_xticklabels():
        label.set_verticalalignment("baseline")  # names with and without ascenders align
    axes.spines[:].set_visible(False)
    if any("before" in row for row in languages.values()):
        handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in SIDES.values()]
        figure.legend(handles, list(SIDES), loc="lower left", ncols=2, frameon=False, fontsize=9)
    figure.tight_layout()
    return _png(figure, metadata={"Software": None}, pil_kwargs={"optimize": True})


def _pyplot():
    if not installed("matplotlib"):
        raise ConfigError("Pictures need matplotlib, which is not installed. Use: pip install -e '.[plots]'")
    import matplotlib  # slow to import

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _png(figure: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", **options)
    _pyplot().close(figure)
    return file.getvalue()


def _png_bar(axes: Any, x: float, share: float, interval: tuple[float, float] | None, colour: str) -> None:
    axes.bar(x, 100 * share, 0.38, color=colour, zorder=2)
    top = 100 * share
    if interval:
        low, top = (100 * bound for bound in interval)
        axes.plot((x, x), (low, top), color=INK, linewidth=1, zorder=3)
    # The box keeps the dashed line of English from crossing the number.
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6} if share < 0.98 else None
    axes.text(x, top + 1.5, f"{100 * share:.0f}", ha="center", fontsize=8, color=INK, bbox=box)


def _accuracy_title(summary: Mapping[str, Any]) -> str:
    before, after = pair(summary, "mean_non_english")
    if after is None:
        return "Accuracy on held-out problems"
    start = "" if before is None else f"{100 * before:.1f} to "
    return f"Accuracy on held-out problems; outside English {start}{100 * after:.1f} %"


def audit_png(tables: Mapping[str, Mapping[str, Mapping[str, float]]], names: Sequence[str]) -> bytes:
    """A PNG with one panel per audit: languages as rows, attacks as columns, AUC as colour and number.

    Args:
      tables: title -> language -> attack -> AUC in [0, 1].
      names: attacks in the order of the columns.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(len(tables), 1, squeeze=False, layout="constrained")
    rows = max(len(table) for table in tables.values())
    figure.set_size_inches(0.42 * len(names) + 2, len(tables) * (0.34 * rows + 2.2))
    for axis, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        values = [[row.get(name, math.nan) for name in names] for row in table.values()]
        image = axis.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for row, cells in enumerate(values):
            for column, value in enumerate(cells):
                axis.text(
                    column, row, "" if math.isnan(value) else f"{100 * value:.0f}", ha="center", va="center", fontsize=7
                )
        axis.set_yticks(range(len(table)), list(table))
        labels = [name.replace("_", " ") for name in names]
        axis.set_xticks(range(len(names)), labels, rotation=60, ha="right", fontsize=7)
        axis.set_title(f"{title}: share of pairs with the faithful reply above the attack, %", fontsize=9)
        figure.colorbar(image, ax=axis, fraction=0.02)
    return _png(figure, dpi=110)
