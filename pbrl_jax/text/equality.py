r"""Equality of two answers: by their form, by their value, at a few points, and last by math-verify.

math-verify (sympy) may take minutes for a short text, and its time limits use signals, which only the main thread may
set. So it runs without them, and only on expressions that are small enough (`_is_cheap`).
"""

import functools
import logging
import re
import threading
from fractions import Fraction

from pbrl_jax.text.expressions import equal_equations, equal_expressions
from pbrl_jax.text.latex import TEXT_COMMAND, unwrapped
from pbrl_jax.text.values import LONGEST_NUMBER, plain, squeeze, word_value

TOLERANCE = Fraction(1, 10**6)
"""Tolerance of numbers: absolute, and relative for numbers below 1."""
LONGEST_EXPRESSION, MOST_COMMANDS, MOST_BRACKETS = 40, 5, 5
"""Limits of expressions for math-verify: characters, LaTeX commands, brackets."""
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:/\d+)?")
_COSTLY = re.compile(
    r"\\(?:d?binom|sum|prod|int|lim|choose|begin|pmod|sqrt\[)|!|\d{10}|\^\{?-?(?:[5-9]|\d\d)|\^\{?[\\(]"
    r"|\^\{[^{}]*\^|\^\w\^|(?<![\\A-Za-z])[A-Za-z]{3}|[∈:]"
    r"|,\)|\\[lc]?dots|\.\.\.|…|'|[\dA-F)]_|\\mp"
)
"""Expressions that may take long: sums, products, integrals, factorials, long numbers, large powers; prose. And those
of which math-verify reads a part: matrices, sets with conditions, ellipses, primes, numbers of another base."""
_SPACES = re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad|(?<!\d)~|~(?!\d)|\\\$")
_DEGREES = re.compile(r"\^\{?(?:\\circ|°)\}?|°|\\degree|\\?%")
_ANGLE = re.compile(r"(\\(?:sin|cos|tan|cot))\s*\(?(\d+(?:\.\d+)?)\s*(?:\^\s*\{?(?:\\circ|°)\}?|°|\\degree)\)?")
"""The function of an angle in degrees, which elsewhere is a unit."""
_NAMES = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\colon": ":", "π": "\\pi", "√": "\\sqrt", "×": "\\times", "·": "\\cdot",
    "∞": "\\infty", "∅": "\\emptyset", "\\varnothing": "\\emptyset", "−": "-", "{,}": ",", "\\{": "{", "\\}": "}",
    ">=": "≥", "<=": "≤", "\\ast": "*", "\\lbrace": "{", "\\rbrace": "}", "\\lvert": "|", "\\rvert": "|", "\\vert": "|",
}  # fmt: skip
_SIGNS = {
    "≤": r"\\le(?:qslant|q)?(?!ft|ss|ad)|⩽", "≥": r"\\ge(?:qslant|q)?(?!ts)|⩾", "≠": r"\\ne(?:q|(?![gwa]))",
    "∈": r"\\in(?![ft])", "=": r"\\approx|≈", "<": r"\\lt(?!imes)", ">": r"\\gt(?!r)",
}  # fmt: skip
"""Relations, whose commands a letter may follow where spaces were removed: \\leqx."""
_FORMS = (
    (re.compile(r"(?<![\\A-Za-z])(pi|sqrt|exp|sin|cos|tan|ln|log)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"(?<![\w)}\]])\\frac\{-(\d+)\}"), r"-\\frac{\1}"),
    (re.compile(r"\\frac(\d)(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\(sqrt|pmod)(\d)"), r"\\\1{\2}"),
    (re.compile(r"\\mathbb([A-Z])"), r"\\mathbb{\1}"),
    (re.compile(r"(?<=\d)(?:\\[lc]?dots|…)$"), ""),
    (re.compile(r"([\^_])\{(\w)\}"), r"\1\2"),
    (re.compile(r"^\(?(\d+)\)?_\{?10\}?$"), r"\1"),
    (re.compile(r"^\((\d+)\)(?=_\w+$)"), r"\1"),
    (re.compile(r"(?<=[(\[,])\+(?=\\infty)"), ""),
    *((re.compile(pattern), sign) for sign, pattern in _SIGNS.items()),
)
_JOIN = re.compile(
    r",?\s*\\text\{(?:,|\s)*(?:and|or|und|oder|et|ou|y|o|e|и|или|na|au|dan|atau|và|hoặc|和|或|または|또는|และ|หรือ)\s*\}|\$\s*(?:and|or)\s*\$"
)
_NAME = (
    r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:'+|\^\{-1\})?(?:\([A-Za-z]\)|\(\d+\)|(?<=P)\([^()]*\))?|\\frac\{d\w\}\{d\w\}"
    r"|m\\angle[A-Z]+|\|[A-Z]+\||\\overline\{[A-Z]+\})"
)
_NAMED = re.compile(rf"^\$?(?:{_NAME}|\({_NAME}(?:,{_NAME})+\))[=∈](?=[^=∈]+$)")
_INEQUALITY = re.compile(r"(?:([^<≤]+)([<≤]))??(?:\\[A-Za-z]+|[A-Za-z])(?:_\w)?(?:([<≤])([^<≤]+))?")
_MIXED = re.compile(r"(-?)(\d{1,9})?\\frac\{(\d{1,9})\}\{(\d{1,9})\}")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}")
_RELATION = re.compile(r"[=<>≤≥≠∈]")
_ALGEBRA = re.compile(r"[\\^/()+*_A-Za-z!-]")


