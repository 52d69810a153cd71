r"""Values of answers: numbers in any script and with any separators, fractions, times, options, LaTeX."""

import re
import unicodedata
from fractions import Fraction

from pbrl_jax.text.formulas import (
    FACTOR,
    MATHS,
    OPERAND,
    bare_formula,
    in_formula,
    is_formula,
    last_side,
    latex_before_prose,
)
from pbrl_jax.text.languages import LANGUAGES
from pbrl_jax.text.latex import TEXT_COMMAND, unwrapped
from pbrl_jax.text.normalise import FORMAT
from pbrl_jax.text.numerals import (
    MINUS_WORDS,
    ascii_digits,
    number_word,
    without_latex_fractions,
    without_myriads,
    without_powers,
)
from pbrl_jax.text.options import boxed_option, native_option, option_letter
from pbrl_jax.text.quantities import (
    LONGEST_NUMBER,
    NUMBER,
    SPACES,
    Quantity,
    canonical,
    canonical_number,
    number_prefix,
    quantity,
    without_unit,
)
from pbrl_jax.text.several import alternative, compared, ends_list, joint, listed, second_measure, separator

_FRACTION = re.compile(r"(-?)(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)(?![\d.,]*\d)")
_TIME = re.compile(r"(\d{1,2}:\d{2}(?::\d{2})?)(?:\s*([ap])\.?\s?m\b\.?)?(?![\d:])", re.IGNORECASE)
_HAN_TIME = re.compile(r"(\d{1,2})\s*[时時点點시]\s*(\d{1,2})\s*[分분]")
_HAN_FRACTION = re.compile(r"(\d+)\s*(?:分之|分の|분의)\s*(\d+)")
_RATIO = re.compile(r"\d+:\d+(?![\d:])|\d+ : \d+(?=\s*(?:$|[.!?)*]))")
_EXPRESSION = re.compile(r"[^\s,;，。；]+")
_SLASH = re.compile(r"\s*/\s*\d")
_TUPLE_ITEM = r"-?\d+(?:\.\d+)?(?:/\d+)?"
_TUPLE = re.compile(rf"[(\[]\s*{_TUPLE_ITEM}(?:\s*[,;]\s*{_TUPLE_ITEM})+\s*[)\]]")
_BESIDE = re.compile(rf"[{SPACES}]+-?\d[\d.,]*\s*(?:$|[!?)।。])")
"""A second number with nothing between, and nothing behind."""
_PLAIN_VALUE = re.compile(r"-?[\d.]+(?:/\d+)?")
_ORDINAL = re.compile(r"(?:st|nd|rd|th|er|ère|e|ème|º|ª|o|a)(?![^\W_])")
_SUPERSCRIPT = re.compile(r"\^\s*\{?\s*(?:\\circ|°|\\degree)\s*\}?|\\degree")
_CLAUSE_END = re.compile(
    r"[,;:，、；。?(](?!\d)|!(?!\s*=)|\.(?!\d)|\s(?:because|since|as|weil|da|car|porque|perché|karena|kwa sababu)\s"
)
_CIRCUMSTANCE = re.compile(r"\W*[AÀ]\s+\d[^,;]*,\s*(-?\d[\d.,]*)\W*$")
"""A phrase with a preposition before the value: "a 3 km, 5"."""
_RANGE = re.compile(r"\s*(?:[-–~〜～]|—(?=\d)|to|bis|à|до)\s*\d|['’′]\s?\d")
_SIDE = re.compile(r"=\s*(?:[^\W\d_]+\.?\s+)?(-?[\d.,]+)")
_OPERATION = re.compile(r"\d[\s)]*(?:[-+*/×·÷x!]|\\(?:times|cdot|div))|\d\s+[^\W\d_]+\s*[-+*/×·÷x]\s*\d")
_MINUS = re.compile(
    rf"(?<![\d)])(?<![\d)]\s)(?:\b(?:{MINUS_WORDS})\s+"
    r"|(?:ลบ|负|負|マイナス|마이너스|ऋण|माइनस|মাইনাস|ঋণাত্মক|మైనస్)\s*|[–—](?=\d))(?=\d)",
    re.IGNORECASE,
)
_TRAILING_MINUS = re.compile(r"(?<![\d.,])(\d[\d.,]*)-(?![\d\w])")
_NOT = re.compile(r"(?:\b(?:not|nicht|isn't|не|si|sio|bukan|değil)|no es|n'est pas|không phải|不是)\s*$", re.IGNORECASE)
_BUT = re.compile(r"\b(?:but|sondern|sino|mais|а|bali|tapi|melainkan|mà)\b|而是", re.IGNORECASE)
_LEAD = re.compile(r"[\s*_:：=≈~\"'“”‘’„«»「『`]*")
_NAMED = re.compile(r"^\s*\$?\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\(\w{1,3}\))?\s*=(?!.*=)")
_LIST = re.compile(r"-?\d+,\d{1,2}(?!\d)|-?\d+,\d{4,}")
_CURRENCY = re.compile(r"\\\$|\b(?:R|US|HK|NT|A|C|S)(?=\\?\$)|[$€£¥₹฿₩₽₫৳₦₺]|(?<=\d)/[=-](?![\d=])")
_CURRENCY_FIRST = re.compile(
    r"(?:Rp|Rs|RM|Kshs?|KSh|Tshs?|TSh|Ush|[A-Z]{2}D|EUR|GBP|INR|KES|TZS|UGX|NGN|ZAR|IDR)(?![A-Za-z])\.?\s*(?=\d)"
)
"""Currencies that are written before their amount."""
_FUNCTION = re.compile(r"sin|cos|tan|log|ln|exp|sqrt|mod|max|min(?!ut)|lim|gcd|lcm")
_GAP = r"(?:\s*[\s:：]\s*|(?<=[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\ud7af])(?=-?\d))"
_WORDS = re.compile(rf"(?:(?![A-Za-z](?![^\W\d_]))[^\W\d_][^\s\d\\^=<>+*/{{}}()\[\]]*?{_GAP})+(?=-?\d)")
"""Words before a number, without a space in languages that have none; a single letter is a variable."""
_PER = re.compile(r"^(?:\s*(?:/|per\b)\s*(?=[^\W\d_]{2})|['’][^\W\d_]+)")
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
LONGEST_NAMED = 40
"""Largest number of characters of a box in which words stand before the number."""
LONGEST_LINE = 2000
"""Number of characters of a line that are read."""


