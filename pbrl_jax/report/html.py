"""HTML elements and number formats of the report. Arguments described as text are escaped here; others are HTML."""

from collections.abc import Iterable, Sequence
from html import escape

from pbrl_jax.text.languages import LANGUAGES


def percent(share: float | None) -> str:
    """`0.4934` -> `49.3 %`, with a non-breaking space; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def points(difference: float) -> str:
    """`0.181` -> `+18.1`, with a typographic minus sign."""
    return f"{100 * difference:+.1f}".replace("-", "\u2212")


def short_number(value: float) -> str:
    """At most three significant digits, thousands as k and millions as M, with a typographic minus sign."""
    if abs(value) >= 1e6:
        text = f"{value / 1e6:.3g}M"
    elif abs(value) >= 1e4:
        text = f"{value / 1e3:.3g}k"
    else:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "\u2212")


def language_name(code: str) -> str:
    """`sw` -> `Swahili`; an unknown code is returned unchanged."""
    return LANGUAGES[code].name if code in LANGUAGES else code


def named_language(code: str) -> str:
    """A language's name with its code; only the code if the name is unknown."""
    name = language_name(code)
    return escape(code) if name == code else f"{escape(name)}\u00a0{span('soft', code)}"


def section(title: str, note: str, body: str) -> str:
    """A section with a heading and an explanation; title and note are text."""
    return f"<section><h2>{escape(title)}</h2>{paragraph(note)}{body}</section>"


def paragraph(text: str) -> str:
    """An explanation; "" for an empty text."""
    return f'<p class="note">{escape(text)}</p>' if text else ""


def card(head: str, right: str, body: str, attributes: str = "") -> str:
    """A box with a heading on the left and a number on the right."""
    return (
        f'<article class="card"{attributes}><div class="head"><h3>{head}</h3><span class="gain">{right}</span></div>'
        f"{body}</article>"
    )


def span(kind: str, text: str) -> str:
    """Text in the style class `kind`."""
    return f'<span class="{kind}">{escape(text)}</span>'


def grid(kind: str, cells: Sequence[str]) -> str:
    """A responsive grid of cells; "" without cells."""
    return f'<div class="grid {kind}">{"".join(cells)}</div>' if cells else ""


def folded(title: str, body: str, state: str = "") -> str:
    """A body that is shown by a click on its title (text); `state` " open" shows it from the start."""
    return f"<details{state}><summary>{escape(title)}</summary>{body}</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] = ()) -> str:
    """A table, scrollable if it is wide; the header is text."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    last = f'<tr class="total">{_cells(total)}</tr>' if total else ""
    return f'<div class="wide"><table><tr>{head}</tr>{body}{last}</table></div>'


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{cell}</td>" for cell in row)
