r"""Values of answers: numbers in any script and with any separators, fractions, times, options, LaTeX."""

import functools
import re
import unicodedata
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from pbrl_jax.text.languages import LANGUAGES, VOWEL_SIGN, language
from pbrl_jax.text.normalise import FORMAT
from pbrl_jax.text.numerals import ascii_digits, number_word, without_myriads, without_powers
from pbrl_jax.text.options import native_option, option_letter

_SPACES = " \u00a0\u2009\u202f"
_NUMBER = re.compile(
    rf"(?<![\d.,])(?:(?<![\dA-Za-z)])(?<![\d)][{_SPACES}])-)?"
    rf"(?:\d|(?<!\w)\.\d)(?:[\d.,'’]|[{_SPACES}](?=\d{{3}}(?!\d)))*"
)
_FRACTION = re.compile(r"(-?)(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)(?![\d.,]*\d)")
_LATEX_FRACTION = re.compile(r"(\d)?\s*\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(-?\d+)\s*\}|(\d))")
_TIME = re.compile(r"(\d{1,2}:\d{2}(?::\d{2})?)(?:\s*([ap])\.?\s?m\b\.?)?(?![\d:])", re.IGNORECASE)
_HAN_TIME = re.compile(r"(\d{1,2})\s*[时時点點시]\s*(\d{1,2})\s*[分분]")
_HAN_FRACTION = re.compile(r"(\d+)\s*(?:分之|分の|분의)\s*(\d+)")
_RATIO = re.compile(r"\d+:\d+(?![\d:])")
_EXPRESSION = re.compile(r"[^\s,;，。；]+")
_ORDINAL = re.compile(r"(?:st|nd|rd|th|er|ère|e|ème|º|ª|o|a)(?![^\W_])")
_SUPERSCRIPT = re.compile(r"\^\s*\{?\s*(?:\\circ|°|\\degree)\s*\}?|\\degree")
_CLAUSE_END = re.compile(
    r"[,;:，、；。!?(](?!\d)|\.(?!\d)|\s(?:because|since|as|weil|da|car|porque|perché|karena|kwa sababu)\s"
)
_CIRCUMSTANCE = re.compile(r"\W*[AÀ]\s+\d[^,;]*,\s*(-?\d[\d.,]*)\W*$")
"""A phrase with a preposition before the value: "a 3 km, 5"."""
_RANGE = re.compile(r"\s*(?:[-–~〜～]|to|bis|à|до)\s*\d")
_SIDE = re.compile(r"=\s*(-?[\d.,]+)")
_OPERATION = re.compile(r"\d[\s)]*(?:[-+*/×·÷x]|\\(?:times|cdot|div))|\d\s+[^\W\d_]+\s*[-+*/×·÷x]\s*\d")
_MINUS = re.compile(
    r"(?<![\d)])(?<![\d)]\s)(?:\b(?:minus|negative|moins|menos|meno|минус|мінус|eksi|âm|hasi|negatif|minusz|mínus|منفی|سالب|ناقص)\s+"
    r"|(?:ลบ|负|負|マイナス|마이너스|ऋण|माइनस|মাইনাস|ঋণাত্মক|మైనస్)\s*|[–—](?=\d))(?=\d)",
    re.IGNORECASE,
)
_TRAILING_MINUS = re.compile(r"(?<![\d.,])(\d[\d.,]*)-(?![\d\w])")
_NOT = re.compile(r"(?:\b(?:not|nicht|isn't|не|si|sio|bukan|değil)|no es|n'est pas|không phải|不是)\s*$", re.IGNORECASE)
_BUT = re.compile(r"\b(?:but|sondern|sino|mais|а|bali|tapi|melainkan|mà)\b|而是", re.IGNORECASE)
_LEAD = re.compile(r"[\s*_:：=≈~\"'“”‘’„«»「『`]*")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|textit|operatorname|mathit|mathsf)\s*\{([^{}]*)\}")
_NAMED = re.compile(r"^\s*\$?\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?\s*=(?!.*=)")
_LIST = re.compile(r"-?\d+,\d{1,2}(?!\d)|-?\d+,\d{4,}")
_CURRENCY = re.compile(r"\\\$|\b(?:R|US|HK|NT|A|C|S)(?=\$)|[$€£¥₹฿₩₽₫৳₦]")
_CURRENCY_FIRST = re.compile(
    r"(?:Rp|Rs|RM|Kshs?|KSh|Tshs?|TSh|Ush|[A-Z]{2}D|EUR|GBP|INR|KES|TZS|UGX|NGN|ZAR|IDR)(?![A-Za-z])\.?\s*(?=\d)"
)
"""Currencies that are written before their amount."""
_MATHS = re.compile(r"(?<!\\)\$((?:\\.|[^$\\])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_FUNCTION = re.compile(r"sin|cos|tan|log|ln|exp|sqrt|mod|max|min(?!ut)|lim|gcd|lcm")
_CONNECTIVE = re.compile(
    r"(?<!\w)(?:and|or|und|oder|et|ou|y|o|e|и|или|na|au|dan|atau|và|hoặc|else|more)(?!\w)|[和或及、]|また|または",
    re.IGNORECASE,
)
UNITS = frozenset(
    "m g s h l L t V W A N J K C F km cm mm dm nm µm kg mg µg lb lbs oz ft mi yd kn ml mL cl dl kL ha Hz kHz MHz GHz "
    "kW kWh Wh kJ kcal cal Pa kPa ms min hr hrs sec km² m² mph kmh kph mpg rpm px MB GB TB KB kB USD EUR GBP INR CNY "
    "RMB JPY KES TZS NGN ZAR RUB IDR VND THB BDT Rp RM TL am pm AM PM".split()
)
"""Units and currency codes that may follow a number without a space; they are words of no language."""
LONGEST_NUMBER = 400
"""Largest number of digits of an answer."""
LONGEST_LINE = 2000
"""Number of characters of a line that are read."""


def canonical_number(token: str, code: str) -> str | None:
    """`token` ("1.250,50") with the separators of language `code` as a canonical decimal string; None if it is none."""
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
    return canonical(value)


def plain(text: str) -> str:
    """`text` in NFKC with ASCII digits, without markdown and currency; powers and fractions are kept."""
    spread = text if text.isascii() else FORMAT.sub("", "".join(_spread(c) for c in text))
    folded = ascii_digits(unicodedata.normalize("NFKC", spread)).replace("\u2044", "/")
    folded = folded.replace("{,}", ",").replace("\\!", "").replace("\\%", "%").replace("**", "")
    folded = re.sub(r"(?<=\d)\\,(?=\d{3})", "", folded)
    return _CURRENCY.sub("", re.sub(r"\\[,;: ]|~", " ", folded))


def _spread(c: str) -> str:
    """`c` with a sign or space that keeps NFKC from turning m² into m2 and 7½ into 71/2."""
    kind = unicodedata.decomposition(c).split(" ")[0]
    if kind in ("<super>", "<sub>"):
        return "^" + c
    return " " + c if kind == "<fraction>" else c


def _in_figures(text: str, code: str) -> str:
    """`plain` with minus words, LaTeX fractions and powers of ten in ASCII figures; in Chinese, Japanese and Korean
    also myriads, times and fractions."""
    folded = _LATEX_FRACTION.sub(_slashed, _MINUS.sub("-", plain(text)))
    if code in ("ar", "fa", "ur", "he"):
        folded = _TRAILING_MINUS.sub(r"-\1", folded)
    if code in ("zh", "ja", "ko"):
        folded = _HAN_TIME.sub(lambda match: f"{match[1]}:{match[2].zfill(2)}", folded)
        folded = without_myriads(_HAN_FRACTION.sub(r"\2/\1", folded))
        folded = re.sub(r"百分之\s*(?=\d)", "", folded)
    return without_powers(folded)


def _slashed(match: re.Match) -> str:
    above, below = match[2] or match[3], match[4] or match[5]
    return f"{match[1] or ''} {above}/{below}" if match[1] else f"{above}/{below}"


def last_number(text: str, code: str) -> str | None:
    """The last number of a text, preferably one that does not follow a letter, `^` or `_`."""
    numbers = list(_NUMBER.finditer(plain(text)))
    free = [m for m in numbers if not re.search(r"[A-Za-z^_]$", m.string[: m.start()][-1:])] or numbers
    return canonical_number(free[-1].group(), code) if free else None


def read_line(line: str, code: str, at_once: bool = False) -> str | None:
    """The answer in a line; with `at_once` only one at its beginning."""
    line = line[:LONGEST_LINE]
    letter = option_letter(line, code)
    if letter is not None:
        return letter or None
    formula = _MATHS.search(line) if "\\" in line else _MATHS.match(_LEAD.sub("", line, count=1))
    if formula is not None and (not at_once or not re.search(r"[^\W_]", line[: line.find(formula.group())])):
        inside = next(group for group in formula.groups() if group)
        if re.search(r"[\\^_A-Za-z]", inside) and ("\\" in line or re.search(r"[\^_=]", inside)):
            return read_box(inside, code)
    figures = _in_figures(_SUPERSCRIPT.sub("", line), code)
    if at_once and not re.match(r"[-+(\[$%±≈~]*\.?\d", _LEAD.sub("", figures, count=1).lstrip("$([ ")):
        return _first_value(figures, code) if _NAMED.match(figures) else _word_value(figures, code)
    return _first_value(figures, code) if re.search(r"\d", figures) else _word_value(figures, code)


def _word_value(line: str, code: str) -> str | None:
    return word_value(_LEAD.sub("", line, count=1), code)


def word_value(text: str, code: str, whole: bool = False) -> str | None:
    """The value of the number word at the beginning of a text, or with `whole` of one that is nothing else."""
    word = number_word(text, code, whole)
    if word and "/" in word:
        return canonical(Fraction(word))
    return canonical_number(word, code) if word else None


def _first_value(line: str, code: str) -> str | None:
    """The first value of a line with digits; of an equation its last side; of "not 20, but 30" the second number."""
    start = _NUMBER.search(line)
    if start is not None and _NOT.search(line[: start.start()]):
        but = _BUT.search(line, start.end())
        start = _NUMBER.search(line, but.end()) if but else None
    if start is None:
        return None
    after_phrase = _CIRCUMSTANCE.match(line)
    if after_phrase is not None:
        return canonical_number(after_phrase.group(1), code)
    rest = line[start.start() :]
    end = _CLAUSE_END.search(rest, start.end() - start.start())
    clause = rest[: end.start()] if end else rest
    left, equals, _ = clause.rpartition("=")
    if equals and _OPERATION.search(left):
        sides = _SIDE.findall(clause)
        return canonical_number(sides[-1], code) if sides else None
    return _value_at(rest, start.group(), line[: start.start()], code)


def _value_at(rest: str, token: str, before: str, code: str) -> str | None:
    """The value of a number token and of the characters directly after it."""
    if (fraction := _FRACTION.match(rest)) is not None:
        return _fraction(fraction)
    if (time := _TIME.match(rest)) is not None:
        return time[1] + (f"{time[2].upper()}M" if time[2] else "")
    if (ratio := _RATIO.match(rest)) is not None:
        return ratio.group()
    after = rest[len(token) :]
    if _RANGE.match(after):
        return None
    if _is_expression(after) and (expression := _EXPRESSION.match(rest)):
        return squeeze(expression.group().rstrip(".!?)*_"))
    return _scaled(canonical_number(token, code), before, after, code)


def _is_expression(after: str) -> bool:
    """Whether the characters directly after a number make a product or power of it: 2x, 5xy, 2\\pi, 2^10, 3(a+b)."""
    glued = re.match(r"[A-Za-zα-ωΑ-Ωµ]+", after)
    if glued is None:
        return bool(
            re.match(r"\s*\\(?:pi|sqrt|theta|alpha|beta|frac|cdot|times|ln|log|sin|cos|tan)|\^|√|\([a-z]\b", after)
        )
    word = glued.group()
    if word in UNITS or _ORDINAL.match(after):
        return False
    return len(word) < 4 or bool(_FUNCTION.match(word)) if word.isascii() else len(word) == 1 or not word.isalpha()


@functools.cache
def _scale_pattern(code: str) -> re.Pattern | None:
    scales = language(code).scales
    if not scales:
        return None
    groups = "|".join(f"(?P<p{power}>{words})" for power, words in scales.items())
    end = rf"(?![^\W\d_]|{VOWEL_SIGN})" if language(code).spaced else ""
    return re.compile(rf"\s*(?:{groups}){end}", re.IGNORECASE)


def _scaled(number: str | None, before: str, after: str, code: str) -> str | None:
    """`number` times the thousand, lakh or million after it (in Swahili before it)."""
    pattern = _scale_pattern(code)
    if number is None or pattern is None or "/" in number:
        return number
    match = pattern.match(after)
    if match is None and code == "sw":
        word = re.search(r"(\S+)\s*$", before)
        match = pattern.fullmatch(word.group(1)) if word else None
    if match is None:
        return number
    power = next(name for name, value in match.groupdict().items() if value)
    return canonical(Decimal(number).scaleb(int(power[1:])))


def whole_value(text: str, code: str) -> str | None:
    """The answer if the text is only an answer: a number with its unit, an option letter, a time; else None."""
    bare = _LEAD.sub("", text.strip(), count=1).rstrip(" *_`.\n।。")
    if "\n" in bare or len(bare) > 60:
        return None
    letter = option_letter(bare, code)
    if letter:
        return letter
    value = read_box(bare.removeprefix("#").lstrip("# "), code)
    return value if value is not None and re.fullmatch(r"-?[\d.]+(?:/\d+)?|\d+:\d+\w*|[A-Ja-j]", value) else None


def read_box(inside: str, code: str) -> str | None:
    """The content of a box: a number if it is one (with or without unit and currency), an option letter, else LaTeX
    without spaces; None if it is empty."""
    if len(inside) > LONGEST_LINE:
        return squeeze(inside)
    content = _TEXT_COMMAND.sub(r" \1 ", re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])", "", inside))
    content = re.sub(r"^(?:\\approx|\\sim|[≈~\s])+", "", content.strip().strip("$").strip())
    content = re.sub(r"^\{([^{},]*)\}$", r"\1", content).strip()
    letter = re.fullmatch(
        r"(?:option |choice )?(?:([A-J])|\(([A-Ja-j])\)|([a-j]))[).]?", unicodedata.normalize("NFKC", content)
    )
    if letter is not None:
        return letter[3] or (letter[1] or letter[2]).upper()
    native = native_option(code)
    if native is not None and native.fullmatch(content):
        return option_letter(content, code)
    figures = _in_figures(content, code).strip().rstrip(".")
    text = _CURRENCY_FIRST.sub("", _NAMED.sub("", figures).strip(), count=1)
    if text.count("=") and (value := _last_side(text, code)) is not None:
        return value
    if text.count("/") and (fraction := _FRACTION.match(text)) and _is_unit(text[fraction.end() :]):
        return _fraction(fraction)
    if re.fullmatch(r"\d+\s*:\s*\d+|\d{1,2}:\d{2}(?::\d{2})?\s*[ap]\.?m\.?", text, re.IGNORECASE):
        time = _TIME.fullmatch(text)
        return squeeze(text) if time is None else time[1] + (f"{time[2].upper()}M" if time[2] else "")
    number = _NUMBER.match(text)
    if number is None:
        word = number_word(text, code, whole=True) if code in ("zh", "ja", "zho_Hant") else None
        return canonical_number(word, code) if word else squeeze(inside) or None
    after = text[number.end() :]
    # "x = -1,1" is a list of two values in every language.
    named = len(text) < len(figures)
    a_list = _LIST.fullmatch(number.group()) and (named or not LANGUAGES[code].comma_decimal)
    if not a_list and (value := _scaled(canonical_number(number.group(), code), "", after, code)):
        scales = _scale_pattern(code)
        if _is_unit(scales.sub("", after, count=1) if scales and scales.match(after) else after):
            return value
    return squeeze(inside) or None


