r"""Whether two answers are one: by their form, by their value, at a few points, and last by math-verify.

math-verify (sympy) can compute for minutes on a short text, and its own time limits use signals that only a main
thread may set. So it runs without them, and only on expressions whose size bounds the work (`_is_cheap`).
"""

import functools
import logging
import re
import threading
from fractions import Fraction

from pbrl_jax.text.expressions import equal_expressions
from pbrl_jax.text.values import LONGEST_NUMBER, plain, squeeze

TOLERANCE = Fraction(1, 10**6)
"""Of numbers, absolute; below 1 relative."""
LONGEST_EXPRESSION, MOST_COMMANDS, MOST_BRACKETS = 40, 5, 5
"""Bounds of what math-verify is asked: characters, LaTeX commands, brackets."""
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:/\d+)?")
_COSTLY = re.compile(
    r"\\(?:d?binom|sum|prod|int|lim|choose|begin|pmod|sqrt\[)|!|\d{10}|\^\{?-?(?:[7-9]|\d\d)|\^\{?[\\(]"
    r"|\^\{[^{}]*\^|\^\w\^|(?<![\\A-Za-z])[A-Za-z]{3}"
)
"""What may take long: sums, products, integrals, factorials, long numbers, towers, large powers; and prose."""
_WRAPPERS = re.compile(r"\\(?:left|right|displaystyle|big|Big|limits)(?![A-Za-z])|\\[,;:! ]|\\q?quad|~|\\\$")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname|boldsymbol)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\{?(?:\\circ|°)\}?|°|\\degree|\\?%")
_NAMES = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\leqslant": "\\leq", "\\geqslant": "\\geq", "\\colon": ":", "π": "\\pi",
    "√": "\\sqrt", "\\frac{-": "-\\frac{", "×": "\\times", "·": "\\cdot", "∞": "\\infty", "−": "-", "{,}": ",",
    "\\{": "{", "\\}": "}",
}  # fmt: skip
_SHORT_FRACTION = re.compile(r"\\frac(\d)(\d)")
_NAMED = re.compile(r"^\$?\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?=(?=[^=]+$)")
_MIXED = re.compile(r"(-?)(\d{1,9})?\\frac\{(\d{1,9})\}\{(\d{1,9})\}")
_RELATION = re.compile(r"[=<>]|\\(?:leq?|geq?|neq?|in|lt|gt)(?![A-Za-z])")
_ALGEBRA = re.compile(r"[\\^/()+*_A-Za-z!-]")


def same_answer(answer: str | None, gold: str | None) -> bool:
    """Whether an answer is the gold answer: numbers within 1e-6, lists in any order, letters and LaTeX by their form
    or their value. `$` of either kind, units of degree and per cent, and the case of words do not count."""
    if answer is None or gold is None:
        return False
    a, b = _form(answer), _form(gold)
    if a == b or (a.casefold() == b.casefold() and a.isalpha()):
        return bool(a)
    if not _RELATION.search(a) or not _RELATION.search(b):
        a, b = _NAMED.sub("", a), _NAMED.sub("", b)
    x, y = _value(a), _value(b)
    if x is not None and y is not None:
        return abs(x - y) <= TOLERANCE * min(Fraction(1), max(abs(x), abs(y)))
    if a == b or _same_list(a, b):
        return True
    # An equation equals only another one, and an expression of numbers and letters only such another one.
    if bool(_RELATION.search(a)) != bool(_RELATION.search(b)) or not (_ALGEBRA.search(a) or _ALGEBRA.search(b)):
        return False
    found = _same_sides(a, b) or equal_expressions(a, b)
    if found is not None or _is_expression(a) or _is_expression(b):
        return bool(found)
    return _is_cheap(a) and _is_cheap(b) and _same_by_math_verify(a, b)


