"""How much of a benchmark stands in the training text: shared runs of words, or of characters.

Words are what white space divides, folded to small letters and without punctuation; text in scripts that do not
divide words (Chinese, Japanese, Thai) counts character by character. A run of 13 is what GPT-3 and most reports
after it take (Brown et al. 2020, appendix C).
"""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.text.languages import script_pattern

NGRAM = 13
_UNDIVIDED = ("Hani", "Hira", "Kana", "Thai")


class Overlap(NamedTuple):
    """What was found: for each benchmark text whether it overlaps, and the first shared run (None without one)."""

    shared: list[str | None]

    @property
    def share(self) -> float:
        """Share of the benchmark's texts that overlap."""
        return sum(run is not None for run in self.shared) / len(self.shared) if self.shared else 0.0


def units(text: str) -> list[str]:
    """The words of a text, or its single characters in scripts without spaces; no punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Thai and Indic vowel signs are marks: part of a word as letters are.
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


def runs(text: str, n: int) -> list[str]:
    """All runs of n units; a shorter text is one run of its own."""
    found = units(text)
    if not found:
        return []
    return [" ".join(found[start : start + n]) for start in range(max(1, len(found) - n + 1))]


def find_overlap(train_texts: Iterable[str], benchmark_texts: Sequence[str], n: int = NGRAM) -> Overlap:
    """Which benchmark texts share a run of n units with any training text.

    A benchmark text of fewer units overlaps only with a training text that is the same in all of them.

    Args:
      train_texts: prompts and references; read once, so that they need not be in memory.
      benchmark_texts: the problems.
      n: length of a run.

    Raises:
      ConfigError: n below 1.
    """
    if n < 1:
        raise ConfigError(f"Runs of {n} words cannot be compared; expected at least 1, for example {NGRAM}.")
    by_run: dict[str, list[int]] = {}
    for row, text in enumerate(benchmark_texts):
        for run in runs(text, n):
            by_run.setdefault(run, []).append(row)
    shared: list[str | None] = [None] * len(benchmark_texts)
    seen: set[str] = set()
    for text in train_texts:
        for run in runs(text, n):
            if run in by_run and run not in seen:
                seen.add(run)
                for row in by_run[run]:
                    shared[row] = shared[row] or run
    return Overlap(shared)
