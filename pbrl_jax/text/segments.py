r"""Text preparation for translators: sentences, protected spans, and a check that numbers are preserved.

Formulas (`$x^2$`, `\boxed{12}`) and tags are replaced by short placeholders of capital letters, which translation
models copy like names, and restored afterwards.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import NamedTuple

from pbrl_jax.text.numerals import ascii_digits, without_myriads

_BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
FORMULA = re.compile(
    r"\$\$.+?\$\$|\\\(.+?\\\)|\\\[.+?\\\]"
    # As in pandoc: no space inside the dollars and no digit after them; otherwise "$5 and $6" would be a formula.
    r"|(?<![\\$])\$(?=[^\s$])[^$\n]*?(?<=[^\s\\])\$(?!\d)"
    rf"|\\[A-Za-z]+\s?(?:{_BRACES})+|</?[A-Za-z_]+>|####",
    re.DOTALL,
)
"""LaTeX in any delimiters, commands with arguments, and the tags of a response."""
NUMBER = re.compile(r"\d(?:[\d.,'’٫٬\u00a0\u202f]*\d)?")
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
_SMALL = {
    word: str(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
}
_SMALL_WORD = re.compile(rf"\b(?:{'|'.join(_SMALL)})\b", re.IGNORECASE)

STOPS = "。！？｡।॥۔።፧፨։။།༎។៕"
"""Ends of sentences that mean nothing else and need no space behind them: of Chinese, Indic, Urdu, Ethiopic, Armenian,
Burmese, Tibetan and Khmer writing."""
_CLOSING = r"[\"'”’»)\]」』）]"
_END = re.compile(rf"(?<![.!?…؟])[.!?…؟]++{_CLOSING}*(?=\s)|[{STOPS}]+(?:{_CLOSING}+(?!\S)|[」』”’）]*)")
_SHORT_WORD = re.compile(
    r"(?:^|[\s(.])(?:[^\W\d_]|mr|mrs|ms|dr|prof|st|vs|etc|approx|no|nr|bzw|usw|ca|sr|sra)\.$", re.IGNORECASE
)
_LIST_NUMBER = re.compile(r"(?:^|\n)\s*\d{1,3}\.$")
_BREAKS = tuple(re.compile(pattern) for pattern in (r"[,;:，、；：،]\s*", r"\s+", r"(?=.)"))
"""Positions at which long sentences are cut: after a clause, else between words, else anywhere."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PREFIXES = ("X", "Q", "Z", "XQ", "ZX", "QZ")


def lines_and_sentences(text: str) -> Iterator[tuple[str, str]]:
    """(sentence, line breaks after it) pairs; spaces between sentences are dropped.

    A full stop in a number, after an initial, an abbreviation or a list number, or before a lower-case word does not
    end a sentence.
    """
    for line, breaks in re.findall(r"([^\n]*)(\n*)", text):
        parts = list(_sentences(line))
        for part in parts[:-1]:
            yield part, ""
        if parts or breaks:
            yield (parts[-1] if parts else ""), breaks


