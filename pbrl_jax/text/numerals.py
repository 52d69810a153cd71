"""Conversion of numerals to ASCII digits: digits of every script, Han numerals, number words, powers of ten."""

import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from pbrl_jax.text.languages import language, nfc

_HAN_DIGITS = {
    "〇": 0, "零": 0, "○": 0, "一": 1, "二": 2, "两": 2, "兩": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8,
    "九": 9, "壹": 1, "贰": 2, "貳": 2, "叁": 3, "參": 3, "肆": 4, "伍": 5, "陆": 6, "陸": 6, "柒": 7, "捌": 8, "玖": 9,
}  # fmt: skip
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_HAN_MYRIADS = dict.fromkeys("万萬만", 10**4) | dict.fromkeys("亿億억", 10**8) | dict.fromkeys("兆조", 10**12)
_DIGITS, _UNITS = "".join(_HAN_DIGITS), "".join(_HAN_UNITS)
HAN_NUMBER = re.compile(rf"-?[{_DIGITS}{_UNITS}万萬亿億](?:[{_DIGITS}{_UNITS}万萬亿億]|[点點.,](?=[{_DIGITS}]))*")
"""A Han numeral: positional ("一二五〇", "二,一二五", as in CLDR) or with units ("一千二百五十", "三点五")."""
_SCALES = {"百": 100, "백": 100, "千": 1000, "천": 1000, **_HAN_MYRIADS}
_SCALE = rf"(?:[{''.join(_HAN_MYRIADS)}천백]|[千百](?![克米瓦卡分]))"
_MYRIAD_RUN = re.compile(rf"(?<![\d,])(?:\d[\d,]*(?:\.\d+)?\s*{_SCALE}+\s*)+(?:\d[\d,]*)?")
_MYRIAD_TERM = re.compile(rf"(\d[\d,]*(?:\.\d+)?)\s*({_SCALE}*)")
_SINO_KOREAN = str.maketrans("영공일이삼사오육칠팔구십백천만억", "零零一二三四五六七八九十百千万亿")
_KOREAN_TENS = dict(zip("열 스물 서른 마흔 쉰 예순 일흔 여든 아흔".split(), range(10, 100, 10), strict=True)) | {
    "스무": 20
}
_KOREAN_UNITS = dict(zip("하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉".split(), range(1, 10), strict=True))
_KOREAN_UNITS |= {"한": 1, "두": 2, "세": 3, "네": 4}
_KOREAN = re.compile(rf"({'|'.join(_KOREAN_TENS)})?({'|'.join(_KOREAN_UNITS)})?(?![가-힣])")
_SINO = re.compile("[영공일이삼사오육칠팔구십백천만억]+(?![가-힣])")
_KOREAN_ENDINGS = re.compile("(?:입니다|이다|이에요|예요|개|명|원|살|마리|달러)+(?![가-힣])")
_POWER = re.compile(
    r"(?<![\w.,])(\d{1,3}(?:,\d{3})+|\d+)((?:[.,]\d+)?)(?:\s*(?:[×x*·]|\\times|\\cdot)\s*10\s*\^\s*\{?|[eE])"
    r"([+-]?\d{1,3})(?!\d)\}?"
)


_LATEX_FRACTION = re.compile(r"(\d)?\s*\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(-?\d+)\s*\}|(\d))")
_SIGNS = str.maketrans("٫٬٪−﹣－", ".,%---")
_ARABIC_THOUSANDS = re.compile(r"(?<=\d)،(?=\d{3}(?!\d))")


def ascii_digits(text: str) -> str:
    """`text` with every Unicode decimal digit, Arabic separator and minus sign in its ASCII form."""
    text = text.translate(_SIGNS)
    if text.isascii():
        return text
    text = _ARABIC_THOUSANDS.sub(",", text)
    return "".join(str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text)


