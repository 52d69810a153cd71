"""Which references are kept: wrong ones are dropped where a gold answer tells, and so are those without an answer.

A policy rewarded for agreeing with a wrong reference learns the mistake in every language at once.
"""

from collections.abc import Iterable
from typing import NamedTuple

from pbrl_jax.core.records import Reference
from pbrl_jax.text.answers import extract_answer, same_answer


class FilterReport(NamedTuple):
    """Counts of references. `right`, `wrong`, `unverified` and `no_answer` add up to `total`."""

    total: int
    kept: int
    right: int
    wrong: int
    unverified: int
    """Kept although nothing could tell: no gold answer is known, or nobody compared."""
    no_answer: int


def answer_value(answer: str, language: str) -> str | None:
    """What an answer part says, as `extract_answer` writes it; an answer without announcement ("18") is all answer."""
    if not answer.strip():
        return None
    announced = extract_answer(answer, language)
    return announced if announced is not None else extract_answer(f"\\boxed{{{answer.strip()}}}", language)


def keep_reference(
    reference: Reference, gold: str | None, language: str = "en", *, keep_wrong: bool = False
) -> tuple[bool, bool | None]:
    """Whether a reference is kept, and whether its answer was found right.

    Args:
      reference: its answer part may carry an announcement ("The answer is 18.") or be the bare answer ("18").
      gold: the answer that is known to be right; None where none is.
      language: the language of the reference.
      keep_wrong: keep a reference whose answer is not the gold one.

    Returns:
      (keep, verified). Without an answer part (False, None); without a gold answer (True, None); else verified says
      whether the answers are one, and a wrong one is kept only with `keep_wrong`.
    """
    if not reference.answer.strip():
        return False, None
    if gold is None:
        return True, None
    verified = same_answer(answer_value(reference.answer, language), gold)
    return verified or keep_wrong, verified


def filter_report(outcomes: Iterable[tuple[bool, bool | None]]) -> FilterReport:
    """Counts what `keep_reference` returned for a number of references."""
    outcomes = list(outcomes)
    return FilterReport(
        total=len(outcomes),
        kept=sum(keep for keep, _ in outcomes),
        right=sum(verified is True for _, verified in outcomes),
        wrong=sum(verified is False for _, verified in outcomes),
        unverified=sum(keep and verified is None for keep, verified in outcomes),
        no_answer=sum(not keep and verified is None for keep, verified in outcomes),
    )