def _is_unit(after: str) -> bool:
    """Whether the text after a number is a unit: "km/h", " apples", "°", and not "x", " a + b" or " or 3"."""
    after = after.strip("$ ") if after[:1] in " $" else after.rstrip("$ ")
    spaced = after.lstrip("°%^ ")
    if not spaced:
        return not after or after[0] in "°%"
    if not re.fullmatch(r"[\s°%]*[^\W\d_][^\d\\^=<>+*{}]*(?:\^\{?-?\d\}?|(?<=[a-z])[23])?[)\s]*", after):
        return False
    word = "".join(re.findall(r"^[^\W\d_]+", spaced))
    if (
        word not in UNITS
        and word.isascii()
        and len(word) < (2 if after[:1] == " " else 4)
        or re.search(r"\s-|\(", spaced)
    ):
        return False
    if after[:1] != " " and (re.match("[α-ωΑ-Ω]", word) or (len(word) == 1 and word.isascii())):
        return False  # 5m and 2π in a formula are products
    return not (_FUNCTION.match(word) or _CONNECTIVE.search(spaced))


def _last_side(text: str, code: str) -> str | None:
    """The value of a true arithmetic equation ("9 * 2 = 18"), None for any other."""
    sides = re.sub(r"\\times|\\cdot|×|·", "*", text).replace("\\div", "/").replace("÷", "/").split("=")
    values = {_arithmetic(side, code) for side in sides}
    value = values.pop()
    if value is None or values or not any(re.search(r"\d\s*[-+*/]", side) for side in sides[:-1]):
        return None
    return canonical(value)


def _arithmetic(side: str, code: str) -> Fraction | None:
    """The value of sums and products of plain numbers."""
    tokens = re.findall(r"[-+*/]|[\d.,]+|\S", side)
    total, term, sign, operation = Fraction(0), None, 1, "*"
    for token in tokens:
        if token in "+-":
            total, term, sign, operation = total + (term or 0), None, -1 if token == "-" else 1, "*"
        elif token in "*/":
            operation = token
        else:
            number = canonical_number(token, code) if token[0].isdigit() else None
            if number is None or (operation == "/" and Fraction(number) == 0):
                return None
            value = Fraction(number)
            term = sign * value if term is None else term * value if operation == "*" else term / value
    return None if term is None else total + term


def _fraction(match: re.Match) -> str | None:
    sign, whole, above, below = match.groups()
    if len(match.group()) > LONGEST_NUMBER or int(below) == 0:
        return None
    value = int(whole or 0) + Fraction(int(above), int(below))
    return canonical(-value if sign else value)


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


def squeeze(text: str) -> str:
    """`text` without spaces and a full stop at its end."""
    return re.sub(r"\s+", "", text).rstrip(".")