def plain(text: str) -> str:
    """`text` in NFKC with ASCII digits, without markdown and currency; powers and fractions are kept."""
    spread = text if text.isascii() else FORMAT.sub("", "".join(_spread(c) for c in text))
    folded = ascii_digits(unicodedata.normalize("NFKC", spread)).replace("\u2044", "/")
    folded = folded.replace("{,}", ",").replace("{-}", "-").replace("\\!", "").replace("\\%", "%")
    folded = re.sub(r"(?<=\d)\\,(?=\d{3})", "", re.sub(r"(?<=\d)\*\*(?=\d)", "^", folded).replace("**", ""))
    return _CURRENCY.sub("", re.sub(r"\\[,;: ]|(?<!\d)~|~(?!\d)", " ", folded))


def _spread(c: str) -> str:
    """`c` with a sign or space that keeps NFKC from turning m² into m2 and 7½ into 71/2."""
    kind = unicodedata.decomposition(c).split(" ")[0]
    if kind in ("<super>", "<sub>"):
        return "^" + c
    return " " + c if kind == "<fraction>" else c


def _in_figures(text: str, code: str) -> str:
    """`plain` with minus words, LaTeX fractions and powers of ten in ASCII figures; in Chinese, Japanese and Korean
    also myriads, times and fractions."""
    folded = without_latex_fractions(_MINUS.sub("-", plain(text)))
    if code in ("ar", "fa", "ur", "he"):
        folded = _TRAILING_MINUS.sub(r"-\1", folded)
    if code in ("zh", "ja", "ko"):
        folded = _HAN_TIME.sub(lambda match: f"{match[1]}:{match[2].zfill(2)}", folded)
        folded = without_myriads(_HAN_FRACTION.sub(r"\2/\1", folded))
        folded = re.sub(r"百分之\s*(?=\d)", "", folded)
    return without_powers(folded)


