"""Languages of a run that the identifiers cannot tell apart, measured on the run's own questions.

Related languages (Indonesian and Malay, Croatian and Bosnian) differ by a few words, and whether a text contains them
depends on the text. So each pair with a common script is tested on some of its questions before a run starts.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pbrl_jax.text.langid import RIGHT_SHARE, identifier_of, is_right_language
from pbrl_jax.text.languages import LANGUAGES

SAMPLE = 20
"""Largest number of questions per language, evenly spaced over all of them."""
TOLERANCE = 0.15  # ASSUMED
"""Largest share of a language's questions that may be identified as another language."""
ENOUGH = 0.8  # ASSUMED
"""Smallest share of a language's questions that must be identified as that language."""

Pair = tuple[str, str]


class Related(NamedTuple):
    """`pairs` of languages that count as one, and `notes` for the user about them and about unidentified questions."""

    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]


def related_languages(questions: Iterable[Pair], share: float = RIGHT_SHARE) -> Related:
    """The pairs of languages that cannot be told apart: more than TOLERANCE of the questions of one are rejected
    because of the other, or pass as the other.

    English is in no pair: a gate that accepts English for another language would let copies of the reference pass.

    Args:
      questions: (language, text) pairs of the run.
      share: see langid.is_right_language.
    """
    texts: dict[str, list[str]] = {}
    for code, text in questions:
        texts.setdefault(code, []).append(text)
    samples = tuple(
        (code, tuple(column[:: -(-len(column) // SAMPLE)]))
        for code, column in texts.items()
        if code in LANGUAGES and identifier_of(code)
    )
    return _measure(samples, share)


@functools.lru_cache(maxsize=8)
def _measure(samples: Sequence[tuple[str, tuple[str, ...]]], share: float) -> Related:
    codes = tuple(dict.fromkeys((*(code for code, _ in samples), "en")))
    confused: dict[Pair, str] = {}
    for code, texts in samples:
        # Only languages with a common script are confused; a single confused text is not enough.
        others = [other for other in codes if "en" not in (code, other) and other != code and _same_script(code, other)]
        rejected = [text for text in texts if is_right_language(text, code, codes, share) is False]
        for other in others:
            pair: Pair = (min(code, other), max(code, other))
            taken = sum(is_right_language(text, code, (*codes, pair), share) is not False for text in rejected)
            passed = sum(is_right_language(text, other, codes, share) is True for text in texts)
            if max(taken, passed) > max(1, TOLERANCE * len(texts)):
                confused.setdefault(pair, f"{max(taken, passed)} of {len(texts)} {_full_name(code)} questions")
    notes = [
        f"No identifier tells {_full_name(first)} from {_full_name(second)} here ({count} could be either): responses "
        "in one count as right for the other."
        for (first, second), count in confused.items()
    ]
    for code, texts in samples:
        verdicts = [is_right_language(text, code, (*codes, *confused), share) for text in texts]
        if verdicts.count(False) > max(1, (1 - ENOUGH) * len(verdicts)):
            name = _full_name(code)
            notes.append(
                f"{verdicts.count(False)} of {len(verdicts)} {name} questions are not identified as {name}: responses "
                "in it may be rejected, too. Look at the questions, or choose another reward.language_gate."
            )
    return Related(tuple(confused), tuple(notes))


def _same_script(code: str, other: str) -> bool:
    return bool(set(LANGUAGES[code].scripts) & set(LANGUAGES[other].scripts))


def _full_name(code: str) -> str:
    return f"{LANGUAGES[code].name} ({code})"
