"""Whether a response is in the right language: in all, line by line, and word by word.

Line and word pass rates follow Marchisio et al. 2024 (arXiv 2406.20052, section 3.3): a response passes when each of
its lines is in the language, and when, in a language that is not written in Latin letters, it holds no Latin words.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from pbrl_jax.text.langid import is_right_language, plain_words
from pbrl_jax.text.languages import LANGUAGES

_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{3,}")
"""Shorter Latin words are units, options and variables."""


class Fidelity(NamedTuple):
    """The verdicts on one response; None for an unknown language or too short a text."""

    right: bool | None
    lines: bool | None
    words: bool | None

    @property
    def switched(self) -> bool | None:
        """Whether the response is in its language except for some line or word."""
        return None if self.right is None else self.right and (self.lines is False or self.words is False)


def fidelity(text: str, language: str, alternatives: Sequence[str]) -> Fidelity:
    """The three verdicts on a response that should be in `language`, judged among `alternatives`."""
    if language not in LANGUAGES:
        return Fidelity(None, None, None)
    codes = tuple(dict.fromkeys([language, *(code for code in alternatives if code in LANGUAGES), "en"]))
    right = is_right_language(text, language, codes)
    judged = [is_right_language(line, language, codes) for line in text.splitlines() if line.strip()]
    lines = [verdict for verdict in judged if verdict is not None]
    latin = "Latn" in LANGUAGES[language].scripts
    words = None if latin or right is None else _LATIN_WORD.search(plain_words(text)) is None
    return Fidelity(right, all(lines) if lines else None, words)


def share(verdicts: Sequence[bool | None]) -> float | None:
    """The share of True among the verdicts that are not None; None where there is none."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) / len(known) if known else None
