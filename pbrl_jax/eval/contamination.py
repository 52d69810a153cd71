"""Contamination: n-grams of words or characters that a benchmark shares with the training text.

Words are separated by white space, case-folded and without punctuation; text in scripts without spaces is split into
characters. One of Chinese or Japanese counts as a word, one of an alphabet (Thai, Khmer, Burmese) as a third of a word:
13 letters of Thai are three words, which problems share by chance. The default of 13 is that of GPT-3 and most later
reports (Brown et al. 2020, appendix C).
"""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.text.languages import UNSPACED, script_pattern

NGRAM = 13
_CHARACTERS = ("Hani", "Hira", "Kana")
_ALPHABETS = tuple(script for script in UNSPACED if script not in (*_CHARACTERS, "Hang"))  # Korean has spaces
LETTERS_OF_A_WORD = 3
"""Letters of an alphabet without spaces that count as a word."""


class Overlap(NamedTuple):
    """`shared`: for each benchmark text the first shared n-gram, or None."""

    shared: list[str | None]

    @property
    def share(self) -> float:
        """Share of the benchmark's texts that overlap."""
        return sum(ngram is not None for ngram in self.shared) / len(self.shared) if self.shared else 0.0


def units(text: str) -> list[str]:
    """The words of a text (characters, in scripts without spaces) without punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Thai and Indic vowel signs are marks, and belong to a word like letters.
    kept = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in folded)
    pattern = script_pattern(_CHARACTERS + _ALPHABETS)
    return pattern.sub(r" \g<0> ", kept).split()


def ngrams(text: str, n: int) -> list[str]:
    """The runs of units that count as n words, one from each unit on; a shorter text is a single run."""
    words, letter = units(text), script_pattern(_ALPHABETS)
    sizes = [1 if letter.match(word) else LETTERS_OF_A_WORD for word in words]
    ends, size, end = [], 0, 0
    for own in sizes:
        while size < n * LETTERS_OF_A_WORD and end < len(words):
            size, end = size + sizes[end], end + 1
        if size < n * LETTERS_OF_A_WORD:
            break
        ends.append(end)
        size -= own
    ends = ends or [len(words)] * bool(words)
    return [" ".join(words[start:end]) for start, end in enumerate(ends)]


def find_overlap(train_texts: Iterable[str], benchmark_texts: Sequence[str], n: int = NGRAM) -> Overlap:
    """The benchmark texts that share an n-gram with any training text.

    A benchmark text of fewer than n units overlaps only with an equal training text.

    Args:
      train_texts: prompts and references, iterated once.
      benchmark_texts: the problems.
      n: units of an n-gram.

    Raises:
      ConfigError: n below 1.
    """
    if n < 1:
        raise ConfigError(f"Runs of {n} words cannot be compared; expected at least 1, for example {NGRAM}.")
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(benchmark_texts):
        for ngram in ngrams(text, n):
            rows.setdefault(ngram, []).append(row)
    shared: list[str | None] = [None] * len(benchmark_texts)
    for text in train_texts:
        for ngram in ngrams(text, n):
            for row in rows.pop(ngram, ()):
                shared[row] = shared[row] or ngram
    return Overlap(shared)
