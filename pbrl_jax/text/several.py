"""What keeps a number from being one exact answer: further numbers, measures in several parts, "more than"."""

import functools
import re

from pbrl_jax.text.languages import language, nfc
from pbrl_jax.text.quantities import SCALE_FIRST

_SIGN_BEFORE = re.compile(r"(?:(?<![-=<])(?:[<≤≥≠]|(?<!^)(?<![-=])>)=?|\\(?:[gl]eq?|[gl]t|neq?))\s*$")
"""A sign of comparison; no arrow, and no ">" that begins a quotation."""
_TAG = re.compile(r"<[^<>]*>\s*$")
_SIGN_AFTER = re.compile(r"\s*(?:[<>]=?\s|[≤≥]|\\(?:[gl]eq?|[gl]t)(?![A-Za-z]))\s*[A-Za-z](?![A-Za-z])")
_UNIT = r"[^\s\d%°,;:.()=+*/<>]+"
_SHORT_MEASURES = r"h|hrs?|mins?|s|secs?|m|cm|mm|km|kg|g|ft|lbs?|oz|mi"
_LISTED_END = re.compile(r"[\s%°]*(?:[^\W\d_]\S*?)?\s*(?:$|[.;!?)\]।。`*_\"”»])")
"""The end of a list: at most one word, then the end of the sentence."""
_NAME = r"(?:[A-Za-z]\w?\s*=\s*)?"


def compared(before: str, after: str, code: str) -> bool:
    """Whether a number between `before` and `after` is only a bound: "more than 5", "x > 5", "between 5 and 10"."""
    if (_SIGN_BEFORE.search(before) and not _TAG.search(before)) or _SIGN_AFTER.match(after):
        return True
    in_front, behind = _comparisons(code)
    return bool(in_front.search(before) or behind.match(after))


@functools.cache
def _comparisons(code: str) -> tuple[re.Pattern, re.Pattern]:
    entry = language(code)
    start = r"(?<![^\W_])" if entry.spaced else ""
    unit = rf"(?:\s+{_UNIT})?" if code in SCALE_FIRST else ""
    in_front = rf"{start}(?:{nfc(entry.comparisons) or '(?!)'}){unit}\s*$"
    gap = rf"\s*(?:{_UNIT}\s+)?" if entry.spaced else r"\s*[^\W\d_]{0,2}?\s*"
    behind = rf"{gap}(?:{nfc(entry.comparisons_after) or '(?!)'})"
    return re.compile(in_front, re.IGNORECASE), re.compile(behind, re.IGNORECASE)


def second_measure(before: str, after: str, code: str) -> bool:
    """Whether a number with another unit belongs to a number: "1 hour 30 minutes", "3 apples and 2 pears", "5 apples or
    6 apples". A number in another unit behind "or" says the same again: "2 hours or 120 minutes"."""
    parts, joined, unit_first = _measures(code)
    if parts.match(after) or _range(code).match(after):
        return True
    if unit_first is not None and (match := unit_first.match(after)):
        own = re.search(rf"({_UNIT})\s*$", before)
        return match["or"] is None or (own is not None and own.group(1).casefold() == match["unit"].casefold())
    match = joined.match(after)
    if match is None:
        return False
    other = match["second"]
    return match["or"] is None or not other or match["unit"].casefold()[:3] == other.casefold()[:3]


