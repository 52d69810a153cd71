"""The filter of references: those with a wrong answer (if a gold answer is known) or without an answer are dropped.

A policy that is rewarded for agreeing with a wrong reference learns the mistake in every language.
"""

from collections.abc import Iterable
from typing import NamedTuple

from pbrl_jax.core.records import Reference
from pbrl_jax.text.answers import extract_answer, same_answer
from pbrl_jax.text.languages import nfc
from pbrl_jax.text.values import read_box


class FilterReport(NamedTuple):
    """Counts of references. `right`, `wrong`, `unverified` and `no_answer` add up to `total`."""

    total: int
    kept: int
    right: int
    wrong: int
    unverified: int
    """Kept without verification: no gold answer is known, or the source is not filtered."""
    no_answer: int


def answer_value(answer: str, language: str) -> str | None:
    """The value of an answer part, as of `extract_answer`; without an announcement ("18") the whole part is read."""
    if not answer.strip():
        return None
    announced = extract_answer(answer, language)
    return announced if announced is not None else read_box(nfc(answer).strip(), language, words_before=False)


def keep_reference(
    reference: Reference, gold: str | None, language: str = "en", *, keep_wrong: bool = False
) -> tuple[bool, bool | None]:
    """Whether a reference is kept, and whether its answer is right.

    Args:
      reference: its answer part is a sentence ("The answer is 18.") or the bare answer ("18").
      gold: the known right answer, or None.
      language: the language of the reference.
      keep_wrong: keep references with a wrong answer.

    Returns:
      (keep, verified): (False, None) without an answer part; (True, None) without a gold answer; else `verified` is
      whether the answers are equal, and a wrong one is kept only with `keep_wrong`.
    """
    if not reference.answer.strip():
        return False, None
    if gold is None:
        return True, None
    verified = same_answer(answer_value(reference.answer, language), gold)
    return verified or keep_wrong, verified


def filter_report(outcomes: Iterable[tuple[bool, bool | None]]) -> FilterReport:
    """Counts of results of `keep_reference`."""
    outcomes = list(outcomes)
    return FilterReport(
        total=len(outcomes),
        kept=sum(keep for keep, _ in outcomes),
        right=sum(verified is True for _, verified in outcomes),
        wrong=sum(verified is False for _, verified in outcomes),
        unverified=sum(keep and verified is None for keep, verified in outcomes),
        no_answer=sum(not keep and verified is None for keep, verified in outcomes),
    )
