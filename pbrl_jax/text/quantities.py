"""Numbers and quantities: separators, thousands and millions behind or before a number, halves, several parts."""

import functools
import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple

from pbrl_jax.text.languages import LANGUAGES, VOWEL_SIGN, language, nfc
from pbrl_jax.text.latex import TEXT
from pbrl_jax.text.numerals import AND_PART, PARTS, half_behind, number_word

SPACES = " \u00a0\u2009\u202f"
NUMBER = re.compile(
    rf"(?<![\d.,])(?:(?<![\dA-Za-z)])(?<![\d)][{SPACES}])-)?"
    rf"(?:\d|(?<!\w)\.\d)(?:[\d.,]|(?<=\d)['’{SPACES}](?=\d{{3}}(?!\d)))*"
)
_EXPONENT = r"\^\{?-?\d\}?"
_GAP = r"(?:\\[,;:! ]|\\q?quad|[~\s/]|\\cdot)*"
_UNIT = re.compile(
    rf"((?:(?!{TEXT}).)*(?:[\d}})°]|\\pi|\\circ))(?:{_GAP}\^\{{?\\circ\}}?\s*[CF]|(?:{_GAP}(?:\^\{{?)?{TEXT}\s*"
    rf"\{{(?:[^{{}}\d()=<>^]|{_EXPONENT})+\}}(?:{_EXPONENT}|\}})?)+)[\s.]*"
)
_NO_UNIT = re.compile(
    r"(?<![^\W_])(?:not|if|for|where|when|mod|remainder|dozen|less|than|is|are|[ap]\.?\s?m)(?![^\W_])", re.IGNORECASE
)
"""Words behind a number that change its value or limit it."""
LONGEST_NUMBER = 400
"""Largest number of digits of an answer."""


def canonical_number(token: str, code: str) -> str | None:
    """`token` ("1.250,50") with the separators of language `code` as a canonical decimal string; None if it is none."""
    sign, digits = ("-", token[1:]) if token.startswith("-") else ("", token)
    digits = digits.rstrip(".,'’" + SPACES)
    for mark in "'’" + SPACES:
        digits = digits.replace(mark, "")
    if len(digits) > LONGEST_NUMBER:
        return None
    try:
        value = Decimal(sign + _with_point(digits, LANGUAGES[code].comma_decimal))
    except InvalidOperation:
        return None
    return canonical(value)


def without_unit(inside: str) -> str | None:
    r"""A number or formula without the unit in \text{} or \mathrm{} behind it ("12\text{ m}^2"); None without one."""
    match = _UNIT.fullmatch(inside)
    if match is None or not re.search(r"\d|\\pi", match[1]) or _NO_UNIT.search(inside[match.end(1) :]):
        return None
    return match[1]


class Quantity(NamedTuple):
    """The canonical value of a quantity, None if it is no number, and where its text ends."""

    value: str | None
    end: int


def quantity(text: str, start: int, code: str) -> Quantity:
    """The number at `start` with all that belongs to its value.

    Parts are added while their scales fall: "2 million 500 thousand", "5 लाख 20 हजार", "elfu 5 na mia 3".
    """
    first = NUMBER.match(text, start)
    if first is None:
        return Quantity(None, start)
    token = first.group()
    end = start + len(token.rstrip(".,'’" + SPACES))
    number = canonical_number(token, code)
    if number is None:
        return Quantity(None, end)
    sign = -1 if number.startswith("-") else 1
    part, end = _with_half(abs(Fraction(number)), text[:start], text, end, code)
    power = _power_before(text[:start], code)
    if power is None:
        power, end = _power_after(text, end, code)
    if power is None:
        return Quantity(number if part == abs(Fraction(number)) else canonical(sign * part), end)
    half, end = _with_half(Fraction(0), "", text, end, code)
    total = (part + half) * 10**power
    while (following := _smaller_part(text, end, power, code)) is not None:
        more, power, end = following
        total += more
    if code in SCALE_FIRST and (joined := re.compile(rf"\s+(?:{language(code).ands})\s+").match(text, end)):
        word = number_word(text[joined.end() :], code)  # elfu 5 na mia tatu
        total += int(word) if word and word.isdigit() and int(word) < 10**power else 0
    return Quantity(canonical(sign * total), end)


