"""The choice of references among several samples for one question: those that agree, preferably on the gold answer."""

from collections.abc import Sequence
from typing import NamedTuple

from pbrl_jax.core.records import Reference
from pbrl_jax.pivots.filter import answer_value
from pbrl_jax.text.answers import same_answer


class Choice(NamedTuple):
    """The kept references, at least one, and the share in [0, 1] of samples with their answer."""

    references: tuple[Reference, ...]
    share: float


def choose(samples: Sequence[Reference], gold: str | None, count: int, language: str = "en") -> Choice:
    """At most `count` different samples with the same answer, in their order: the gold answer if a sample has it, else
    the most frequent answer (of equally frequent ones the first). Samples without an answer agree with no other.

    Args:
      samples: at least one.
    """
    answers = [answer_value(sample.answer, language) for sample in samples]
    groups: list[list[int]] = []
    for row, answer in enumerate(answers):
        if answer is None:
            continue
        equal = next((group for group in groups if same_answer(answer, answers[group[0]])), None)
        if equal is None:
            groups.append([row])
        else:
            equal.append(row)
    if not groups:
        return Choice((samples[0],), 0.0)
    right = [group for group in groups if gold is not None and same_answer(answers[group[0]], gold)]
    best = (right or sorted(groups, key=len, reverse=True))[0]
    return Choice(tuple(dict.fromkeys(samples[row] for row in best))[:count], len(best) / len(samples))
