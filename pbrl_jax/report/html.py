"""Pieces of HTML that every section of the report is made of. What is called text is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape

from pbrl_jax.report.data import language_name


def section(title: str, note: str, body: str) -> str:
    """A section with a heading and a line of explanation; title and note are text, the body is HTML."""
    explained = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{explained}{body}</section>"


def card(head: str, right: str, body: str, attributes: str = "") -> str:
    """A box with a heading at its left and a figure at its right; all of it HTML."""
    return (
        f'<article class="card"{attributes}><div class="head"><h3>{head}</h3><span class="gain">{right}</span></div>'
        f"{body}</article>"
    )


def span(kind: str, text: str) -> str:
    """Text in the style `kind`."""
    return f'<span class="{kind}">{escape(text)}</span>'


def grid(kind: str, cells: Sequence[str]) -> str:
    """HTML cells side by side, as many as the width allows; nothing for no cells."""
    return f'<div class="grid {kind}">{"".join(cells)}</div>' if cells else ""


def named_language(code: str) -> str:
    """A language's name with its code; the code alone where no name is known."""
    name = language_name(code)
    return escape(code) if name == code else f"{escape(name)}\u00a0{span('soft', code)}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] = ()) -> str:
    """A table; the header is text, the cells are HTML. A wide one scrolls by itself."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    last = f'<tr class="total">{_cells(total)}</tr>' if total else ""
    return f'<div class="wide"><table><tr>{head}</tr>{body}{last}</table></div>'


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{cell}</td>" for cell in row)