def _smaller_part(text: str, end: int, power: int, code: str) -> tuple[Fraction, int, int] | None:
    """(value, power of ten of its scale, end) of a further part that is smaller than one of `power`."""
    joint = re.compile(rf"\s*(?:{language(code).ands or '(?!)'})(?![^\W\d_])\s*", re.IGNORECASE).match(text, end)
    position = joint.end() if joint else end + len(text[end:]) - len(text[end:].lstrip())
    before = _scale_first(code).match(text, position) if code in SCALE_FIRST else None
    start = before.end() if before else position
    token = NUMBER.match(text, start)
    if token is None or (start == end and not before) or not token.group()[0].isdigit():
        return None
    number = canonical_number(token.group(), code)
    stop = start + len(token.group().rstrip(".,'’" + SPACES))
    if number is None or re.match(r"\s*[/:]\s*\d", text[stop:]):
        return None
    below, stop = (_power_of(before), stop) if before else _power_after(text, stop, code)
    if below is None and (code == "vi" or (joint and code not in SCALE_FIRST) or "." in number):
        return None  # of Vietnamese "2 triệu 5" the last digit counts hundreds of thousands
    value = Fraction(number) * 10 ** (below or 0)
    return (value, below or 0, stop) if value < 10**power else None


def _with_half(value: Fraction, before: str, text: str, end: int, code: str) -> tuple[Fraction, int]:
    """`value` with what "and a half" or "and 2/3" at `end` or a word before the number adds, and the words' end."""
    half_before = nfc(language(code).half_before)
    mixed = _and_fraction(code).match(text, end)
    if mixed is not None and value.denominator == 1 and 0 < int(mixed[1]) < int(mixed[2]):
        return value + Fraction(int(mixed[1]), int(mixed[2])), mixed.end()
    if half_before and re.search(rf"(?:{half_before})\s*$", before):
        return value + Fraction(1, 2), end
    if code == "en" and (part := AND_PART.match(text, end)) is not None:
        return value + Fraction(1, PARTS[part.group(1).lower()]), part.end()
    match = half_behind(code).match(text, end)
    return (value + Fraction(1, 2), match.end()) if match else (value, end)


@functools.cache
def _and_fraction(code: str) -> re.Pattern:
    fraction = r"(\d{1,3})\s*/\s*(\d{1,3})(?!\d|\s*[./]\d)"
    return re.compile(rf"\s+(?:{nfc(language(code).ands) or '(?!)'})\s+{fraction}", re.IGNORECASE)


SCALE_FIRST = frozenset({"sw", "ha"})
"""Languages whose scales and units stand before the number: "elfu 5", "dola 3"."""


@functools.cache
def _scales(code: str) -> str:
    return "|".join(f"(?P<p{power}>{nfc(words)})" for power, words in language(code).scales.items()) or "(?!)"


@functools.cache
def _scale_behind(code: str) -> re.Pattern:
    end = rf"(?![^\W\d_]|{VOWEL_SIGN})" if language(code).spaced else ""
    return re.compile(rf"\s*(?:{_scales(code)}){end}", re.IGNORECASE)


@functools.cache
def _scale_first(code: str) -> re.Pattern:
    return re.compile(rf"(?:{_scales(code)})\s+(?=\d)", re.IGNORECASE)


def _power_of(match: re.Match) -> int:
    return next(int(name[1:]) for name, value in match.groupdict().items() if value)


def _power_after(text: str, end: int, code: str) -> tuple[int | None, int]:
    match = _scale_behind(code).match(text, end)
    return (_power_of(match), match.end()) if match else (None, end)


def _power_before(before: str, code: str) -> int | None:
    word = re.search(r"(\S+)\s*$", before) if code in SCALE_FIRST else None
    match = _scale_behind(code).fullmatch(word.group(1)) if word else None
    return _power_of(match) if match else None


@functools.cache
def number_prefix(code: str) -> re.Pattern:
    """A pattern of the words that belong to the number behind them: a scale, "half more than"."""
    scales = _scales(code) if code in SCALE_FIRST else "(?!)"
    return re.compile(rf"(?:{scales}|{nfc(language(code).half_before) or '(?!)'})\s+(?=\d)", re.IGNORECASE)


def _with_point(digits: str, comma_decimal: bool) -> str:
    """`digits` with a decimal point and without thousands separators; "" if they are not one number."""
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
        # 1,234,567 and 1,14,200 are numbers; 2,3,7 is a list.
        grouped = len(groups[-1]) == 3 and all(len(group) in (2, 3) for group in groups[1:-1])
        return "".join(groups) if grouped and len(groups[0]) <= 3 else ""
    grouped = len(tail) == 3 and 1 <= len(head) <= 3 and not head.startswith("0")
    if grouped and (mark == "," or comma_decimal):
        return head + tail
    return f"{head}.{tail}"


def canonical(value: Decimal | Fraction) -> str:
    """Decimals without trailing zeros, or a reduced fraction if the decimals do not terminate."""
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