def same_answer(answer: str | None, gold: str | None) -> bool:
    """Whether an answer equals the gold answer: numbers within 1e-6, lists in any order, letters and LaTeX by form or
    value. Dollar signs, degree and per cent signs, and the case of words are ignored."""
    if answer is None or gold is None:
        return False
    a, b = _form(answer), _form(gold)
    if a == b or (a.casefold() == b.casefold() and a.isalpha()):
        return bool(a)
    if {a[-2:], b[-2:]} == {"+c", "+C"}:
        a, b = a[:-1] + "C", b[:-1] + "C"  # the constant of an integral
    if not _RELATION.search(a) or not _RELATION.search(b):
        a, b = _without_name(a), _without_name(b)
    elif "∈" in a + b:
        a, b = _interval(_NAMED.sub("", a)), _interval(_NAMED.sub("", b))
    if bool(_RELATION.search(a)) != bool(_RELATION.search(b)):
        a, b = _interval(a), _interval(b)
    x, y = _value(a), _value(b)
    if x is not None and y is not None:
        return abs(x - y) <= TOLERANCE * min(Fraction(1), max(abs(x), abs(y)))
    if a == b or _same_list(a, b):
        return True
    # An equation can only equal an equation, and an expression of numbers and letters only such an expression.
    if bool(_RELATION.search(a)) != bool(_RELATION.search(b)) or not (_ALGEBRA.search(a) or _ALGEBRA.search(b)):
        return False
    equal = _same_sides(a, b) or (equal_equations if "=" in a else equal_expressions)(a, b)
    if equal is not None or _is_expression(a) or _is_expression(b):
        return bool(equal)
    return _is_cheap(a) and _is_cheap(b) and _same_by_math_verify(a, b)


@functools.lru_cache(maxsize=4096)
def _form(text: str) -> str:
    """LaTeX in a normal form: without wrappers, spaces and delimiters, x^2 for x^{2}, a matrix as its rows."""
    text = text.strip()
    if len(text) > 10 * LONGEST_NUMBER:
        return squeeze(text)
    while len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    text = re.sub(r"^\\[(\[]|\\[)\]]$", "", text) if re.fullmatch(r"\\[(\[].*\\[)\]]", text, re.DOTALL) else text
    text = _ANGLE.sub(r"\1(\2\\pi/180)", text)
    text = _DEGREES.sub("", TEXT_COMMAND.sub(r"\1", _JOIN.sub(",", _SPACES.sub("", unwrapped(text)))))
    for name, normal in _NAMES.items():
        text = text.replace(name, normal)
    text = squeeze(text.replace("$", ""))
    for pattern, form in _FORMS:
        text = pattern.sub(form, text)
    if (matrix := _MATRIX.fullmatch(text)) is not None:
        rows = matrix[2].removesuffix("\\\\").replace("&", ",").split("\\\\")
        return f"({''.join(f'({row},),' for row in rows)})"
    return _ascending(text)


def _ascending(text: str) -> str:
    """A chain of inequalities from its smallest side on: 5≥x as x≤5."""
    sides = re.split("([<>≤≥])", text)
    if "," in text or not set(sides[1::2]) <= {">", "≥"}:
        return text
    return "".join({">": "<", "≥": "≤"}.get(side, side) for side in reversed(sides))


def _without_name(text: str) -> str:
    """The value of x=5, x_1=5 and x∈(0,1), the list of x=5,x=7, or the text."""
    items = _split(text)
    names = {re.split(r"[_=]", item)[0] for item in items if _NAMED.search(item)}
    if len(names) == 1 and all(map(_NAMED.search, items)):
        return ",".join(_NAMED.sub("", item) for item in items)
    return re.sub(r"^([^=]+)=[A-Za-z]$", r"\1", _NAMED.sub("", text))


