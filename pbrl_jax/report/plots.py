"""Pictures of the report as inline SVG: no library, no network, colours from the page's style sheet.

Every picture carries a <title> and a <desc>, so that a screen reader says what it shows. Widths are in the units of
the view box; the page scales them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

BAR_WIDTH = 320
CHART_WIDTH, CHART_HEIGHT = 360, 190
MAX_POINTS = 400
"""Points of a line; more cannot be seen and only make the file larger."""
COLOURS = 8
"""Colours of lines, c0 to c7 in the style sheet; a ninth line begins anew."""


def wilson_interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share observed over `count` independent trials; 95 % by default.

    Unlike the normal interval it stays within [0, 1] and does not vanish at 0 or 1. Wilson (1927).
    """
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def percent(share: float) -> str:
    """`0.4934` -> `49.3 %`, with a space that does not break."""
    return f"{100 * share:.1f}\u00a0%"


def points(difference: float) -> str:
    """`0.181` -> `+18.1`, with a real minus sign."""
    return f"{100 * difference:+.1f}".replace("-", "\u2212")


def short_number(value: float) -> str:
    """At most three significant digits, thousands as k and millions as M, with a real minus sign."""
    if abs(value) >= 1e6:
        text = f"{value / 1e6:.3g}M"
    elif abs(value) >= 1e4:
        text = f"{value / 1e3:.3g}k"
    else:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "\u2212")


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover [low, high], about `count` of them; steps are 1, 2 or 5 times a power of ten."""
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # flat, but for the rounding of float32
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, 1 - round(math.log10(power)))
    return [round(index * step, decimals) for index in range(first, last + 1)]


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value and its neighbours up to `reach` to each side; fewer at the two ends.

    A trailing average would lag behind the values it stands for.
    """
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    means = []
    for index in range(len(values)):
        start, end = max(0, index - reach), min(len(values), index + reach + 1)
        means.append((sums[end] - sums[start]) / (end - start))
    return means


def picture(name: str, width: float, height: float, title: str, description: str, body: str) -> str:
    """An SVG of its own, with what it shows in words."""
    key = escape(name, quote=True)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>{body}</svg>'
    )


def _bar(y: float, label: str, share: float, interval: tuple[float, float] | None, kind: str) -> str:
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


def accuracy_bars(name: str, title: str, before: float | None, after: float, count: int | None,
                  english: float | None, intervals: Mapping[str, Any] | None = None) -> str:  # fmt: skip
    """Two bars on a scale of 0 to 100 %, with 95 % intervals where they are given or the number of problems is known.

    Args:
      name: id of the picture, unique on the page.
      title: what the bars are of.
      before, after: shares in [0, 1]; `before` None draws one bar.
      count: problems behind each share, for Wilson intervals; None draws none.
      english: share that the dashed line marks; None draws none.
      intervals: "before" and "after" -> (low, high), in place of Wilson's.
    """
    shares = {side: share for side, share in (("before", before), ("after", after)) if share is not None}
    spans = {side: wilson_interval(share, count) for side, share in shares.items()} if count else {}
    spans |= {side: tuple(span) for side, span in (intervals or {}).items() if span and side in shares}
    described = ", ".join(f"{side} {percent(share)}" for side, share in shares.items()).capitalize()
    if spans:
        texts = [" to ".join(percent(bound) for bound in spans[side]) for side in shares if side in spans]
        described += f"; 95 % intervals {' and '.join(texts)}" + (f", {count} problems" if count else "")
    height = 10 + 32 * len(shares)
    body = f'<path d="M50 4V{height - 6}M262 4V{height - 6}" class="grid"/>'
    if english is not None:
        described += f"; English after {percent(english)}"
        x = 50 + english * 212
        body += f'<path d="M{x:.1f} 0V{height - 2}" class="english"/>'
    for place, (side, share) in enumerate(shares.items()):
        label = side if before is not None else ""
        body += _bar(10 + 32 * place, label, share, spans.get(side), side)
    return picture(name, BAR_WIDTH, height, title, described + ".", body)


