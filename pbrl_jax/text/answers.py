r"""Finding the answer in a response.

Structure comes first: the last complete `\boxed{}`, then the last `<answer>` tag, then `####` with an answer behind it.
Without structure an announcement in the response's own language counts ("Jibu ni 12.", "**Jibu:** 12", a heading); an
announcement in another language does not. Text behind the structure changes nothing, and nothing counts inside an
unclosed `<think>`. What the answer's own words mean is read in pbrl_jax.text.values.
"""

import functools
import re
from typing import NamedTuple

from pbrl_jax.text.equality import same_answer
from pbrl_jax.text.languages import language, nfc
from pbrl_jax.text.numerals import HAN_NUMBER, ascii_digits
from pbrl_jax.text.values import canonical_number, last_number, read_box, read_line, whole_value

__all__ = ["ascii_digits", "canonical_number", "extract_answer", "read_gold", "same_answer", "split_response"]

_BOXED = re.compile(r"\\*(?<![A-Za-z])f?box(?:ed)?\s*(?=\{)|\\(?:boxed|fbox)\s+(?=\\?[$\d+-])")
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
_HAS_TEXT = re.compile(r"[^\W_]")
_DATA_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
LONGEST_GOLD = 8
"""Words of a gold answer that is neither announced nor LaTeX."""
MOST_BOXED = 20
"""Boxes that are looked at, from the end."""


class _Found(NamedTuple):
    """Where the answer part begins, and the answer, or None where that part holds none."""

    start: int
    answer: str | None


def split_response(text: str, code: str) -> tuple[str, str]:
    """(reasoning, answer) of a response in language `code`, cut before its answer (see the module).

    The marker stays with the answer ("Jibu ni 12."), and so does what follows. Without a marker the answer is "" and
    the reasoning is all.
    """
    text = nfc(text)
    found = _find(text, code)
    if found is None:
        return _THINK_TAG.sub(" ", text).strip(), ""
    return _THINK_TAG.sub(" ", text[: found.start]).strip(), text[found.start :].strip()


def extract_answer(text: str, code: str, *, fallback: bool = False) -> str | None:
    r"""The final answer of a response in language `code`, or None where it gives none.

    A canonical decimal string ("1250", "-3.5", "1/3" where the decimals do not end), an option letter ("B"), a time
    ("3:45PM"), or LaTeX without spaces. Behind an announcement the first value counts ("12 apples for 3 people"), and
    of an equation its last side. One separator with exactly three digits behind it groups thousands, except a dot in
    a language that writes decimals with a dot; a separator that repeats groups; of two kinds the right one is the
    decimal mark.

    Args:
      text: the response.
      code: the language asked for.
      fallback: without any marker, take the last number of the whole text (benchmark protocols that allow it).
    """
    text = nfc(text)
    found = _find(text, code)
    if found is not None:
        return found.answer
    end = _thought_end(text)
    return last_number(text[end:], code) if fallback and end is not None else None


def read_gold(written: str, code: str) -> str | None:
    """A gold answer as data sets write it ("#### 4", "4 kalamu", "(B)", "b", "x = 3"), read as a response's is.

    A plain number is read with a decimal point, as files have it, whatever the language. None where it is empty, a
    missing value (NaN), an infinite number, or prose that gives no answer.
    """
    written = nfc(written).strip()
    if not _HAS_TEXT.search(written) or written.lower() in ("nan", "inf", "-inf", "none", "null", "n/a"):
        return None
    if _DATA_NUMBER.fullmatch(written):
        return canonical_number(written, "en")
    for language_of_gold in (code, "en"):
        found = _find(written, language_of_gold)
        if found is not None and found.answer is not None:
            return found.answer
    if len(written.split()) > LONGEST_GOLD and "\\" not in written:
        return None
    return whole_value(written, code) or read_box(written, code)


@functools.lru_cache(maxsize=1024)
def _find(text: str, code: str) -> _Found | None:
    """The answer of an NFC text, by structure, then by announcement."""
    offset = _thought_end(text)
    if offset is None:
        return None
    visible = text[offset:]
    found = _in_visible(visible, code)
    if found is None and offset:
        bare = whole_value(visible, code)
        if bare is not None:
            return _Found(offset + len(visible) - len(visible.lstrip()), bare)
        found, offset = _in_visible(text, code), 0
    return found and found._replace(start=found.start + offset)


def _thought_end(text: str) -> int | None:
    """Where the text behind the thought begins: 0 without a thought, None where it is not closed."""
    closed = [match.end() for match in _THINK_END.finditer(text)]
    end = closed[-1] if closed else 0
    return None if text.lower().rfind("<think>") >= end else end