def han_number(written: str) -> str:
    """A match of HAN_NUMBER in ASCII digits; positional numerals keep their separators ("二,一二五" -> "2,125")."""
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
    unit = 1
    for c in text:
        if c in _HAN_DIGITS:
            # A last digit directly after a unit counts the next smaller unit: 一千五 is 1500, 一千零五 is 1005.
            digit, unit = _HAN_DIGITS[c], unit if _HAN_DIGITS[c] else 1
        elif c in _HAN_UNITS:
            section, digit, unit = section + (digit or 1) * _HAN_UNITS[c], 0, _HAN_UNITS[c]
        elif _HAN_MYRIADS[c] == 10**4:
            total, section, digit, unit = total + (section + digit or 1) * 10**4, 0, 0, 10**4
        else:
            total, section, digit, unit = (total + section + digit or 1) * _HAN_MYRIADS[c], 0, 0, _HAN_MYRIADS[c]
    return total + section + digit * max(1, unit // 10)


def korean_number(text: str) -> int | None:
    """The value of the Korean number word at the beginning of `text`, native (스물하나) or Sino-Korean (이십)."""
    ending = _KOREAN_ENDINGS.search(text)
    word = text[: ending.start()].strip() if ending else text.strip()
    native = _KOREAN.fullmatch(word)
    if native and word:
        return _KOREAN_TENS.get(native.group(1), 0) + _KOREAN_UNITS.get(native.group(2), 0)
    return _by_units(word.translate(_SINO_KOREAN)) if _SINO.fullmatch(word) else None


_HAN_ANSWER = re.compile(
    rf"(?:第|约|約|一?共)?({HAN_NUMBER.pattern})(?:分[之の]({HAN_NUMBER.pattern}))?(?![样樣般直些起共定切旦致番部緒])"
)
"""A Han numeral at the beginning of a text; with the excluded characters 一 is part of another word (一样, 一共)."""
_ONE_ALONE = re.compile(r"\s*(?:$|[.,;:!?)*。।])")
PARTS = {"half": 2, "halves": 2, "tenth": 10} | dict.fromkeys(("third", "thirds"), 3)
PARTS |= dict.fromkeys(("quarter", "quarters"), 4) | dict.fromkeys(("fifth", "fifths"), 5)
_PART = re.compile(rf"[\s-]*(?:of )?(?:a )?({'|'.join(PARTS)})(?![^\W_])", re.IGNORECASE)
AND_PART = re.compile(
    rf"(?:\s+(?:{language('en').measures}))?\s+and (?:an?|one) ({'|'.join(PARTS)})(?![^\W_])", re.IGNORECASE
)
MINUS_WORDS = "minus|negative|moins|menos|meno|минус|мінус|eksi|âm|hasi|negatif|minusz|mínus|منفی|سالب|ناقص"
_MINUS_WORD = re.compile(rf"(?:{MINUS_WORDS})\s+", re.IGNORECASE)


@functools.cache
def number_words() -> dict[str, list[str]]:
    """Language -> its number words 0 to 99 (number_words.json)."""
    return json.loads(Path(__file__).with_name("number_words.json").read_text(encoding="utf-8"))


@functools.cache
def half_behind(code: str) -> re.Pattern:
    """A pattern of "and a half" behind a number, with or without a measure: "1 heure et demie", "1个半小时"."""
    entry = language(code)
    gap, stop = (r"\s+", r"(?![^\W_])") if entry.spaced else (r"\s*", "")
    unit = rf"(?:{gap}(?:{nfc(entry.measures) or '(?!)'}|[个個]))?"
    return re.compile(rf"{unit}{gap}(?:{nfc(entry.and_half) or '(?!)'}){stop}", re.IGNORECASE)


def number_word(text: str, code: str, whole: bool = False) -> str | None:
    """The value of the number word at the beginning of `text`, in figures ("20", "2/3"); None without one.

    Han numerals in Chinese and Japanese, both Korean series, and the words of languages.json and number_words.json (0
    to 99), in sums and products ("three thousand five hundred", "kumi na mbili"), in English also fractions. With
    `whole` the word must be the whole text.
    """
    if code in ("zh", "ja", "zho_Hant"):
        match = HAN_NUMBER.fullmatch(text) if whole else _HAN_ANSWER.match(text)
        if match is None:
            return None
        below, above = (match.group(), None) if whole else match.groups()
        if above is None and not whole and (text.startswith("一半") or half_behind(code).match(text, match.end())):
            return str(Fraction(1, 2) + (0 if text.startswith("一半") else Fraction(han_number(below))))
        if above is None:
            return han_number(below)
        return han_number(above) if below == "百" else f"{han_number(above)}/{han_number(below)}"
    minus = _MINUS_WORD.match(text)
    if minus is not None:
        value = number_word(text[minus.end() :], code, whole)
        return None if value is None else f"-{value}"
    if code == "ko":
        found = korean_number(text)
        return None if found is None else str(found)
    return _word_of_table(text, code, whole)


def _word_of_table(text: str, code: str, whole: bool) -> str | None:
    pattern, values = _number_words(code)
    parts: list[int] = []
    end = 0
    while pattern is not None and (match := pattern.match(text, end)):
        groups = match.groupdict()
        power = next((int(name[1:]) for name, found in groups.items() if name[0] == "p" and found), None)
        value = values[match["word"].lower()] if power is None else 10**power
        if power is not None and not parts:
            break
        if code == "sw" and parts and parts[-1] in (100, 1000) and not match["joined"]:
            parts[-1] *= value  # mia mbili: the hundreds stand first
        elif value in (10, 100) or value % 1000 == 0 and value:
            # Of "three hundred thousand" all parts are thousands, of "two thousand one hundred" the last one is not.
            below = []
            while parts and parts[-1] < value:
                below.append(parts.pop())
            parts.append(value * (sum(below) or 1))
        elif not parts or _has_room(parts[-1], value, code):
            parts.append(value)
        else:
            break
        end = match.end()
    total = sum(parts)
    if code == "en" and (part := _PART.match(text, end)) is not None and (parts or end == 0):
        return f"{total or 1}/{PARTS[part.group(1).lower()]}"
    if code == "en" and parts and (part := AND_PART.match(text, end)) is not None:
        below_one = PARTS[part.group(1).lower()]
        return f"{total * below_one + 1}/{below_one}"
    if parts and half_behind(code).match(text, end):
        return f"{2 * total + 1}/2"
    if total in (100, 1000) and len(parts) == 1 and re.match(r"\s*\d", text[end:]):
        return None  # a scale before its number: elfu 5
    if not parts or (whole and text[end:].strip(" .")):
        return None
    if code == "ar" and re.match(r"\s+(?:عشر|و)", text[end:]):
        return None  # 15 and 25 begin with five
    # "one" and "un" may also be articles and pronouns.
    return str(total) if total != 1 or _ONE_ALONE.match(text, end) else None


def _has_room(above: int, value: int, code: str) -> bool:
    """Whether `value` may follow a larger part, as two follows twenty (in French also fifteen follows sixty)."""
    digits = 10 ** len(str(value))
    return 0 < value < above and (above % digits == 0 or (code == "fr" and above % 100 in (60, 80) and value < 20))


@functools.cache
def _number_words(code: str) -> tuple[re.Pattern | None, dict[str, int]]:
    """(pattern of one part of a number word, with the groups `joined`, `word`, and `p3` for a thousand; values)."""
    entry = language(code)
    values = {word: value for value, word in enumerate(entry.numbers.split())}
    values |= {word: 30 + 10 * place for place, word in enumerate(entry.tens.split())}
    small: Sequence[str] = number_words().get(code, ())
    if code == "ms":
        small = [word.replace("delapan", "lapan") for word in number_words()["id"][1:]]
        values |= {word: value for value, word in enumerate(small, start=1)}
    elif code == "it":
        units, tens = entry.numbers.split()[1:10], ["venti", *entry.tens.split()[:-1]]
        for ten, unit in itertools.product(tens, units):
            stem = ten[:-1] if unit in ("uno", "otto") else ten
            written = stem + unit
            values |= dict.fromkeys((written, written.replace("tre", "tré")), values.get(ten, 0) + values[unit])
    else:
        values |= {word.replace("-", " "): value for value, word in enumerate(small)} if code != "en" else {}
    further = (part.rpartition(" ") for part in entry.more_numbers.split(", ") if part)
    values |= {name: int(value) for name, _, value in further}
    if not values:
        return None, values
    words = "|".join(sorted((re.escape(word).replace("\\ ", r"[\s-]+") for word in values), key=len, reverse=True))
    scales = "".join(f"|(?P<p{power}>{names})" for power, names in entry.scales.items() if (code, power) != ("en", "2"))
    joined = f"(?P<joined>(?:{entry.number_joint})\\s+)?" if entry.number_joint else "(?P<joined>(?!))?"
    return re.compile(rf"[\s-]*{joined}(?:(?P<word>{words}){scales})(?![^\W_])", re.IGNORECASE), values


def without_myriads(plain: str) -> str:
    """`plain` with 백, 千, 万, 억 ... after digits multiplied out: "5万7500" -> "57500", "3.5 万" -> "35000"."""

    def value(match: re.Match) -> str:
        total = Decimal(0)
        for number, units in _MYRIAD_TERM.findall(match.group()):
            term = Decimal(number.replace(",", ""))
            for unit in units:
                term *= _SCALES[unit]
            total += term
        return f"{total:f}" + (" " if match.group()[-1].isspace() else "")

    return _MYRIAD_RUN.sub(value, plain)


def without_powers(plain: str) -> str:
    """`plain` with powers of ten multiplied out: "1.5 × 10^3" -> "1500.0", "2e-2" -> "0.02". A comma may be the decimal
    mark."""

    def value(match: re.Match) -> str:
        whole, decimals, power = match.groups()
        number = Decimal(whole.replace(",", "") + decimals.replace(",", "."))
        return f"{number.scaleb(int(power)):f}"

    return _POWER.sub(value, plain)


def without_latex_fractions(plain: str) -> str:
    r"""`plain` with \frac of whole numbers as divisions: "\dfrac12" -> "1/2", "1\frac{1}{2}" -> "1 1/2"."""

    def value(match: re.Match) -> str:
        above, below = match[2] or match[3], match[4] or match[5]
        return f"{match[1]} {above}/{below}" if match[1] else f"{above}/{below}"

    return _LATEX_FRACTION.sub(value, plain)
