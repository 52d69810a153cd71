r"""Extraction of the answer from a response.

Marked answers come first: the last complete `\boxed{}`, then the last `<answer>` tag, then `####` before an answer.
Without one, an announcement in the language of the response counts ("Jibu ni 12.", "**Jibu:** 12", a heading), but not
one in another language. Text after a marked answer is ignored, and so is text in an unclosed `<think>`.
pbrl_jax.text.values reads the value of the answer.
"""

import functools
import re
from typing import NamedTuple

from pbrl_jax.text.equality import same_answer
from pbrl_jax.text.formulas import MATHS, whole_formula
from pbrl_jax.text.languages import language, nfc
from pbrl_jax.text.latex import on_one_line
from pbrl_jax.text.numerals import HAN_NUMBER, ascii_digits
from pbrl_jax.text.options import option_called_right, option_letter
from pbrl_jax.text.quantities import canonical_number, number_prefix
from pbrl_jax.text.values import last_number, read_box, read_line, whole_value, word_value

__all__ = ["ascii_digits", "canonical_number", "extract_answer", "read_gold", "same_answer", "split_response"]

_BOXED = re.compile(r"\\{0,4}(?<![A-Za-z])f?(?:rame)?box(?:ed)?\s*(?=\{)|\\(?:boxed|fbox)\s*(?=\\?[$\d+-])")
_UNBRACED = re.compile(r"\s*\\?\$?([-+]?[\d.,/]*\d)")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_OPEN_TAG = re.compile(r"<answer>", re.IGNORECASE)
_HASHES = re.compile(r"(?m:####[ \t]*([^\n]*)$)")
_HASH_ANSWER = re.compile(
    r"[\s*_$\\(]*(?:[-+\u2212\u2013]?[^\W\d_]{0,3}[.\s$€£¥₹]*[-\u2212]?\d(?!\d*[.)]\s+\w)|\(?[A-J]\)?[.\s]*$|\\)"
)
_THINK_END = re.compile(r"</think>", re.IGNORECASE)
_THINK_TAG = re.compile(r"</?think>", re.IGNORECASE)
_BETWEEN_MARKERS = re.compile(r"[\s*_$:：(\[\\]*")
_FEW_WORDS = re.compile(r"[^\W\d_][^\s\d]*(?: [^\s\d]+){0,3}")
_HAS_TEXT = re.compile(r"[^\W_]")
_DATA_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
LONGEST_GOLD = 8
"""Largest number of words of a gold answer that is neither announced nor LaTeX."""
MOST_BOXED = 20
"""Largest number of boxes that are read, from the end."""


class _Match(NamedTuple):
    """The start of the answer part, and the answer; None if that part holds none."""

    start: int
    answer: str | None


def split_response(text: str, code: str) -> tuple[str, str]:
    """(reasoning, answer) of a response in language `code`, cut before its answer (see the module).

    The answer includes its announcement ("Jibu ni 12.") and all text after it. Without an answer the second part is "".
    """
    text = on_one_line(nfc(text))
    match = _find(text, code)
    start = len(text) if match is None else match.start
    return without_think_tags(text[:start]).strip(), text[start:].strip()


def without_think_tags(text: str) -> str:
    """`text` with a space in place of each `<think>` and `</think>`; the thought stays."""
    return _THINK_TAG.sub(" ", text)


def extract_answer(text: str, code: str, *, fallback: bool = False) -> str | None:
    r"""The final answer of a response in language `code`, or None if it gives none.

    A canonical decimal string ("1250", "-3.5", "1/3" if the decimals do not terminate), an option letter ("B"), a time
    ("3:45PM"), or LaTeX without spaces. After an announcement the first value counts ("12 apples for 3 people"), and of
    an equation its last side. A single separator followed by exactly three digits separates thousands, except a dot in
    a language with decimal points; a repeated separator separates thousands; of two kinds the last one is the decimal
    mark.

    Args:
      text: the response.
      code: the language asked for.
      fallback: without an answer, take the last number of the whole text (for benchmark protocols that allow it).
    """
    text = on_one_line(nfc(text))
    match = _find(text, code)
    if match is not None:
        return match.answer
    end = _thought_end(text)
    return last_number(text[end:], code) if fallback and end is not None else None