def _in_visible(text: str, code: str) -> _Found | None:
    for structure in (_last_box, _last_tag, _last_hashes):
        found = structure(text, code)
        if found is not None:
            return found._replace(start=_chain_start(text, found.start, code))
    return _announced(text, code)


def _last_box(text: str, code: str) -> _Found | None:
    r"""The last complete `\boxed{...}`, braces balanced.

    Where none is complete, one whose braces do not balance but which ends with the text counts: gold answers of data
    sets are cut so.
    """
    # A policy that repeats itself opens thousands of them; a few from the end are enough.
    found = list(_BOXED.finditer(text))[: -MOST_BOXED - 1 : -1]
    for match in found:
        inside = _inside(text, match.end())
        if inside is not None and (inside.strip() or len(found) == 1):
            return _Found(match.start(), read_box(inside, code))
    ragged = re.search(r"\}[\s$.)\]]*$", text[found[0].end() :]) if found else None
    if ragged and "}" in text[found[0].end() : found[0].end() + ragged.start()]:
        return _Found(found[0].start(), read_box(text[found[0].end() + 1 : found[0].end() + ragged.start()], code))
    return None


def _inside(text: str, start: int) -> str | None:
    if text[start] != "{":
        number = _UNBRACED.match(text, start)
        return number.group(1) if number else None
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start + 1 : start + brace.start()]
    return None


def _last_tag(text: str, code: str) -> _Found | None:
    found = list(_TAG.finditer(text)) if "</answer>" in text.lower() else []
    if not found:
        opened = _OPEN_TAG.search(text)
        return _Found(opened.start(), None) if opened else None  # cut short
    inside = found[-1].group(1)
    announced = _announced(inside, code)
    if announced is not None and announced.answer is not None:
        return _Found(found[-1].start(), announced.answer)
    return _Found(found[-1].start(), _first_line_answer(inside, code))


def _last_hashes(text: str, code: str) -> _Found | None:
    for match in list(_HASHES.finditer(text))[: -MOST_BOXED - 1 : -1]:
        line = match.group(1)
        if _HASH_ANSWER.match(ascii_digits(line)) or HAN_NUMBER.fullmatch(line.strip(" \t*_$。")):
            answer = read_line(line, code)
            if answer is not None:
                return _Found(match.start(), answer)
    return None


@functools.cache
def _markers(code: str) -> tuple[re.Pattern, re.Pattern]:
    entry = language(code)
    return re.compile(entry.answer_markers, re.IGNORECASE), re.compile(entry.result_markers, re.IGNORECASE)


def _announced(text: str, code: str) -> _Found | None:
    """The last announcement that an answer follows at once, else the last whose line holds one, else the last."""
    answers, results = _markers(code)
    found = [(match, True) for match in answers.finditer(text)][-MOST_BOXED:]
    found += [(match, False) for match in results.finditer(text)][-MOST_BOXED:]
    others: list[_Found] = []
    for match, is_answer in sorted(found, key=lambda pair: -pair[0].start()):
        rest = text[match.end() :]
        # A box here is an open one: a complete one would have been found before.
        cut = _BOXED.search(rest.lstrip("\n").split("\n", 1)[0]) or _BOXED.match(rest.lstrip(" *_$:：(\\[\n"))
        at_once, answer = (False, None) if cut else _following(rest, code)
        if answer is not None and at_once:
            return _Found(match.start(), answer)
        others += [_Found(match.start(), answer)] if is_answer else []
    return next((other for other in others if other.answer is not None), others[0] if others else None)


def _following(rest: str, code: str) -> tuple[bool, str | None]:
    """(whether it follows at once, the answer) of the text behind an announcement.

    Its own line counts; further lines only where that holds nothing but signs, or ends with a colon.
    """
    lines = rest.split("\n")
    answer = read_line(lines[0], code, at_once=True)
    if answer is not None:
        return True, answer
    answer = read_line(lines[0], code)
    if answer is None and (not _HAS_TEXT.search(lines[0]) or lines[0].rstrip(" *_").endswith((":", "："))):
        return True, _first_line_answer("\n".join(lines[1:]), code)
    return False, answer


def _first_line_answer(text: str, code: str) -> str | None:
    for line in text.splitlines():
        if _HAS_TEXT.search(line):
            found = read_line(line, code)
            if found is not None:
                return found
    return None


def _chain_start(text: str, start: int, code: str) -> int:
    """Where the announcement begins that leads into `start` ("The answer is \\boxed{"), else `start`."""
    for match in reversed(list(_markers(code)[0].finditer(text, 0, start))):
        if not _BETWEEN_MARKERS.fullmatch(text, match.end(), start):
            break
        start = match.start()
    return start