def last_number(text: str, code: str) -> str | None:
    """The last number of a text, preferably one that does not follow a letter, `^` or `_`."""
    numbers = list(NUMBER.finditer(plain(text)))
    free = [m for m in numbers if not re.search(r"[A-Za-z^_]$", m.string[: m.start()][-1:])] or numbers
    return canonical_number(free[-1].group(), code) if free else None


def read_line(line: str, code: str, at_once: bool = False) -> str | None:
    """The answer in a line; with `at_once` only one at its beginning."""
    line = re.sub(r"\s{4,}", "   ", line[:LONGEST_LINE])  # patterns are slow on long runs of spaces
    letter = option_letter(TEXT_COMMAND.sub(r"\1", line), code, small=True)
    if letter is not None:
        return letter or None
    formula = MATHS.search(line) if "\\" in line else MATHS.match(_LEAD.sub("", line, count=1))
    if formula is None and (latex := latex_before_prose(_LEAD.sub("", line, count=1))):
        return read_box(latex, code)
    if formula is not None and (not at_once or not re.search(r"[^\W_]", line[: line.find(formula.group())])):
        inside = next(group for group in formula.groups() if group).strip()
        if is_formula(inside, "\\" in line):
            return _formulas(formula, code)
    figures = _in_figures(_SUPERSCRIPT.sub("", line), code)
    start = number_prefix(code).sub("", _LEAD.sub("", figures, count=1).lstrip("$([ "), count=1)
    if at_once and not re.match(r"[-+(\[$%±≈~]*\.?\d", start):
        return _first_value(figures, code) if _NAMED.match(figures) else _word_value(figures, code)
    return _first_value(figures, code) if re.search(r"\d", figures) else _word_value(figures, code)


def _formulas(first: re.Match, code: str) -> str | None:
    """The value of a formula, or the list of those that "and" or "or" joins to it: $x=2$ or $x=3$."""
    formulas, end, joined = [first], first.end(), False
    while (between := joint(code).match(first.string, end)) and (further := MATHS.match(first.string, between.end())):
        formulas, end, joined = [*formulas, further], further.end(), joined or bool(between["join"])
    values = [read_box(next(group for group in formula.groups() if group), code) for formula in formulas]
    if not joined:
        return values[0]
    known = [value for value in values if value is not None]
    return listed(known) if len(known) == len(values) else None


def _word_value(line: str, code: str) -> str | None:
    """The value of the number word at the beginning of a line; None if "or" and a further number follow it."""
    text = _LEAD.sub("", line, count=1)
    value, other = word_value(text, code), alternative(code).search(text)
    if value is not None and other is not None and number_word(text[: other.start()], code, whole=True):
        return value if _alternative_value(text, other, code) in (value, None) else None
    return value


def _alternative_value(text: str, other: re.Match, code: str) -> str | None:
    """The number behind a match of `alternative`, in figures or words; None without one."""
    number = NUMBER.search(text, other.start()) if other["digit"] else None
    return quantity(text, number.start(), code).value if number else word_value(text[other.end() :], code)


def word_value(text: str, code: str, whole: bool = False) -> str | None:
    """The value of the number word at the beginning of a text, or with `whole` of one that is nothing else."""
    word = number_word(text, code, whole)
    if word and "/" in word:
        return canonical(Fraction(word))
    return canonical_number(word, code) if word else None


def _first_value(line: str, code: str) -> str | None:
    """The first value of a line with digits; of an equation its last side; of "not 20, but 30" the second number."""
    line = _NAMED.sub("", line)
    start = NUMBER.search(line)
    if start is not None and _NOT.search(line[: start.start()]):
        but = _BUT.search(line, start.end())
        start = NUMBER.search(line, but.end()) if but else None
    if start is None:
        return None
    if "=" not in line and in_formula(line[: start.start()]):
        return bare_formula(line)
    after_phrase = _CIRCUMSTANCE.match(line)
    if after_phrase is not None:
        return canonical_number(after_phrase.group(1), code)
    rest = line[start.start() :]
    end = _CLAUSE_END.search(rest, start.end() - start.start())
    clause = rest[: end.start()] if end else rest
    left, equals, _ = clause.rpartition("=")
    if equals and _OPERATION.search(left):
        sides = list(_SIDE.finditer(clause))
        if not sides:
            return None
        value, side = canonical_number(sides[-1][1], code), sides[-1][1].rstrip(".,")
        return value and _with_further(line, Quantity(value, start.start() + sides[-1].start(1) + len(side)), code)
    return _value_at(line, start.start(), code)