def read_gold(written: str, code: str) -> str | None:
    """A gold answer of a data set ("#### 4", "4 kalamu", "(B)", "b", "x = 3"), read in the same way as a response's.

    A plain number is read with a decimal point in every language. None if it is empty, a missing value (NaN), an
    infinite number, or prose without an answer.
    """
    written = nfc(written).strip()
    if not _HAS_TEXT.search(written) or written.lower() in ("nan", "inf", "-inf", "none", "null", "n/a"):
        return None
    if _DATA_NUMBER.fullmatch(written):
        return canonical_number(written, "en")
    for language_of_gold in (code, "en"):
        match = _find(written, language_of_gold)
        if match is not None and match.answer is not None:
            return match.answer
    if len(written.split()) > LONGEST_GOLD and "\\" not in written:
        return None
    word = word_value(written, code, whole=True) or word_value(written, "en", whole=True)
    return word or whole_value(written, code) or read_box(written, code)


@functools.lru_cache(maxsize=1024)
def _find(text: str, code: str) -> _Match | None:
    """The answer of an NFC text: a marked one, else an announced one."""
    offset = _thought_end(text)
    if offset is None:
        return None
    visible = text[offset:]
    match = _find_visible(visible, code)
    if match is None and offset:
        bare = whole_value(visible, code)
        if bare is not None:
            return _Match(offset + len(visible) - len(visible.lstrip()), bare)
        match, offset = _find_visible(text, code), 0
    return match and match._replace(start=match.start + offset)


def _thought_end(text: str) -> int | None:
    """The start of the text after the thought: 0 without a thought, None if it is not closed."""
    ends = [match.end() for match in _THINK_END.finditer(text)]
    end = ends[-1] if ends else 0
    return None if text.lower().rfind("<think>") >= end else end


def _find_visible(text: str, code: str) -> _Match | None:
    for find in (_last_box, _last_tag, _last_hashes):
        match = find(text, code)
        if match is not None:
            return match._replace(start=_chain_start(text, match.start, code))
    return _announced(text, code)


def _last_box(text: str, code: str) -> _Match | None:
    r"""The last complete `\boxed{...}`, with balanced braces.

    Without one, a box with unbalanced braces at the end of the text counts: some gold answers of data sets are cut.
    """
    # A response in a loop may open thousands of boxes; a few from the end are enough.
    boxes = list(_BOXED.finditer(text))[: -MOST_BOXED - 1 : -1]
    for box in boxes:
        inside = _inside(text, box.end())
        if inside is not None and (inside.strip() or len(boxes) == 1):
            if box.group().startswith("\\\\"):  # all backslashes are doubled, as in JSON
                inside = inside.replace("\\\\", "\\")
            return _Match(box.start(), read_box(inside, code))
    rest = text[boxes[0].end() :] if boxes else ""
    last_brace = re.search(r"\}[\s$.)\]]*$", rest)
    if last_brace and "}" in rest[: last_brace.start()]:
        return _Match(boxes[0].start(), read_box(rest[1 : last_brace.start()], code))
    return None


def _inside(text: str, start: int) -> str | None:
    """The content of the box whose brace, or number without braces, begins at `start`; None if it is not closed."""
    if text[start] != "{":
        number = _UNBRACED.match(text, start)
        return number.group(1) if number else None
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start + 1 : start + brace.start()]
    return None


