r"""Finding the answer in a response, and comparing two answers.

An answer counts where the response's own language announces it ("Jibu ni 12."), after `####`, in `\boxed{}` or in
`<answer>` tags; an announcement in another language does not count. Numbers are read in every Unicode digit, in Han
numerals (CLDR counts them as digits of Chinese) and in the separators of each language; other number words are not
read.
"""

import functools
import logging
import re
import threading
import unicodedata
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from pbrl_jax.text.languages import LANGUAGES, language
from pbrl_jax.text.numerals import HAN_NUMBER, ascii_digits, han_number, without_myriads, without_powers

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_TAG, _TAG_END = "<answer>", re.compile(r"</answer>", re.IGNORECASE)
_THINK_TAG = re.compile(r"</?think>", re.IGNORECASE)
_BETWEEN_MARKERS = re.compile(r"[\s*_$:：(\[\\]*")
_SPACES = " \u00a0\u2009\u202f"
_NUMBER = re.compile(
    rf"(?<![\d.,])(?:(?<![\d)])(?<![\d)][{_SPACES}])-)?"
    rf"(?:\d|(?<!\w)\.\d)(?:[\d.,'’]|[{_SPACES}](?=\d{{3}}(?!\d)))*"
)
_AFTER_LETTER = re.compile(r"[A-Za-z^_]$")
_FRACTION = re.compile(r"(-?)(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}")
_OPTION = re.compile(r"[\s*_$]*(?:\(([A-Ja-j])\)|([A-J])(?![A-Za-z0-9'’+*/=^_-]|\s+[A-Za-z0-9(+*/=^-]))")
_HAN_LANGUAGES, _MYRIAD_LANGUAGES = ("zh", "ja"), ("zh", "ja", "ko")
_HAN_ANSWER = re.compile(rf"[\s*_$:：=]*({HAN_NUMBER.pattern})(?![样樣般直些起共定切旦致番部緒])")
"""A Han numeral right behind the marker; behind 一 these characters make another word (一样, 一共)."""
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}")
_NAMED = re.compile(r"^\s*\$?[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?\s*=(?!.*=)")
_LIST = re.compile(r"-?\d+,\d{1,2}(?!\d)|-?\d+,\d{4,}")
_CURRENCY = re.compile(r"[$€£¥₹฿₩₽₫]|\\\$")
TOLERANCE = Fraction(1, 10**6)
LONGEST_EXPRESSION = 500
"""Characters; a longer LaTeX answer is compared by its text only."""
LONGEST_NUMBER = 400
"""Digits; a longer run of them is no answer."""
MOST_BOXED = 20
_PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:/\d+)?")
_HUGE_POWER = re.compile(r"\^\s*\{?\s*-?\d{4}|\^[^\^]{0,40}\^|!")
"""Powers and factorials whose value no comparison should try to compute."""


def split_response(text: str, code: str) -> tuple[str, str]:
    """(reasoning, answer) of a response in language `code`, cut before its last answer marker.

    The marker stays with the answer ("Jibu ni 12."). Without a marker the answer is "" and the reasoning is all.
    """
    start = _answer_start(text, code)
    if start is None:
        return _THINK_TAG.sub(" ", text).strip(), ""
    return _THINK_TAG.sub(" ", text[:start]).strip(), text[start:].strip()


def extract_answer(text: str, code: str, *, fallback: bool = False) -> str | None:
    r"""The final answer of a response in language `code`, or None where it announces none.

    A canonical decimal string ("1250", "-3.5", "1/3" where the decimals do not end), an option letter ("B"), or LaTeX
    without spaces. Of what follows the last marker, `\boxed{}` is taken whole; otherwise the first line that holds an
    answer, and its last number. One separator with exactly three digits behind it groups thousands, except a dot in
    a language that writes decimals with a dot; a separator that repeats groups; of two kinds the right one is the
    decimal mark.

    Args:
      text: the response.
      code: the language asked for.
      fallback: without any marker, take the last number of the whole text (benchmark protocols that allow it).
    """
    start = _answer_start(text, code)
    if start is None:
        return _last_number(_plain(text), code) if fallback else None
    span = text[start:]
    boxed = _last_boxed(span)
    if boxed is not None:
        return _boxed_answer(boxed, code)
    if _BOXED.search(span):
        return None
    marker = _markers(code).match(span)
    if marker.group().lower() == _TAG:
        closed = _TAG_END.search(span)
        if closed is None:
            return None  # cut short: as an open \boxed{
        span = span[: closed.start()]
    for line in span[marker.end() :].splitlines():
        found = _line_answer(line, code)
        if found is not None:
            return found
    return None


