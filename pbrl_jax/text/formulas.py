"""Formulas in a line of text: between dollar signs, in LaTeX without them, and in plain characters."""

import re
from fractions import Fraction

from pbrl_jax.text.expressions import exact_value
from pbrl_jax.text.latex import TEXT_COMMAND
from pbrl_jax.text.quantities import canonical, canonical_number

MATHS = re.compile(r"(?<!\\)\$\$?((?:\\.|[^$\\])+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")
"""A formula between dollar signs or LaTeX brackets."""
_ALGEBRA = re.compile(r"[\^_=]|^(?!.*[A-Za-z]{3}).*(?:[A-Za-z]\s*[-+*/(]|[-+*/)]\s*[A-Za-z])")
_SYMBOLS = re.compile(r"(?!\s)(?=.*[A-Za-z])(?:[^A-Za-z]|[A-Za-z](?![A-Za-z]))+(?<!\s)")
"""Signs and single letters; a currency ("$9 a day and $3") ends with a space."""
_TUPLES = re.compile(r"(?:[(\[][^()\[\]]+,[^()\[\]]+[)\]][\s,;]*)+")
OPERAND = re.compile(
    r"\s*(?:[+*×·÷]|x(?=\s*\d))\s*(?:[\d√]|\(\s*\d)|\s+\+\s+[A-Za-z](?![A-Za-z])|\s*\+\s*\d*i(?!\w)|[A-Za-z]\s*[-+*^]\s*[\d(]"
)
"""An operation behind a number, which is then a part of an expression."""
FACTOR = re.compile(r"\s*[-+*/^×·÷]\s*[\dA-Za-z({\\√](?![A-Za-z]{2})")
"""An operation behind a product or power."""
_LETTERS = frozenset("bcdfghjklmnpqrstvwxz")
"""Letters that are no words, such as the conjunctions e and y."""
_COMMAND = re.compile(r"\\[A-Za-z]+")
_GROUP = re.compile(r"(?<!\\)\{[^{}]*\}")
_FORMULA_COMMAND = re.compile(
    r"\\(?!circ|degree|text|math|mbox|left|right|q?quad|displaystyle)[A-Za-z]+|\\\{|[\^_]\{(?!\\|°)"
)
_PROSE = re.compile(r"(?:(?<=\s)[aàoyeuи]\s+)?(?:[^\W\d_A-Za-zΑ-ω]|[A-Za-z]{2})")
_IN_FORMULA = re.compile(r"(?:√\s?\(?|sqrt\s?\(|\)\s?\^|(?<![^\W_])[A-Za-z]\s?[-+*/^(]\s?)$")
_FORMULA = re.compile(
    r"[\s*_:：$]*((?:[-+*/×·÷^(){}√\d.\s]|(?<![A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])|sqrt(?=\s?\()|pi(?![A-Za-z]))+?)[\s.!*_$]*"
)


def is_formula(inside: str, latex: bool) -> bool:
    """Whether the text between two dollar signs is a formula: $n$, $x^2$, $(3,2)$, and no number or currency; with
    `latex`, in a line with LaTeX commands, every text with a letter is."""
    if _TUPLES.fullmatch(inside):
        return True
    symbols = latex or _ALGEBRA.search(inside) or _SYMBOLS.fullmatch(inside)
    return bool(symbols) and re.search(r"[\\^_A-Za-z]", inside) is not None


def latex_before_prose(text: str) -> str | None:
    r"""The LaTeX at the beginning of a text without dollar signs, "\frac{\pi}{2} because ..."; None without any."""
    prose = _prose(text)
    latex = (text[: prose.start()] if prose else text).rstrip(" .,;:!?*_`。")
    return latex if _FORMULA_COMMAND.search(latex) and latex.count("{") == latex.count("}") else None


def whole_formula(text: str) -> bool:
    """Whether a text is one formula or several, without words: a letter, tuples, an inequality, LaTeX."""
    if "\n" in text or _prose(text):
        return False
    return text in _LETTERS or bool(
        _FORMULA_COMMAND.search(text) or _TUPLES.fullmatch(text) or re.search("[<>≤≥]", text)
    )


def _prose(text: str) -> re.Match | None:
    """The first word outside LaTeX commands and braces."""
    for pattern in (TEXT_COMMAND, _COMMAND, _GROUP, _GROUP, _GROUP):
        text = pattern.sub(lambda match: "_" * len(match.group()), text)
    return _PROSE.search(text)


def in_formula(before: str) -> bool:
    """Whether a number behind `before` belongs to a root or to an expression of a letter: √2, x^2, n(n+1)."""
    return _IN_FORMULA.search(before) is not None


def bare_formula(line: str) -> str | None:
    """A line that is only a formula without LaTeX, "n(n+1)/2"; None for any other."""
    match = _FORMULA.fullmatch(line)
    if match is None:
        return None
    signs = re.sub(r"(?<=\d)x(?=\d)|×|·", "*", re.sub(r"\s+", "", match[1])).replace("÷", "/")
    return re.sub(r"(?<!\\)sqrt", r"\\sqrt", signs)


def last_side(text: str, code: str) -> str | None:
    """The value of a true arithmetic equation ("9 * 2 = 18"), None for any other."""
    sides = re.sub(r"\\times|\\cdot|×|·", "*", text).replace("\\div", "/").replace("÷", "/").split("=")
    values = {_arithmetic(side, code) for side in sides}
    value = values.pop()
    if value is None or values or not any(re.search(r"\d\s*[-+*/]", side) for side in sides[:-1]):
        return None
    return canonical(value)


def _arithmetic(side: str, code: str) -> Fraction | None:
    """The value of sums and products of plain numbers."""
    numbers = re.sub(r"\d[\d.,]*", lambda match: canonical_number(match.group(), code) or "?", side)
    written = re.sub(r"\s*([-+*/()])\s*", r"\1", numbers).strip()
    return exact_value(written) if re.fullmatch(r"[-+*/().\d]+", written) else None