def _interval(text: str) -> str:
    """The interval of an inequality of one letter, 0<x≤1 or x≥2, the union of several, else the text."""
    if len(parts := _split(text)) > 1:
        parts = list(map(_ascending, parts))
        return "\\cup".join(map(_interval, parts)) if all(map(_INEQUALITY.fullmatch, parts)) else text
    match = _INEQUALITY.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return text
    low, high = match[1] or "-\\infty", match[4] or "\\infty"
    return f"{'[' if match[2] == '≤' else '('}{low},{high}{']' if match[3] == '≤' else ')'}"


def _value(text: str) -> Fraction | None:
    """The exact value of a canonical answer, of a plain number of a data set ("2,125", "8.0"), or of an English number
    word; None of any other text."""
    number = plain(text) if not text.isascii() else text
    mixed = _MIXED.fullmatch(number)
    if mixed:
        number = f"{mixed[1]}{int(mixed[2] or 0) * int(mixed[4]) + int(mixed[3])}/{mixed[4]}"
    number = re.sub(r",(?=\d{3}(?!\d))", "", number).replace(" ", "")
    if number.isalpha() and number.isascii() and len(number) < 20:
        number = word_value(number, "en", whole=True) or number
    if len(number) > LONGEST_NUMBER or not _PLAIN_NUMBER.fullmatch(number):
        return None
    try:
        above, _, below = number.partition("/")
        return Fraction(above) / Fraction(below or "1")
    except ZeroDivisionError:
        return None


def _same_sides(a: str, b: str) -> bool:
    """Whether two equations or inequalities have equal sides."""
    relations = [_RELATION.findall(text) for text in (a, b)]
    sides = zip(_RELATION.split(a), _RELATION.split(b), strict=False)
    return bool(relations[0]) and relations[0] == relations[1] and all(_same_item(x, y) for x, y in sides)


def _same_list(a: str, b: str) -> bool:
    """Whether both are lists of equal items: in any order, but in the same order if one is in round or square brackets.

    Round brackets around only one of them do not count; square ones may be an interval.
    """
    items, unmatched = _items(a), _items(b)
    if min(len(items), len(unmatched)) < 2 or len(items) != len(unmatched):
        return False
    brackets = [
        text[0] + text[-1] for text in (a, b) if text[0] in "([" and text[-1] in ")]" and len(_split(text)) == 1
    ]
    if brackets:
        same_brackets = brackets == ["()"] or brackets[0] == brackets[-1] and len(brackets) == 2
        return same_brackets and all(map(_same_item, items, unmatched))
    for item in items:
        match = next((candidate for candidate in unmatched if _same_item(item, candidate)), None)
        if match is None:
            return False
        unmatched.remove(match)
    return True


def _same_item(a: str, b: str) -> bool:
    same = a == b or (_value(a) is not None and _value(a) == _value(b)) or equal_expressions(a, b)
    return bool(same) or _same_list(a, b)


def _items(text: str) -> list[str]:
    """The items of a list with or without brackets."""
    inside = text[1:-1] if text[:1] in "{([" and text[-1:] in "})]" and len(_split(text)) == 1 else text
    return _split(re.sub(r"(?<=[\d})]),?(?:and|und|et|y|和)(?=[-\d\\({])", ",", inside))


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c in ",;" and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _is_expression(text: str) -> bool:
    return equal_expressions(text, text) is not None


def _is_cheap(text: str) -> bool:
    """Whether an expression is small enough for math-verify."""
    return (
        len(text) <= LONGEST_EXPRESSION
        and text.count("\\") <= MOST_COMMANDS
        and text.count("(") + text.count("{") <= MOST_BRACKETS
        and not _COSTLY.search(text)
    )


def _same_by_math_verify(answer: str, gold: str) -> bool:
    """LaTeX equality by math-verify, whose first argument is the gold answer."""
    import math_verify

    parsed = _parse(gold), _parse(answer)
    return all(parsed) and bool(math_verify.verify(*parsed, timeout_seconds=None))


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> list:
    import math_verify

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    text = "".join({"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∈": "\\in "}.get(c, c) for c in text)
    return math_verify.parse(f"${text}$", parsing_timeout=None)


def let_threads_verify() -> None:
    """Make math-verify usable outside the main thread, there without its own time limit, which needs signals.

    For users' functions that call it with its defaults; `reward.timeout` still ends them.
    """
    from math_verify import grader, parser, utils

    def timeout(timeout_seconds: int | None = 10):
        main = threading.current_thread() is threading.main_thread()
        return utils.timeout(timeout_seconds if main else None)

    parser.timeout = grader.timeout = timeout