def thin_out(series: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `most` points, evenly chosen, the first and the last among them."""
    if len(series) <= most:
        return list(series)
    return [series[round(index * (len(series) - 1) / (most - 1))] for index in range(most)]


def line_path(xs: Sequence[float], ys: Sequence[float]) -> str:
    """The points as the `d` of a path."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))


class Axes(NamedTuple):
    """Scales of a chart, from values to the picture's units, and its grid as SVG."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    grid: str


def axes(first: float, last: float, lowest: float, highest: float) -> Axes:
    """The axes of a chart of steps `first` to `last` and of values between `lowest` and `highest`."""
    ticks = nice_ticks(lowest, highest)
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
    middle = [tick for tick in nice_ticks(first, last) if first < tick < last and tick == int(tick)]
    labels = [(first, "", f"step {first:g}"), *((tick, " mid", f"{tick:g}") for tick in middle)]
    labels += [(last, " end", f"{last:g}")] if last > first else []
    for step, anchor, text in labels:
        if anchor == " mid" and not 60 < x(step) - left < right - left - 50:
            continue
        body += f'<text x="{x(step):.1f}" y="{CHART_HEIGHT - 6}" class="soft{anchor}">{text}</text>'
    return Axes(x, y, body)


def line_chart(name: str, title: str, series: Sequence[tuple[float, float]]) -> str:
    """A value over steps: the values themselves thin, their moving average thick.

    Args:
      name: id of the picture, unique on the page.
      title: what the line is of.
      series: (step, value) with rising steps and finite values; at least one.
    """
    first, last = series[0], series[-1]
    lowest, highest = min(v for _, v in series), max(v for _, v in series)
    described = (
        f"From {short_number(first[1])} at step {first[0]:g} to {short_number(last[1])} at step {last[0]:g}; "
        f"lowest {short_number(lowest)}, highest {short_number(highest)}."
    )
    x, y, body = axes(first[0], last[0], lowest, highest)
    steady = steadied(series)
    for kind, line in (("raw", thin_out(series)), ("line", steady)):
        body += f'<path d="{line_path([x(s) for s, _ in line], [y(v) for _, v in line])}" class="{kind}"/>'
    body += f'<circle cx="{x(last[0]):.1f}" cy="{y(steady[-1][1]):.1f}" r="3.5" class="dot"/>'
    return picture(name, CHART_WIDTH, CHART_HEIGHT, title, described, body)


def steadied(series: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The moving average of a series, thinned out."""
    averages = smooth([value for _, value in series], len(series) // 40)
    return thin_out([(step, mean) for (step, _), mean in zip(series, averages, strict=True)])


def lines_chart(name: str, title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Several values over steps, as moving averages; their legend is HTML beside the picture (`legend`).

    Args:
      name: id of the picture, unique on the page.
      title: what the lines are of.
      lines: label -> (step, value), at least one point each; the order is that of the colours.
    """
    shown = {label: steadied(series) for label, series in lines.items()}
    points_all = [point for series in shown.values() for point in series]
    steps, values = [step for step, _ in points_all], [value for _, value in points_all]
    x, y, body = axes(min(steps), max(steps), min(values), max(values))
    for place, series in enumerate(shown.values()):
        kind = f"line c{place % COLOURS}"
        body += f'<path d="{line_path([x(s) for s, _ in series], [y(v) for _, v in series])}" class="{kind}"/>'
        body += (
            f'<circle cx="{x(series[-1][0]):.1f}" cy="{y(series[-1][1]):.1f}" r="3" class="dot c{place % COLOURS}"/>'
        )
    told = (f"{label}: from {short_number(s[0][1])} to {short_number(s[-1][1])}" for label, s in shown.items())
    return picture(name, CHART_WIDTH, CHART_HEIGHT, title, "; ".join(told) + ".", body)


def legend(labels: Iterable[str]) -> str:
    """The labels of a lines_chart in their colours, as HTML."""
    keys = (f'<span class="key c{place % COLOURS}">{escape(label)}</span>' for place, label in enumerate(labels))
    return f'<p class="legend">{"".join(keys)}</p>'


def sparkline(name: str, title: str, series: Sequence[tuple[float, float]]) -> str:
    """A small line without axes, between its lowest and highest value; `series` as in line_chart."""
    averages = smooth([value for _, value in series], len(series) // 25)
    line = thin_out([(step, mean) for (step, _), mean in zip(series, averages, strict=True)], 120)
    low, high = min(v for _, v in line), max(v for _, v in line)
    span, height = (line[-1][0] - line[0][0]) or 1, (high - low) or 1
    xs = [2 + (step - line[0][0]) / span * 116 for step, _ in line]
    ys = [22 - (value - low) / height * 18 for _, value in line]
    described = f"From {short_number(line[0][1])} to {short_number(line[-1][1])}."
    body = (
        f'<path d="{line_path(xs, ys)}" class="line"/><circle cx="{xs[-1]:.1f}" cy="{ys[-1]:.1f}" r="2.5" class="dot"/>'
    )
    return picture(name, 124, 26, title, described, body)