def _value_at(line: str, start: int, code: str) -> str | None:
    """The value of the number at `start`, a list if further numbers follow; None if it is only a bound or a part."""
    items = _TUPLE.match(line, len(line[:start].rstrip(" -")) - 1)
    if items is not None and not re.search(r",\d{3}(?!\d)", items.group()):
        glued = LANGUAGES[code].comma_decimal and items.group().count(",") == 1 and ", " not in items.group()
        if not glued:
            return squeeze(items.group())
    found = _one_value(line, start, code)
    plain_value = found.value is None or _PLAIN_VALUE.fullmatch(found.value)
    if (OPERAND if plain_value else FACTOR).match(line, found.end):
        return bare_formula(line)
    before, after = line[:start], line[found.end :]
    if found.value is None or compared(before, after, code) or second_measure(before, after, code):
        return None
    if plain_value:
        return None if _BESIDE.match(after) else _with_further(line, found, code)
    further = separator(code).match(line, found.end)
    return None if further and further["join"] else found.value


def _with_further(line: str, first: Quantity, code: str) -> str | None:
    """The first value, or a list with the numbers that follow directly; None if one of them is no number."""
    values, end, joined = [first.value], first.end, False
    while (between := separator(code).match(line, end)) is not None:
        further = _one_value(line, between.end(), code)
        values, end, joined = [*values, further.value], further.end, joined or bool(between["join"])
    if len(values) == 1 and (other := alternative(code).match(line, first.end)):
        return first.value if _alternative_value(line, other, code) in (first.value, None) else None
    if len(values) == 1 or not (joined or ends_list(line, end)):
        return first.value
    known = [value for value in values if value and _PLAIN_VALUE.fullmatch(value)]
    if len(known) < len(values):
        return None
    return first.value if len({Fraction(value) for value in known}) == 1 else listed(known)


def _one_value(line: str, start: int, code: str) -> Quantity:
    """The value of a number and of the characters directly after it."""
    if (fraction := _FRACTION.match(line, start)) is not None:
        chained = _SLASH.match(line, fraction.end())
        return Quantity(None if chained else _fraction(fraction), fraction.end())
    if (time := _TIME.match(line, start)) is not None:
        return Quantity(_clock(time), time.end())
    if (ratio := _RATIO.match(line, start)) is not None:
        return Quantity(squeeze(ratio.group()), ratio.end())
    token = NUMBER.match(line, start)
    if token is None:
        return Quantity(None, start)
    after = line[token.end() :]
    if _RANGE.match(after):
        return Quantity(None, token.end())
    if _is_expression(after) and (expression := _EXPRESSION.match(line, start)):
        written = squeeze(expression.group().rstrip(".!?)*_"))
        return Quantity(written + ")" * (written.count("(") - written.count(")")), expression.end())
    found = quantity(line, start, code)
    return Quantity(None, found.end) if _RANGE.match(line[found.end :]) else found


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


def whole_value(text: str, code: str) -> str | None:
    """The answer if the text is only an answer: a number with its unit, an option letter, a time; else None."""
    bare = _LEAD.sub("", text.strip(), count=1).rstrip(" *_`.\n।。")
    if "\n" in bare or len(bare) > 60:
        return None
    letter = option_letter(bare, code)
    if letter:
        return letter
    value = read_box(bare.removeprefix("#").lstrip("# "), code, words_before=False)
    return value if value is not None and re.fullmatch(r"-?[\d.]+(?:/\d+)?|\d+:\d+\w*|[A-Ja-j]", value) else None


