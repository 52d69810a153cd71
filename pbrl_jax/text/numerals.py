"""Numbers as scripts and schools write them, in ASCII: digits of every script, Han numerals, powers of ten."""

import re
import unicodedata
from decimal import Decimal

_HAN_DIGITS = {
    "〇": 0, "零": 0, "○": 0, "一": 1, "二": 2, "两": 2, "兩": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8,
    "九": 9,
}  # fmt: skip
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000}
_HAN_MYRIADS = {"万": 10**4, "萬": 10**4, "만": 10**4, "亿": 10**8, "億": 10**8, "억": 10**8}
_DIGITS, _UNITS, _MYRIADS = ("".join(table) for table in (_HAN_DIGITS, _HAN_UNITS, _HAN_MYRIADS))
HAN_NUMBER = re.compile(rf"-?[{_DIGITS}{_UNITS}万萬亿億](?:[{_DIGITS}{_UNITS}万萬亿億]|[点點.,](?=[{_DIGITS}]))*")
"""A Han numeral: by place ("一二五〇", "二,一二五", as CLDR writes them) or by units ("一千二百五十", "三点五")."""
_MYRIAD_RUN = re.compile(rf"(?<![\d,])(?:\d[\d,]*(?:\.\d+)?\s*[{_MYRIADS}]\s*)+(?:\d[\d,]*)?")
_MYRIAD_TERM = re.compile(rf"(\d[\d,]*(?:\.\d+)?)\s*([{_MYRIADS}]?)")
_POWER = re.compile(
    r"(?<![\w.,])(\d{1,3}(?:,\d{3})+|\d+)((?:[.,]\d+)?)(?:\s*(?:[×x*·]|\\times|\\cdot)\s*10\s*\^\s*\{?|[eE])"
    r"([+-]?\d{1,3})(?!\d)\}?"
)


def ascii_digits(text: str) -> str:
    """`text` with every Unicode decimal digit, Arabic separator and minus sign in its ASCII form."""
    text = text.replace("٫", ".").replace("٬", ",").replace("−", "-").replace("﹣", "-").replace("－", "-")
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text)


def han_number(written: str) -> str:
    """A match of HAN_NUMBER in ASCII digits, separators kept where it counts by place ("二,一二五" -> "2,125")."""
    sign, digits = ("-", written[1:]) if written.startswith("-") else ("", written)
    if not set(digits) & {*_HAN_UNITS, *_HAN_MYRIADS}:
        return sign + "".join(str(_HAN_DIGITS.get(c, "." if c in "点點" else c)) for c in digits)
    whole, _, decimals = re.sub("[點.]", "点", digits).partition("点")
    value = _by_units(whole.replace(",", ""))
    # 三点五万 is 3.5 times ten thousand.
    scale = next((factor for c, factor in _HAN_MYRIADS.items() if decimals.endswith(c)), 1)
    part = "".join(str(_HAN_DIGITS[c]) for c in decimals if c in _HAN_DIGITS)
    return f"{sign}{Decimal(f'{value}.{part or 0}') * scale:f}"


def _by_units(text: str) -> int:
    total = section = digit = 0
    for c in text:
        if c in _HAN_DIGITS:
            digit = _HAN_DIGITS[c]
        elif c in _HAN_UNITS:
            section += (digit or 1) * _HAN_UNITS[c]
            digit = 0
        elif _HAN_MYRIADS[c] == 10**4:
            total, section, digit = total + (section + digit or 1) * 10**4, 0, 0
        else:
            total, section, digit = (total + section + digit or 1) * _HAN_MYRIADS[c], 0, 0
    return total + section + digit


def without_myriads(plain: str) -> str:
    """Digits with 万, 亿, 만 or 억 behind them written out: "5万7500" -> "57500", "3.5 万" -> "35000"."""

    def value(match: re.Match) -> str:
        terms = _MYRIAD_TERM.findall(match.group())
        total = sum(Decimal(number.replace(",", "")) * _HAN_MYRIADS.get(unit, 1) for number, unit in terms)
        return f"{total:f}" + (" " if match.group()[-1].isspace() else "")

    return _MYRIAD_RUN.sub(value, plain)


def without_powers(plain: str) -> str:
    """Powers of ten written out: "1.5 × 10^3" -> "1500.0", "2e-2" -> "0.02". A comma may be the decimal mark."""

    def value(match: re.Match) -> str:
        whole, decimals, power = match.groups()
        number = Decimal(whole.replace(",", "") + decimals.replace(",", "."))
        return f"{number.scaleb(int(power)):f}"

    return _POWER.sub(value, plain)
