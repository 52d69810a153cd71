"""Contamination: n-grams of words, or of characters, that a benchmark shares with the training text.

Words are separated by white space, case-folded and without punctuation; text in scripts without spaces (Chinese,
Japanese, Thai) is split into characters. 13-grams are those of GPT-3 and most later reports (Brown et al. 2020,
appendix C).
"""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.text.languages import script_pattern

NGRAM = 13
_UNDIVIDED = ("Hani", "Hira", "Kana", "Thai")


class Overlap(NamedTuple):
    """For each benchmark text the first shared n-gram; None if there is none."""

    shared: list[str | None]

    @property
    def share(self) -> float:
        """Share of the benchmark's texts that overlap."""
        return sum(run is not None for run in self.shared) / len(self.shared) if self.shared else 0.0


def units(text: str) -> list[str]:
    """The words of a text, or characters in scripts without spaces; no punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Thai and Indic vowel signs are marks, and belong to a word like letters.
    kept = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in folded)
    pattern = script_pattern(_UNDIVIDED)
    found: list[str] = []
    for word in kept.split():
        if not pattern.search(word):
            found.append(word)
            continue
        inside = ""
        for c in word:
            if pattern.match(c):
                found += [inside, c] if inside else [c]
                inside = ""
            else:
                inside += c
        found += [inside] if inside else []
    return found


def ngrams(text: str, n: int) -> list[str]:
    """All n-grams of units; a shorter text is one n-gram."""
    found = units(text)
    if not found:
        return []
    return [" ".join(found[start : start + n]) for start in range(max(1, len(found) - n + 1))]


def find_overlap(train_texts: Iterable[str], benchmark_texts: Sequence[str], n: int = NGRAM) -> Overlap:
    """Which benchmark texts share an n-gram with any training text.

    A benchmark text of fewer units overlaps only with an equal training text.

    Args:
      train_texts: prompts and references; read once, they need not be in memory.
      benchmark_texts: the problems.
      n: units of an n-gram.

    Raises:
      ConfigError: n below 1.
    """
    if n < 1:
        raise ConfigError(f"Runs of {n} words cannot be compared; expected at least 1, for example {NGRAM}.")
    by_run: dict[str, list[int]] = {}
    for row, text in enumerate(benchmark_texts):
        for run in ngrams(text, n):
            by_run.setdefault(run, []).append(row)
    shared: list[str | None] = [None] * len(benchmark_texts)
    seen: set[str] = set()
    for text in train_texts:
        for run in ngrams(text, n):
            if run in by_run and run not in seen:
                seen.add(run)
                for row in by_run[run]:
                    shared[row] = shared[row] or run
    return Overlap(shared)