def read_box(inside: str, code: str, words_before: bool = True) -> str | None:
    """The content of a box: a number if it is one (with unit and currency, and with words before it unless
    `words_before` is false), an option letter, else LaTeX without spaces; None if it is empty."""
    if len(inside) > LONGEST_LINE:
        return squeeze(inside)
    inside = unwrapped(inside)
    content = TEXT_COMMAND.sub(r" \1 ", inside)
    content = re.sub(r"^(?:\\approx|\\sim|[≈~\s])+", "", content.strip().strip("$").strip())
    content = re.sub(r"^\{([^{},]*)\}$", r"\1", content).strip()
    letter = boxed_option(content)
    if letter is not None:
        return letter
    native = native_option(code)
    if native is not None and native.fullmatch(content):
        return option_letter(content, code)
    figures = _in_figures(content, code).strip().rstrip(".")
    text = _CURRENCY_FIRST.sub("", _NAMED.sub("", figures).strip(), count=1)
    if text.count("=") and (value := last_side(text, code)) is not None:
        return value
    if text.count("/") and (fraction := _FRACTION.match(text)) and _is_unit(text[fraction.end() :]):
        return _fraction(fraction)
    if re.fullmatch(r"\d+\s*:\s*\d+|\d{1,2}:\d{2}(?::\d{2})?\s*[ap]\.?m\.?", text, re.IGNORECASE):
        time = _TIME.fullmatch(text)
        return squeeze(text) if time is None else _clock(time)
    word = None
    if not re.search(r"\d", text) and not (code == "en" and "\\text" in inside):
        word = word_value(text.strip(), code, whole=True)
    start = _number_start(text, code, words_before)
    value = word if start is None else _number_with_unit(text, start, code, len(text) < len(figures))
    rest = without_unit(inside) if value is None else None
    if rest is not None and not _CONNECTIVE.search(inside[len(rest) :]):
        return read_box(rest, code, words_before)
    return value or squeeze(inside) or None


def _number_start(text: str, code: str, words_before: bool) -> int | None:
    """Where the number of a box begins: at once, or after words that are no names, functions or comparisons."""
    prefix = number_prefix(code).match(text)
    if prefix is not None or NUMBER.match(text):
        return prefix.end() if prefix else 0
    words = _WORDS.match(text) if words_before and len(text) <= LONGEST_NAMED else None
    if words is None or _FUNCTION.search(words.group()) or _CONNECTIVE.search(words.group()):
        return None
    if (
        _NOT.search(words.group())
        or word_value(words.group(), code)
        or re.search(r"[;，。；?？]|,\s", text)
        or compared(words.group(), "", code)
    ):
        return None
    return words.end()


def _number_with_unit(text: str, start: int, code: str, named: bool) -> str | None:
    """The number at `start` if only a unit follows; None for any other text, and for a list."""
    token = NUMBER.match(text, start)
    # "x = -1,1" is a list of two values in every language.
    if token is None or (_LIST.fullmatch(token.group()) and (named or not LANGUAGES[code].comma_decimal)):
        return None
    found = quantity(text, start, code)
    return found.value if _is_unit(text[max(token.end(), found.end) :]) else None


def _is_unit(after: str) -> bool:
    """Whether the text after a number is a unit: "km/h", " apples", "°", and not "x", " a + b" or " or 3"."""
    after = _PER.sub(" ", after)
    after = after.strip("$ ") if after[:1] in " $" else after.rstrip("$ ")
    spaced = after.lstrip("°%^ ")
    if not spaced:
        return not after or after[0] in "°%"
    if not re.fullmatch(r"[\s°%]*[^\W\d_][^\d\\^=<>+*{}]*(?:\^\{?-?\d\}?|(?<=[a-z])[23])?[)\s]*", after):
        return False
    word = "".join(re.findall(r"^[^\W\d_]+", spaced))
    if (word not in UNITS and word.isascii() and len(word) < 4) or re.search(r"\s-|\(", spaced):
        return False
    if after[0] not in "°%" and (re.match("[α-ωΑ-Ω]", word) or (len(word) == 1 and word.isascii())):
        return False  # 5m and 2π in a formula are products
    return not (_FUNCTION.match(word) or _CONNECTIVE.search(spaced))


def _clock(time: re.Match) -> str:
    """A match of _TIME in its canonical form: 3:45PM."""
    return time[1] + (f"{time[2].upper()}M" if time[2] else "")


def _fraction(match: re.Match) -> str | None:
    sign, whole, above, below = match.groups()
    if len(match.group()) > LONGEST_NUMBER or int(below) == 0:
        return None
    value = int(whole or 0) + Fraction(int(above), int(below))
    return canonical(-value if sign else value)


def squeeze(text: str) -> str:
    """`text` without spaces and a full stop at its end."""
    return re.sub(r"\s+", "", text).rstrip(".")