@functools.cache
def _measures(code: str) -> tuple[re.Pattern, re.Pattern, re.Pattern | None]:
    """Patterns behind a number: a measure and a smaller one; a unit, "and" or "or", a number; that with units first."""
    entry = language(code)
    names = "|".join(filter(None, (nfc(entry.measures), _SHORT_MEASURES)))
    measure = rf"(?:{names})" + (r"(?![^\W\d_])" if entry.spaced else "")
    number = r"\d[\d.,]*"
    join = rf"(?:(?P<or>{nfc(entry.ors) or '(?!)'})|(?:{nfc(entry.ands) or '(?!)'}))(?![^\W\d_])"
    inches = r"in(?=\s*(?:$|[.,;!?)]))"
    # A language may add an ending: 30 dakikadır.
    second = rf"{measure}|(?:{nfc(entry.measures) or '(?!)'})[^\W\d_]{{1,6}}|{inches}"
    parts = rf"[\s-]*{measure}\s*(?:{number}(?<!,)\s*(?:{second}|$|[!?।。])|,\s*{number}\s*{measure})"
    if entry.spaced:
        joined = rf"\s*(?P<unit>{_UNIT})(?:\s+{_UNIT})?\s+{join}\s*{number}\s*(?P<second>{_UNIT})?"
    else:
        unit = r"[^\s\d,;:.，。、；：（）]"
        joined = rf"\s*(?P<unit>{unit}{{1,10}}?)\s*{join}\s*{number}\s*(?P<second>{unit}+)?"
    first = rf"\s+{join}\s+(?P<unit>{_UNIT})\s+{number}"
    unit_first = re.compile(first, re.IGNORECASE) if code in SCALE_FIRST else None
    return re.compile(parts, re.IGNORECASE), re.compile(joined, re.IGNORECASE), unit_first


@functools.cache
def _range(code: str) -> re.Pattern:
    """A pattern behind the first end of a range: "to 6", "euros to 6 euros"."""
    entry = language(code)
    to = nfc(entry.to) or "(?!)"
    if not entry.spaced:
        return re.compile(rf"\s*(?:(?P<unit>[^\s\d,;，、；。]{{1,4}}?)\s*)?(?:{to})\s*\d[\d.,]*(?(unit)\s*(?P=unit))")
    end = r"(?![^\W\d_])[\s$€£¥₹]*\d[\d.,]*"
    return re.compile(rf"\s+(?:(?P<unit>{_UNIT})\s+)?(?:{to}){end}(?(unit)\s+(?P=unit))", re.IGNORECASE)


@functools.cache
def separator(code: str) -> re.Pattern:
    """A pattern of what stands before a further number; its group `join` is a word that joins the last one."""
    entry = language(code)
    start, stop = (r"\s+(?:\()?|\s*\(|\s*[,;،]\s*", r"(?![^\W\d_])") if entry.spaced else (r"\s*[,，、]?\s*\(?", "")
    ors, ands = nfc(entry.ors) or "or", nfc(entry.ands) or "and"
    comma_and = rf"\s*[,;،]\s+(?:{ands}){stop}"
    words = rf"(?:{start})(?P<join>(?:{ors}|{ands}){stop}|&)"
    return re.compile(
        rf"[\s\"”’']*[%°]?(?:{comma_and}|{words}|\s*[,،，]\s+|\s*[;；、]\s*)[\s\"“‘']*{_NAME}(?=-?\d)", re.IGNORECASE
    )


@functools.cache
def alternative(code: str) -> re.Pattern:
    """A pattern of "or" behind a number or a number word; its group `digit` is whether digits follow within a word."""
    entry = language(code)
    ors = nfc(entry.ors) or "or"
    if not entry.spaced:
        return re.compile(rf"\s*(?:{ors})\s*(?P<digit>-?\d)?", re.IGNORECASE)
    digit = rf"(?P<digit>(?:{_UNIT}\s+)?-?\d)?"
    return re.compile(rf"[\s,(]+(?:{ors})(?![^\W\d_])\s*{digit}", re.IGNORECASE)


@functools.cache
def joint(code: str) -> re.Pattern:
    """A pattern of "and", "or" and commas between two formulas; its group `join` is the word."""
    entry = language(code)
    words = "|".join(filter(None, (nfc(entry.ors), nfc(entry.ands)))) or "or|and"
    comma = r"(?<=[,;，、])|(?<=[,;，、] )"
    return re.compile(rf"\s*(?:[,;，、]\s*)?(?:(?P<join>{words})|{comma})\s*(?=[$\\])", re.IGNORECASE)


def ends_list(text: str, end: int) -> bool:
    """Whether only a unit and the end of the sentence follow."""
    return _LISTED_END.match(text, end) is not None


def listed(values: list[str]) -> str:
    """`values` as one list, with semicolons where commas could be read as separators of thousands."""
    mark = ";" if any(re.match(r"\d{3}(?!\d)", value) for value in values[1:]) else ","
    return mark.join(values)
