"""Whether a response is in the right language: as a whole, line by line, and word by word.

Line and word pass rates follow Marchisio et al. 2024 (arXiv 2406.20052, section 3.3): a response passes by line if each
of its lines is in the language, and by word if it has no Latin words, for a language that is not written in Latin
letters. As in the language gate, words in formulas and code count; units and a few names do not.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from pbrl_jax.text.langid import Alternatives, identifier_of, is_right_language
from pbrl_jax.text.languages import LANGUAGES
from pbrl_jax.text.words import judged_lines

_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{3,}")
"""Shorter Latin words are units, options and variables."""


class Fidelity(NamedTuple):
    """Verdicts on one response; None if no identifier knows the language, or the text is too short."""

    right: bool | None
    lines: bool | None
    words: bool | None

    @property
    def switched(self) -> bool | None:
        """Whether the response as a whole is in its language, but some line or word is not."""
        return None if self.right is None else self.right and (self.lines is False or self.words is False)


def fidelity(text: str, language: str, alternatives: Alternatives) -> Fidelity:
    """The verdicts on a response that should be in `language`, with `alternatives` as the other candidates."""
    if language not in LANGUAGES or not identifier_of(language):
        return Fidelity(None, None, None)
    candidates = [code for code in alternatives if isinstance(code, tuple) or code in LANGUAGES]
    codes = tuple(dict.fromkeys([language, *candidates, "en"]))
    right = is_right_language(text, language, codes)
    judged = [is_right_language(line, language, codes) for line in text.splitlines() if line.strip()]
    lines = [verdict for verdict in judged if verdict is not None]
    scripts = LANGUAGES[language].scripts
    words = (
        None if "Latn" in scripts or right is None else not _LATIN_WORD.search(" ".join(judged_lines(text, scripts)))
    )
    return Fidelity(right, all(lines) if lines else None, words)


def share(verdicts: Sequence[bool | None]) -> float | None:
    """The share of True among the verdicts that are not None; None without any."""
    judged = [verdict for verdict in verdicts if verdict is not None]
    return sum(judged) / len(judged) if judged else None