@functools.lru_cache(maxsize=4096)
def _form(text: str) -> str:
    """LaTeX in one of its spellings: without wrappers, spaces and delimiters, with x^2 for x^{2}."""
    found = text.strip()
    if len(found) > 10 * LONGEST_NUMBER:
        return squeeze(found)
    while len(found) > 1 and found[0] == found[-1] == "$":
        found = found[1:-1].strip()
    found = re.sub(r"^\\[(\[]|\\[)\]]$", "", found) if re.fullmatch(r"\\[(\[].*\\[)\]]", found, re.DOTALL) else found
    found = _DEGREES.sub("", _TEXT.sub(r"\1", _WRAPPERS.sub("", found)))
    for name, plainer in _NAMES.items():
        found = found.replace(name, plainer)
    found = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", squeeze(found.replace("$", "")))
    found = re.sub(r"\\le(?![a-z])", r"\\leq", re.sub(r"\\ge(?![a-z])", r"\\geq", found))
    return re.sub(r"([\^_])\{(\w)\}", r"\1\2", re.sub(r"\\sqrt(\d)", r"\\sqrt{\1}", found))


def _value(text: str) -> Fraction | None:
    """The exact value of a canonical answer, or of a plain number as data sets write it ("2,125", "8.0")."""
    found = plain(text) if not text.isascii() else text
    mixed = _MIXED.fullmatch(found)
    if mixed:
        found = f"{mixed[1]}{int(mixed[2] or 0) * int(mixed[4]) + int(mixed[3])}/{mixed[4]}"
    found = re.sub(r",(?=\d{3}(?!\d))", "", found).replace(" ", "")
    if len(found) > LONGEST_NUMBER or not _PLAIN_NUMBER.fullmatch(found):
        return None
    try:
        above, _, below = found.partition("/")
        return Fraction(above) / Fraction(below or "1")
    except ZeroDivisionError:
        return None


def _same_sides(a: str, b: str) -> bool:
    """Whether two equations or inequalities have the same sides, written otherwise."""
    relations = [_RELATION.findall(text) for text in (a, b)]
    sides = zip(_RELATION.split(a), _RELATION.split(b), strict=False)
    return bool(relations[0]) and relations[0] == relations[1] and all(_same_item(x, y) for x, y in sides)


def _same_list(a: str, b: str) -> bool:
    """Whether both list the same things: bare or in braces in any order, in other brackets in their own."""
    one, other = _items(a), _items(b)
    if min(len(one), len(other)) < 2 or len(one) != len(other):
        return False
    if a[0] in "([" and a[-1] in ")]" and len(_split(a)) == 1:
        return a[0] + a[-1] == b[0] + b[-1] and all(map(_same_item, one, other))
    for item in one:
        match = next((left for left in other if _same_item(item, left)), None)
        if match is None:
            return False
        other.remove(match)
    return True


def _same_item(a: str, b: str) -> bool:
    return a == b or (_value(a) is not None and _value(a) == _value(b)) or bool(equal_expressions(a, b))


def _items(text: str) -> list[str]:
    """The members of a list: bare, in braces, or in one pair of round or square brackets."""
    inside = text[1:-1] if text[:1] in "{([" and text[-1:] in "})]" and len(_split(text)) == 1 else text
    return _split(re.sub(r"(?<=[\d})])(?:and|und|et|y|和)(?=[-\d\\({])", ",", inside))


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
    """Whether the size of what math-verify is asked bounds its work."""
    return (
        len(text) <= LONGEST_EXPRESSION
        and text.count("\\") <= MOST_COMMANDS
        and text.count("(") + text.count("{") <= MOST_BRACKETS
        and not _COSTLY.search(text)
    )


def _same_by_math_verify(answer: str, gold: str) -> bool:
    """LaTeX equality by math-verify, which takes the gold answer first."""
    import math_verify

    found = _parsed(gold), _parsed(answer)
    return all(found) and bool(math_verify.verify(*found, timeout_seconds=None))


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> list:
    import math_verify

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return math_verify.parse(f"${text}$", parsing_timeout=None)


def let_threads_verify() -> None:
    """math-verify in any thread: off the main one its calls run without their own time limit, which needs signals.

    For functions of users that call it with its defaults; `reward.timeout` still ends them.
    """
    from math_verify import grader, parser, utils

    def timeout(timeout_seconds: int | None = 10):
        main = threading.current_thread() is threading.main_thread()
        return utils.timeout(timeout_seconds if main else None)

    parser.timeout = grader.timeout = timeout