def _last_tag(text: str, code: str) -> _Match | None:
    tags = list(_TAG.finditer(text)) if "</answer>" in text.lower() else []
    if not tags:
        opened = _OPEN_TAG.search(text)
        return _Match(opened.start(), None) if opened else None  # the response was cut
    inside = tags[-1].group(1)
    announced = _announced(inside, code)
    if announced is not None and announced.answer is not None:
        return _Match(tags[-1].start(), announced.answer)
    if whole_formula(inside.strip()) and option_letter(inside, code, small=True) is None:
        return _Match(tags[-1].start(), read_box(inside, code))
    answer, entry = _first_line_answer(inside, code), language(code)
    words = inside.strip(" *_`\"'.。।\n")
    # An instruction that is repeated has "and" between the tags.
    if answer is None and _FEW_WORDS.fullmatch(words) and not re.fullmatch(nfc(f"{entry.ands}|{entry.to}"), words):
        answer = read_box(words, code)
    return _Match(tags[-1].start(), answer)


def _last_hashes(text: str, code: str) -> _Match | None:
    for match in list(_HASHES.finditer(text))[: -MOST_BOXED - 1 : -1]:
        line = match.group(1)
        bare = line.strip(" \t*_.。")
        number = _HASH_ANSWER.match(number_prefix(code).sub("", ascii_digits(line)))
        if number or HAN_NUMBER.fullmatch(bare.strip("$")) or MATHS.fullmatch(bare) or whole_formula(bare):
            answer = read_line(line, code)
            if answer is not None:
                return _Match(match.start(), answer)
    return None


@functools.cache
def _markers(code: str) -> tuple[re.Pattern, re.Pattern]:
    entry = language(code)
    return re.compile(entry.answer_markers, re.IGNORECASE), re.compile(entry.result_markers, re.IGNORECASE)


def _announced(text: str, code: str) -> _Match | None:
    """The last announcement directly followed by an answer; else the last with an answer in its line; else an option
    that is called right; else the last."""
    answers, results = _markers(code)
    markers = [(marker, True) for marker in answers.finditer(text)][-MOST_BOXED:]
    markers += [(marker, False) for marker in results.finditer(text)][-MOST_BOXED:]
    indirect: list[_Match] = []
    for marker, is_answer in sorted(markers, key=lambda pair: -pair[0].start()):
        rest = text[marker.end() :]
        # _last_box found no complete box, so a box here was cut.
        cut = _BOXED.search(rest.lstrip("\n").split("\n", 1)[0]) or _BOXED.match(rest.lstrip(" *_$:：(\\[\n"))
        at_once, answer = (False, None) if cut else _following(rest, code)
        if answer is not None and at_once:
            return _Match(marker.start(), answer)
        indirect += [_Match(marker.start(), answer)] if is_answer else []
    found = next((match for match in indirect if match.answer is not None), indirect[0] if indirect else None)
    if (found is None or found.answer is None) and (called := option_called_right(text, code)) is not None:
        return _Match(*called)
    return found


def _following(rest: str, code: str) -> tuple[bool, str | None]:
    """(whether it follows directly, the answer) of the text after an announcement.

    Later lines count only if the first one has no letters or digits, or ends with a colon.
    """
    lines = re.sub(r"^([ *_$]*)[-\u2212] +(?=\d)", r"\1-", rest).split("\n")
    answer = read_line(lines[0], code, at_once=True)
    if answer is not None:
        return True, answer
    answer = read_line(lines[0], code)
    if answer is None and (not _HAS_TEXT.search(lines[0]) or lines[0].rstrip(" *_").endswith((":", "："))):
        return True, _first_line_answer("\n".join(lines[1:]), code)
    return False, answer


def _first_line_answer(text: str, code: str) -> str | None:
    for line in text.splitlines():
        if _HAS_TEXT.search(line) and (answer := read_line(line, code)) is not None:
            return answer
    return None


def _chain_start(text: str, start: int, code: str) -> int:
    """The start of the announcement directly before `start` ("The answer is \\boxed{"), else `start`."""
    for match in reversed(list(_markers(code)[0].finditer(text, 0, start))):
        if not _BETWEEN_MARKERS.fullmatch(text, match.end(), start):
            break
        start = match.start()
    return start
