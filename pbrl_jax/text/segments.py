r"""Text in the pieces that a translator reads: sentences, protected spans, and whether the numbers came through.

Formulas (`$x^2$`, `\boxed{12}`) and tags are put behind short capital letters, which translation models copy as they
copy names, and are put back afterwards.
"""

import functools
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import NamedTuple

from pbrl_jax.text.numerals import ascii_digits, without_myriads

_BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
FORMULA = re.compile(
    r"\$\$.+?\$\$|\\\(.+?\\\)|\\\[.+?\\\]"
    # As pandoc: no space inside the dollars, no digit behind them, or "$5 and $6" would be a formula.
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

_END = re.compile(r"[.!?…।॥؟۔]+[\"'”’»)\]]*(?=\s)|[。！？｡]+[」』”’）]*")
_SHORT_WORD = re.compile(
    r"(?:^|[\s(.])(?:[^\W\d_]|mr|mrs|ms|dr|prof|st|vs|etc|approx|no|nr|bzw|usw|ca|sr|sra)\.$", re.IGNORECASE
)
_LIST_NUMBER = re.compile(r"(?:^|\n)\s*\d{1,3}\.$")
_BREAKS = tuple(re.compile(pattern) for pattern in (r"[,;:，、；：،]\s*", r"\s+", r"(?=.)"))
"""Where a sentence that is too long is cut: behind a clause, else between words, else anywhere."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PREFIXES = ("X", "Q", "Z", "XQ", "ZX", "QZ")


def lines_and_sentences(text: str) -> Iterator[tuple[str, str]]:
    """(sentence, the line breaks behind it) pairs; spaces between sentences are dropped, line breaks are kept.

    A full stop inside a number, behind an initial, an abbreviation or a list number, or before a lower-case word ends
    nothing.
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
    """`text` cut into parts that fit, at the best break nearest its middle; one character always passes."""
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
    """A text whose protected spans stand behind names: `spans` is name -> span."""

    text: str
    spans: dict[str, str]


def mask(text: str, pattern: re.Pattern) -> Masked:
    """Every match of `pattern` behind a name of capital letters that the text does not hold.

    A name that would touch a letter or a digit gets a space, which stays.
    """
    found = [match for match in pattern.finditer(text) if match.group()]
    if not found:
        return Masked(text, {})
    prefix = next((p for p in _PREFIXES if not re.search(rf"(?<![A-Za-z]){p}[A-Z]+(?![A-Za-z])", text)), "ZZQ")
    pieces: list[str] = []
    spans: dict[str, str] = {}
    start = 0
    for number, match in enumerate(found):
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
    """Those of `spans` whose names stand in `text`."""
    return {name: span for name, span in spans.items() if _name_pattern(name).search(text)}


def _replacement(span: str, _match: re.Match) -> str:
    return span


def unmask(text: str, spans: dict[str, str]) -> str | None:
    """The spans back in their places; None if a name is not there exactly once."""
    for name, span in spans.items():
        text, count = _name_pattern(name).subn(functools.partial(_replacement, span), text)
        if count != 1:
            return None
    return text


def readings(token: str) -> frozenset[str]:
    """The values that a number can have, whatever its language's separators: "1.250" is 1250 or 1.25.

    Empty where no reading makes one number of it ("1,2,3").
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
    """Readings of every number that is written in digits, of any script."""
    found = []
    for token in NUMBER.findall(without_myriads(ascii_digits(text))):
        whole = readings(token)
        found += [whole] if whole else [readings(part) for part in re.split(r"[.,]", token) if part]
    return found


def numbers_agree(source: str, translation: str) -> bool:
    """Whether both texts hold the same numbers, each as often, in any order and any language's way of writing them.

    Signs are not compared. Numbers in words are not read, but an English "zero" to "twelve" may stand for a digit.
    """
    variants = [(source, translation)]
    if _SPACED.search(source) or _SPACED.search(translation):
        # "1 250" is one number in French and two in a list.
        joined = [_SPACED.sub(lambda match: match.group().replace(" ", ""), text) for text in (source, translation)]
        variants += [(joined[0], translation), (source, joined[1]), (joined[0], joined[1])]
    return any(_covers(a, b) and _covers(b, a) for a, b in variants)


def _covers(a: str, b: str) -> bool:
    """Whether each number of `a` has one of its own in `b` (bipartite matching by augmenting paths)."""
    wanted = numbers_in(a)
    offered = numbers_in(b) + [frozenset([_SMALL[word.lower()]]) for word in _SMALL_WORD.findall(b)]
    taken: dict[int, int] = {}

    def place(index: int, seen: set[int]) -> bool:
        for other, values in enumerate(offered):
            if other not in seen and wanted[index] & values:
                seen.add(other)
                if other not in taken or place(taken[other], seen):
                    taken[other] = index
                    return True
        return False

    return all(place(index, set()) for index in range(len(wanted)))