def _sentences(line: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(line):
        before, after = line[start : end.end()], line[end.end() :].lstrip()
        if end.group() == "." and (_SHORT_WORD.search(before) or _LIST_NUMBER.search(before) or after[:1].islower()):
            continue
        yield before.strip()
        start = end.end()
    if line[start:].strip():
        yield line[start:].strip()


def fitting_parts(text: str, fits: Callable[[str], bool]) -> list[str]:
    """`text` cut into parts that fit, at the best break nearest the middle; a single character is never cut."""
    if len(text) < 2 or fits(text):
        return [text]
    for pattern in _BREAKS:
        places = [match.end() for match in pattern.finditer(text) if 0 < match.end() < len(text)]
        if places:
            middle = min(places, key=lambda place: abs(place - len(text) // 2))
            halves = text[:middle].strip(), text[middle:].strip()
            return [part for half in halves if half for part in fitting_parts(half, fits)]
    return [text]


class Masked(NamedTuple):
    """A text with placeholders for protected spans; `spans` is placeholder -> span."""

    text: str
    spans: dict[str, str]


def mask(text: str, pattern: re.Pattern) -> Masked:
    """`text` with every match of `pattern` replaced by a placeholder of capital letters that the text does not contain.

    A placeholder next to a letter or a digit is separated by a space, which unmask keeps.
    """
    matches = [match for match in pattern.finditer(text) if match.group()]
    if not matches:
        return Masked(text, {})
    prefix = next((p for p in _PREFIXES if not re.search(rf"(?<![A-Za-z]){p}[A-Z]+(?![A-Za-z])", text)), "ZZQ")
    pieces: list[str] = []
    spans: dict[str, str] = {}
    start = 0
    for number, match in enumerate(matches):
        name = prefix + _letters(number)
        spans[name] = match.group()
        before, after = text[start : match.start()], text[match.end() : match.end() + 1]
        if before[-1:].isalnum() or (not before and pieces):
            before += " "
        pieces += [before, name + " " * after.isalnum()]
        start = match.end()
    return Masked("".join([*pieces, text[start:]]), spans)


def _letters(number: int) -> str:
    first, second = divmod(number, len(LETTERS))
    return (_letters(first - 1) if first else "") + LETTERS[second]


def _name_pattern(name: str) -> re.Pattern:
    return re.compile(rf"(?<![A-Za-z]){name}(?![A-Za-z])")


def names_in(text: str, spans: dict[str, str]) -> dict[str, str]:
    """The entries of `spans` whose placeholders occur in `text`."""
    return {name: span for name, span in spans.items() if _name_pattern(name).search(text)}


def unmask(text: str, spans: dict[str, str]) -> str | None:
    """`text` with the spans in place of their placeholders; None if a placeholder does not occur exactly once."""
    for name, span in spans.items():
        before, *after = _name_pattern(name).split(text)
        if len(after) != 1:
            return None
        text = before + span + after[0]
    return text


def readings(token: str) -> frozenset[str]:
    """The possible values of a number with the separators of any language: "1.250" is 1250 or 1.25.

    Empty if it is not one number ("1,2,3").
    """
    digits = re.sub(r"['’٬\u00a0\u202f ]", "", token.replace("٫", "."))
    values = set()
    for point, group in ((".", ","), (",", ".")):
        whole, _, decimals = digits.partition(point)
        head, *groups = whole.split(group)
        grouped = not groups or (1 <= len(head) <= 3 and len(groups[-1]) == 3 and {len(g) for g in groups} <= {2, 3})
        if grouped and digits.count(point) <= 1 and group not in decimals:
            value = Decimal("".join([head, *groups]) + "." + (decimals or "0"))
            values.add(f"{value.normalize():f}")
    return frozenset(values)


def numbers_in(text: str) -> list[frozenset[str]]:
    """Readings of every number in digits of any script."""
    numbers = []
    for token in NUMBER.findall(without_myriads(ascii_digits(text))):
        values = readings(token)
        numbers += [values] if values else [readings(part) for part in re.split(r"[.,]", token) if part]
    return numbers


def numbers_agree(source: str, translation: str) -> bool:
    """Whether both texts contain the same numbers, equally often, in any order and with any separators.

    Signs are not compared. Number words are not read, except English "zero" to "twelve" in place of digits.
    """
    variants = [(source, translation)]
    if _SPACED.search(source) or _SPACED.search(translation):
        # "1 250" is one number in French and two in a list.
        joined = [_SPACED.sub(lambda match: match.group().replace(" ", ""), text) for text in (source, translation)]
        variants += [(joined[0], translation), (source, joined[1]), (joined[0], joined[1])]
    return any(_covers(a, b) and _covers(b, a) for a, b in variants)


def _covers(a: str, b: str) -> bool:
    """Whether each number of `a` has a different partner in `b` (bipartite matching by augmenting paths)."""
    left = Counter(numbers_in(b) + [frozenset([_SMALL[word.lower()]]) for word in _SMALL_WORD.findall(b)])
    numbers = []
    for values in numbers_in(a):
        if len(values) == 1 and left[values]:
            left[values] -= 1  # of two equal numbers with one reading, each is as good a partner as any other
        else:
            numbers.append(values)
    candidates = list(left.elements())
    partner: dict[int, int] = {}
    chosen: dict[int, int] = {}
    for first in range(len(numbers)):
        reached: dict[int, int] = {}
        queue, free = [first], None
        for number in queue:
            for candidate, values in enumerate(candidates):
                if candidate not in reached and numbers[number] & values:
                    reached[candidate] = number
                    if candidate not in partner:
                        free = candidate
                        break
                    queue.append(partner[candidate])
            if free is not None:
                break
        while free is not None:
            number = reached[free]
            partner[free], chosen[number], free = number, free, chosen.get(number)
        if first not in chosen:
            return False
    return True
