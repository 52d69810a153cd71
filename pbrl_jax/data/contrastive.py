"""Parallel texts, with wrong numbers as hard negatives, to train an encoder that distinguishes numbers.

The contrastive loss takes every other text of the batch as a negative, so no two rows of a batch may have the same
meaning. Ordinary sentence encoders hardly distinguish texts that differ in one number; hard negatives (the English text
with a number changed) train that.
"""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError, DataError, lookup
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.sources import quickstart
from pbrl_jax.data.sources.common import check_offered, problem_of, row_of
from pbrl_jax.data.sources.quickstart import WordProblem
from pbrl_jax.text.languages import answer_sentence

KINDS = ("whole", "reasoning", "answer")
KIND_SHARES = {"whole": 0.5, "reasoning": 0.25, "answer": 0.25}  # ASSUMED: not stated in the material at hand
ENGLISH_TARGET_SHARE = 0.7  # ASSUMED
_NUMBER = re.compile(r"\d+")
_CHANGES = (-10, -5, -3, -2, -1, 1, 2, 3, 5, 10)


class Pair(NamedTuple):
    """`text` and `target` are the same text in two languages; `negatives` are targets with a wrong number."""

    language: str
    text: str
    target_language: str
    target: str
    negatives: tuple[str, ...]


def change_numbers(text: str, rng: random.Random) -> str | None:
    """`text` with one number, wherever it occurs, replaced by a near one in the same digits; None without a number."""
    numbers = sorted({int(number) for number in _NUMBER.findall(text)})
    if not numbers:
        return None
    old = rng.choice(numbers)
    new = old + rng.choice(_CHANGES)
    new = old + 1 if new < 0 else new
    return _NUMBER.sub(
        lambda match: _same_digits(match.group(), new) if int(match.group()) == old else match.group(), text
    )


def _same_digits(written: str, value: int) -> str:
    """`value` in the digits of `written` ("১২" -> "১৫")."""
    zero = ord(written[0]) - int(written[0])
    return "".join(chr(zero + int(digit)) for digit in str(value))


def quickstart_pairs(
    languages: Sequence[str], step: int, batch_size: int, seed: int, *, negatives: int = 1, space: str = ""
) -> list[Pair]:
    """Batch `step` of parallel quickstart responses, a pure function of its arguments.

    All pairs of a batch are of one kind (responses, reasoning parts, or answer sentences, by KIND_SHARES). Texts are in
    any of `languages`, targets in another one: English for seven of ten. Problems are of the split `encoder`, which
    neither the policy nor the test set uses.

    Raises:
      DataError: the split has fewer different responses than the batch has rows.
    """
    languages = check_offered(languages, quickstart.LANGUAGES, "quickstart")
    if len(languages) < 2:
        raise ConfigError("Parallel pairs need two languages or more. Set data.languages, for example en sw.")
    rng = random.Random(f"{seed}/contrastive/{step}")
    kind = rng.choices(tuple(KIND_SHARES), tuple(KIND_SHARES.values()))[0]
    if kind == "answer":
        return _answer_pairs(languages, batch_size, negatives, rng)
    return [
        _problem_pair(problem, kind, languages, negatives, rng)
        for problem in distinct_problems(quickstart.problems("encoder", 0, seed, space), batch_size, rng)
    ]


def distinct_problems(pool: Sequence[WordProblem], count: int, rng: random.Random) -> list[WordProblem]:
    """`count` problems of `pool` with different English reasoning (two-step responses name neither person nor item)."""
    found: dict[str, WordProblem] = {}
    # The draws suffice for batches much smaller than the pool; going through the pool ends every search.
    for problem in (*rng.choices(pool, k=4 * count), *pool):
        found.setdefault(quickstart.reference(problem, "en").reasoning, problem)
        if len(found) == count:
            return list(found.values())
    raise DataError(f"{count} different responses are needed, the split has {len(found)}. Lower the batch size.")


def _problem_pair(problem, kind: str, languages: Sequence[str], negatives: int, rng: random.Random) -> Pair:
    code, target = _two_languages(languages, rng)
    return Pair(
        code,
        response_part(problem, code, kind),
        target,
        response_part(problem, target, kind),
        tuple(_wrong(problem, target, kind, rng) for _ in range(negatives)),
    )


def response_part(problem: WordProblem, language: str, kind: str) -> str:
    """The response, its reasoning or its answer sentence."""
    reference = quickstart.reference(problem, language)
    return lookup({"whole": reference.text, "reasoning": reference.reasoning, "answer": reference.answer}, kind, "kind")


def _wrong(problem, language: str, kind: str, rng: random.Random) -> str:
    """The response with a wrong number; drawn again if the part of this kind has not changed."""
    right = response_part(problem, language, kind)
    for _ in range(20):
        wrong = response_part(quickstart.corrupt(problem, rng), language, kind)
        if wrong != right:
            return wrong
    return response_part(quickstart.corrupt(problem, rng, part="answer"), language, kind)


def _answer_pairs(languages: Sequence[str], batch_size: int, negatives: int, rng: random.Random) -> list[Pair]:
    """Answer sentences of `batch_size` different numbers."""
    pairs = []
    for number in rng.sample(range(max(100, 2 * batch_size)), batch_size):
        code, target = _two_languages(languages, rng)
        others = [abs(number + change) or 1 for change in rng.choices(_CHANGES, k=negatives)]
        wrong = tuple(answer_sentence(str(n if n != number else number + 1), target) for n in others)
        pairs.append(
            Pair(code, answer_sentence(str(number), code), target, answer_sentence(str(number), target), wrong)
        )
    return pairs


def _two_languages(languages: Sequence[str], rng: random.Random) -> tuple[str, str]:
    code = rng.choice(languages)
    others = [other for other in languages if other != code]
    english = "en" in others and rng.random() < ENGLISH_TARGET_SHARE
    return code, "en" if english else rng.choice(others)


def prompt_pairs(prompts: Sequence[Prompt], step: int, batch_size: int, seed: int, *, negatives: int = 1) -> list[Pair]:
    """Batch `step` of (question, English question) pairs of any data set, each problem at most once: rows with the same
    English question, such as those of a table with a row per language, are one problem.

    English rows and rows without English text are left out; a question without a number has no hard negative.

    Raises:
      DataError: fewer different problems than the batch has rows.
    """
    usable = [p for p in prompts if p.language != "en" and p.question_en and p.question != p.question_en]
    rng = random.Random(f"{seed}/prompt-pairs/{step}")
    problems: dict[str | int, list[Prompt]] = {}
    for prompt in sorted(usable, key=lambda p: row_of(p.id)):
        problems.setdefault(problem_of(prompt), []).append(prompt)
    if len(problems) < batch_size:
        raise DataError(
            f"A batch of {batch_size} pairs needs as many different problems with English text; the data set has "
            f"{len(problems)}. Lower contrastive.batch_size."
        )
    chosen = [rng.choice(rows) for rows in rng.sample(list(problems.values()), batch_size)]
    return [
        Pair(p.language, p.question, "en", p.question_en, _changed_copies(p.question_en, negatives, rng))
        for p in chosen
    ]


def _changed_copies(text: str, count: int, rng: random.Random) -> tuple[str, ...]:
    copies = (change_numbers(text, rng) for _ in range(count))
    return tuple(copy for copy in copies if copy is not None)
