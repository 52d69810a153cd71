"""Which languages of a run the identifiers cannot tell apart, measured on the run's own questions.

Related languages (Indonesian and Malay, Croatian and Bosnian) differ by a few words, and how many of those a text has
depends on the text. So each pair that shares a script is tried on some of its questions before a run starts.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pbrl_jax.text.langid import RIGHT_SHARE, identifier_of, is_right_language
from pbrl_jax.text.languages import LANGUAGES

SAMPLE = 20
"""Questions of each language, evenly spaced over those that there are."""
TOLERANCE = 0.15  # ASSUMED
"""Share of a language's questions that may be taken for another's."""
ENOUGH = 0.8  # ASSUMED
"""Share of its own questions in a language that must pass as it."""

Pair = tuple[str, str]


class Related(NamedTuple):
    """`pairs` that are to be judged as one, and `notes` to a user about them and about texts that look foreign."""

    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]


def related_languages(questions: Iterable[Pair], share: float = RIGHT_SHARE) -> Related:
    """The pairs of languages whose texts cannot be told apart: more than TOLERANCE of one's questions are rejected
    because of the other, or pass as the other.

    English makes no pair: its texts are the references, and a gate that took it for another language would be open.

    Args:
      questions: (language, text) of the run.
      share: see langid.is_right_language.
    """
    texts: dict[str, list[str]] = {}
    for code, text in questions:
        texts.setdefault(code, []).append(text)
    known = {code: found for code, found in texts.items() if code in LANGUAGES and identifier_of(code)}
    return _measured(tuple((code, tuple(found[:: -(-len(found) // SAMPLE)])) for code, found in known.items()), share)


@functools.lru_cache(maxsize=8)
def _measured(samples: Sequence[tuple[str, tuple[str, ...]]], share: float) -> Related:
    codes = tuple(dict.fromkeys((*(code for code, _ in samples), "en")))
    confused: dict[Pair, str] = {}
    for code, texts in samples:
        # A pair that shares a script may be confused; two confused texts are the least that say so.
        others = [other for other in codes if "en" not in (code, other) and other != code and _one_script(code, other)]
        rejected = [text for text in texts if is_right_language(text, code, codes, share) is False]
        for other in others:
            pair: Pair = (min(code, other), max(code, other))
            taken = sum(is_right_language(text, code, (*codes, pair), share) is not False for text in rejected)
            passed = sum(is_right_language(text, other, codes, share) is True for text in texts)
            if max(taken, passed) > max(1, TOLERANCE * len(texts)):
                confused.setdefault(pair, f"{max(taken, passed)} of {len(texts)} {_named(code)} questions")
    notes = [
        f"No identifier tells {_named(first)} from {_named(second)} here ({count} could be either): responses in one "
        "count as right for the other."
        for (first, second), count in confused.items()
    ]
    for code, texts in samples:
        judged = [is_right_language(text, code, (*codes, *confused), share) for text in texts]
        if judged.count(False) > max(1, (1 - ENOUGH) * len(judged)):
            notes.append(
                f"{judged.count(False)} of {len(judged)} {_named(code)} questions are not taken for {_named(code)}: "
                "responses in it may be rejected, too. Look at the questions, or choose another reward.language_gate."
            )
    return Related(tuple(confused), tuple(notes))


def _one_script(code: str, other: str) -> bool:
    return bool(set(LANGUAGES[code].scripts) & set(LANGUAGES[other].scripts))


def _named(code: str) -> str:
    return f"{LANGUAGES[code].name} ({code})"