def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two extracted answers are one: numbers within 1e-6, letters and LaTeX by their text or their value."""
    if a is None or b is None:
        return False
    x, y = _value(a), _value(b)
    if x is not None and y is not None:
        return abs(x - y) <= TOLERANCE
    if _squeeze(a) == _squeeze(b):
        return True
    return ("\\" in a or "\\" in b or "^" in a + b) and _same_expression(a, b)


def canonical_number(token: str, code: str) -> str | None:
    """`token` ("1.250,50") as a canonical decimal string under the separators of language `code`; None if none."""
    sign, digits = ("-", token[1:]) if token.startswith("-") else ("", token)
    digits = digits.rstrip(".,'’" + _SPACES)
    for mark in "'’" + _SPACES:
        digits = digits.replace(mark, "")
    if len(digits) > LONGEST_NUMBER:
        return None
    try:
        value = Decimal(sign + _with_point(digits, LANGUAGES[code].comma_decimal))
    except InvalidOperation:
        return None
    return _canonical(value)


@functools.cache
def _markers(code: str) -> re.Pattern:
    own = language(code).answer_markers
    # Thai SARA AM may arrive composed or, after NFKC, in two parts.
    own = own.replace("ำ", "(?:ำ|ํา)")
    return re.compile(rf"(?:{own}|####|{_TAG}|{_BOXED.pattern})", re.IGNORECASE)


def _answer_start(text: str, code: str) -> int | None:
    """Where the last marker begins; a chain of them ("The answer is \\boxed{") begins with its first."""
    found = list(_markers(code).finditer(text))
    if not found:
        return None
    start = found[-1].start()
    for match in reversed(found[:-1]):
        if not _BETWEEN_MARKERS.fullmatch(text, match.end(), start):
            break
        start = match.start()
    return start


def _last_boxed(text: str) -> str | None:
    """The inside of the last `\\boxed{...}`, braces balanced; an unclosed one is not an answer."""
    # A policy that repeats itself opens thousands of them; a few from the end are enough.
    for match in list(_BOXED.finditer(text))[: -MOST_BOXED - 1 : -1]:
        depth = 0
        for index in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            if depth == 0:
                return text[match.end() + 1 : index]
    return None


def _plain(text: str) -> str:
    """NFKC, ASCII digits, no markdown, no currency; powers stay powers and fractions stay fractions."""
    spread = "".join(_spread(c) for c in text) if not text.isascii() else text
    plain = ascii_digits(unicodedata.normalize("NFKC", spread)).replace("\u2044", "/")
    plain = plain.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\%", "%").replace("**", "")
    return _CURRENCY.sub("", plain)


def _written_out(text: str, code: str) -> str:
    """_plain with powers of ten and, in Chinese, Japanese and Korean, myriads written out."""
    plain = without_powers(_plain(text))
    return without_myriads(plain) if code in _MYRIAD_LANGUAGES else plain


def _spread(c: str) -> str:
    """NFKC would turn m² into m2 and 7½ into 71/2."""
    kind = unicodedata.decomposition(c).split(" ")[0]
    if kind in ("<super>", "<sub>"):
        return "^" + c
    return " " + c if kind == "<fraction>" else c


def _line_answer(line: str, code: str) -> str | None:
    option = _OPTION.match(unicodedata.normalize("NFKC", line).replace("**", ""))
    if option is not None:
        return (option.group(1) or option.group(2)).upper()
    plain = _written_out(line, code)
    if "\\" in line:
        maths = re.search(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", line)
        if maths is not None:
            return _boxed_answer(next(group for group in maths.groups() if group), code)
    if code in _HAN_LANGUAGES and not re.search(r"\d", plain):
        han = _HAN_ANSWER.match(plain)
        return canonical_number(han_number(han.group(1)), code) if han else None
    fractions = list(_FRACTION.finditer(plain))
    numbers = _numbers(plain)
    if fractions and numbers and fractions[-1].end() > numbers[-1].start():
        found = _fraction(fractions[-1])
        if found is not None:
            return found
    return canonical_number(numbers[-1].group(), code) if numbers else None


def _numbers(plain: str) -> list[re.Match]:
    """The number tokens; those glued to a letter or a power (m2, x^2) only where there is no other."""
    found = list(_NUMBER.finditer(plain))
    free = [match for match in found if not _AFTER_LETTER.search(plain[: match.start()][-1:])]
    return free or found


def _last_number(plain: str, code: str) -> str | None:
    numbers = _numbers(plain)
    return canonical_number(numbers[-1].group(), code) if numbers else None


def _boxed_answer(inside: str, code: str) -> str | None:
    """A number where the whole of `inside` is one (units and currency aside), a letter, else LaTeX without spaces."""
    content = _TEXT_COMMAND.sub(r" \1 ", inside).strip().strip("$").strip()
    option = re.fullmatch(r"\(?([A-J])\)?\.?", unicodedata.normalize("NFKC", content))
    if option is not None:
        return option.group(1)
    plain = _NAMED.sub("", _written_out(_LATEX_FRACTION.sub(r"\1/\2", content), code)).strip().rstrip(".")
    han = HAN_NUMBER.fullmatch(plain) if code in _HAN_LANGUAGES else None
    if han is not None:
        return canonical_number(han_number(han.group()), code)
    fraction = _FRACTION.fullmatch(plain)
    if fraction is not None:
        return _fraction(fraction)
    number = _NUMBER.match(plain)
    if number is not None and re.fullmatch(r"[\s°%]*(?:[^\W\d_][^\d\\^]*)?", plain[number.end() :]):
        after = plain[number.end() :]
        # "2x" is an expression and "-1,1" two numbers; "2 apples" is a number with its unit.
        a_list = _LIST.fullmatch(number.group()) and not LANGUAGES[code].comma_decimal
        found = None if a_list else canonical_number(number.group(), code)
        if found is not None and not re.match(r"[A-Za-z](?![A-Za-z])", after):
            return found
    return _squeeze(inside) or None


def _fraction(match: re.Match) -> str | None:
    sign, whole, above, below = match.groups()
    if len(match.group()) > LONGEST_NUMBER or int(below) == 0:
        return None
    value = int(whole or 0) + Fraction(int(above), int(below))
    return _canonical(-value if sign else value)


def _with_point(digits: str, comma_decimal: bool) -> str:
    """`digits` with at most a decimal point: thousands marks removed, a decimal comma replaced."""
    dots, commas = digits.count("."), digits.count(",")
    if dots and commas:
        point = "." if digits.rfind(".") > digits.rfind(",") else ","
        if digits.count(point) > 1:
            return ""
        return digits.replace("," if point == "." else ".", "").replace(point, ".")
    if dots + commas == 0:
        return digits
    mark = "." if dots else ","
    head, _, tail = digits.rpartition(mark)
    if dots + commas > 1:
        groups = digits.split(mark)
        # 1,234,567 and 1,14,200; 2,3,7 is a list and no number.
        grouped = len(groups[-1]) == 3 and all(len(group) in (2, 3) for group in groups[1:-1])
        return "".join(groups) if grouped and len(groups[0]) <= 3 else ""
    grouped = len(tail) == 3 and 1 <= len(head) <= 3 and not head.startswith("0")
    if grouped and (mark == "," or comma_decimal):
        return head + tail
    return f"{head}.{tail}"


def _canonical(value: Decimal | Fraction) -> str:
    if isinstance(value, Fraction):
        rest = value.denominator
        for prime in (2, 5):
            while rest % prime == 0:
                rest //= prime
        if rest != 1:
            return f"{value.numerator}/{value.denominator}"
        value = Decimal(value.numerator) / Decimal(value.denominator)
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _value(answer: str) -> Fraction | None:
    """The exact value of a canonical answer, or of a plain number as data sets write it ("2,125", "8.0")."""
    text = _plain(answer).replace(",", "").replace(" ", "")
    if len(text) > LONGEST_NUMBER or not _PLAIN_NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text).rstrip(".")


def _same_expression(a: str, b: str) -> bool:
    """LaTeX equality by math-verify. Its time limits use signals, which only a main thread may set."""
    import math_verify

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if max(len(a), len(b)) > LONGEST_EXPRESSION or _HUGE_POWER.search(a + " " + b):
        return False
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    parsed = [math_verify.parse(f"${text}$", parsing_timeout=limit) for text in (a, b)]
    return all(parsed) and bool(math_verify.verify(parsed[0], parsed[1], timeout_seconds=limit))
