"""Word problems from templates: numbers are words in the question and digits in the response.

The arithmetic is the same in all languages, the sentences are not: a small model can be perfect in English and weak in
Swahili, and reinforcement learning can transfer what it knows. The sentences are our own and no native speaker has
reviewed them (see quickstart_text): this shows a mechanism and is no benchmark.

Every problem belongs to exactly one split, by a hash of the problem, whatever the seed: `train` (prompts of
reinforcement learning), `test`, `encoder` (parallel responses for a contrastive encoder) and `sft`. The seed chooses
problems of a split, equally many of each of the six families while they last.
"""

import functools
import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError, DataError, lookup
from pbrl_jax.core.records import Prompt, Question, Reference
from pbrl_jax.data.sources import quickstart_text as text
from pbrl_jax.data.sources.common import check_offered, check_split, prompt_id
from pbrl_jax.text.languages import answer_sentence, nfc
from pbrl_jax.text.numerals import number_words
from pbrl_jax.text.tokenizers import NUMBER_SYMBOLS

LANGUAGES = text.LANGUAGES
SPLIT_SHARES = {"test": 0.1, "train": 0.3, "encoder": 0.3, "sft": 0.3}
_UNSPACED = [word for code in ("zh", "th") for word in (*text.NAMES[code], *text.ITEMS[code], *text.CLASSIFIERS[code])]
_AFTER_SPACE = [f"\u2581{word}" for code in ("zh", "th") for word in (*text.NAMES[code], *text.CLASSIFIERS[code])]
USER_SYMBOLS = tuple(
    dict.fromkeys((*NUMBER_SYMBOLS, *text.THAI_NUMBER_PARTS, text.BENGALI_COUNT_SUFFIX, *_UNSPACED, *_AFTER_SPACE))
)
"""Pieces that a vocabulary for this task keeps separate: zh and th have no spaces between words, and BPE would make a
clause ("Lina has cards") one piece, which shares nothing with other clauses."""

_BAD_COUNTS = frozenset(range(1, 100, 10)) - {11}
_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


class WordProblem(NamedTuple):
    """One problem in no language yet: `name` and `item` are indices, `c` is 0 in families of two operands."""

    number: int
    family: str
    name: int
    item: int
    a: int
    b: int
    c: int
    result: int


class Space(NamedTuple):
    """A set of problems: families and the largest operand of sums (a difference starts from up to 8 more)."""

    families: tuple[str, ...] = text.FAMILIES
    largest: int = 12


SPACES = {"": Space(), "small": Space(("add", "sub"), 12)}
"""`data.path` of this source names one of these; "small" is for a demonstration of one minute."""


def rows(path: str, split: str, languages: Sequence[str], limit: int, seed: int) -> list[Prompt]:
    """`limit` problems (0: all) of a split in each language, the same problems in every one, problem by problem.

    Args:
      path: "" or "small": a name in SPACES.
      split: train, test, encoder or sft.
      languages: some of en es de sw id zh th bn.
      limit: problems, and so rows per language.
      seed: chooses the problems.

    Returns:
      Prompts with the gold answer and the English reference; `id` is 64 * problem index + language number.

    Raises:
      DataError: the split has fewer problems than requested; gives both numbers.
    """
    languages = check_offered(languages, LANGUAGES, "quickstart")
    chosen = problems(split, limit, seed, path)
    return [prompt(problem, code) for problem in chosen for code in languages]


def prompt(problem: WordProblem, language: str) -> Prompt:
    """The row of one problem in one language."""
    return Prompt(
        id=prompt_id(problem.number, language),
        language=language,
        question=question(problem, language),
        question_en=question(problem, "en"),
        answer=str(problem.result),
        reference=reference(problem, "en"),
    )


def problems(split: str, count: int, seed: int, space: str = "") -> list[WordProblem]:
    """`count` distinct problems of a split (0: all), in an order that depends on `seed` alone."""
    check_split(split, tuple(SPLIT_SHARES), "quickstart")
    lookup(SPACES, space, "quickstart space (data.path)")
    if count < 0:
        raise ConfigError(f"data.limit is {count}; expected 0 (all problems) or a positive number.")
    order = _ordered(split, seed, space)
    if count > len(order):
        less = "sft.english_rows or sft.warm_rows_per_language" if split == "sft" else f"data.limit to {len(order)}"
        raise DataError(f"The quickstart split {split!r} has {len(order)} problems, {count} are needed. Lower {less}.")
    return list(order[: count or len(order)])


@functools.lru_cache(maxsize=16)
def _ordered(split: str, seed: int, space: str) -> tuple[WordProblem, ...]:
    """All problems of a split, shuffled by the seed within each family, the families in turn."""
    pool = [problem for problem in _space(space) if split_of(problem) == split]
    random.Random(f"{seed}/{split}").shuffle(pool)
    piles = [[p for p in pool if p.family == family] for family in SPACES[space].families]
    longest = max(map(len, piles))
    return tuple(pile[i] for i in range(longest) for pile in piles if i < len(pile))


@functools.cache
def split_of(problem: WordProblem) -> str:
    """The split of a problem: by hash, independent of seed and limit."""
    digest = hashlib.sha256(repr(tuple(problem[1:7])).encode()).digest()
    place, edge = int.from_bytes(digest[:4], "big") / 2**32, 0.0
    for split, share in SPLIT_SHARES.items():
        edge += share
        if place < edge:
            return split
    return split


@functools.cache
def _space(name: str) -> tuple[WordProblem, ...]:
    """Every problem of a space; `number` counts in the full space, so ids agree between spaces."""
    full = _enumerate(SPACES[""])
    if name == "":
        return full
    known = {problem[1:]: problem for problem in full}
    return tuple(known[problem[1:]] for problem in _enumerate(SPACES[name]))


def _enumerate(space: Space) -> tuple[WordProblem, ...]:
    found: list[WordProblem] = []
    for family in space.families:
        for a, b, c, result in _operands(family, space.largest):
            if _BAD_COUNTS & {a, b, c}:
                continue
            for name in range(6):
                for item in range(8):
                    found.append(WordProblem(len(found), family, name, item, a, b, c, result))
    return tuple(found)


def _operands(family: str, largest: int) -> Iterator[tuple[int, int, int, int]]:
    """(a, b, c, result) of every problem of a family; c is 0 where there is none."""
    sums, factors = range(2, largest + 1), range(2, 8)
    if family == "add":
        yield from ((a, b, 0, a + b) for a in sums for b in sums)
    elif family == "sub":
        yield from ((a, b, 0, a - b) for a in range(5, largest + 9) for b in range(2, a - 1))
    elif family == "mul":
        yield from ((a, b, 0, a * b) for a in factors for b in factors)
    elif family == "div":
        yield from ((b * result, b, 0, result) for result in factors for b in factors)
    elif family == "addsub":
        yield from ((a, b, c, a + b - c) for a in sums for b in sums for c in range(2, min(largest, a + b - 1) + 1))
    elif family == "muladd":
        yield from ((a, b, c, a * b + c) for a in factors for b in factors for c in range(2, 10))


def number_word(language: str, number: int) -> str:
    """The number word before a noun: zh has 两, not 二, before a classifier."""
    return "两" if language == "zh" and number == 2 else number_words()[language][number]


def _slots(problem: WordProblem, language: str, digits: bool) -> dict[str, str]:
    slots = {
        "N": text.NAMES[language][problem.name],
        "I": text.ITEMS[language][problem.item],
        "C": text.CLASSIFIERS.get(language, [""] * 8)[problem.item],
        "H": text.HOW_MANY.get(language, [""] * 8)[problem.item],
    }
    counts = {"a": problem.a, "b": problem.b, "c": problem.c}
    return slots | {key: str(n) if digits else number_word(language, n) for key, n in counts.items()}


def question(problem: WordProblem, language: str) -> str:
    """The question, with numbers in words."""
    return nfc(text.QUESTIONS[problem.family][language].format(**_slots(problem, language, digits=False)))


def equations(problem: WordProblem) -> tuple[str, ...]:
    """The one or two equations of a problem ("3 + 4 = 7"); the last result is the problem's."""
    family, a, b, c, result = problem.family, problem.a, problem.b, problem.c, problem.result
    if family == "addsub":
        return f"{a} + {b} = {a + b}", f"{a + b} - {c} = {result}"
    if family == "muladd":
        return f"{a} * {b} = {a * b}", f"{a * b} + {c} = {result}"
    return (f"{a} {_OPERATORS[family]} {b} = {result}",)


def reference(problem: WordProblem, language: str) -> Reference:
    """The response's two parts: the steps, and the answer sentence."""
    steps = equations(problem)
    if len(steps) == 2:
        reasoning = text.TWO_STEPS[language].format(e1=steps[0], e2=steps[1])
    else:
        sentence = text.STEPS[problem.family][language].format(**_slots(problem, language, digits=True))
        reasoning = f"{sentence} {steps[0]}{text.FULL_STOP[language]}"
    return Reference(nfc(reasoning), nfc(answer_sentence(str(problem.result), language)))


def response(problem: WordProblem, language: str) -> str:
    """The whole response, in digits."""
    return reference(problem, language).text


def corrupt(problem: WordProblem, rng: random.Random, *, part: str = "any") -> WordProblem:
    """The problem with one number changed: a hard negative for its responses.

    `part` "any" changes an operand (in seven of ten cases also the result accordingly) or the result; "answer" always
    changes the result.
    """
    fields = ["a", "b", "c", "result"] if problem.c else ["a", "b", "result"]
    field = "result" if part == "answer" else rng.choice(fields)
    old = getattr(problem, field)
    new = max(1, old + rng.choice([-10, -5, -3, -2, -1, 1, 2, 3, 5, 10]))
    changed = problem._replace(**{field: new if new != old else old + 1})
    if field != "result" and rng.random() < 0.7:
        changed = changed._replace(result=_result(changed))
    return changed


def _result(problem: WordProblem) -> int:
    a, b, c = problem.a, problem.b, problem.c
    outcomes = {"add": a + b, "sub": a - b, "mul": a * b, "div": a // b, "addsub": a + b - c, "muladd": a * b + c}
    return max(1, outcomes[problem.family])


class Example(NamedTuple):
    """A supervised row: answer `question` with `response`. An empty question is plain text."""

    language: str
    question: Question
    response: str


def sft_pools(
    languages: Sequence[str], *, english: int, warm: int, practice: int, seed: int, space: str = ""
) -> dict[str, list[Example]]:
    """Supervised text for a start policy that is strong in English and weak in other languages; of the split `sft`.

    Returns:
      `english`: problems in English; `warm`: `warm` problems in each other language, equally over the families, no
      problem twice, so that there are no translations; `equations`: lines of three equations, without words.

    Raises:
      DataError: the split has fewer problems than these pools need.
    """
    languages = check_offered(languages, LANGUAGES, "quickstart")
    others = [code for code in languages if code != "en"]
    chosen = iter(problems("sft", english + warm * len(others), seed, space))
    # These first: the English rows use up the smaller families.
    pools = {"warm": [_example(next(chosen), code) for _ in range(warm) for code in others]}
    pools["english"] = [_example(next(chosen), "en") for _ in range(english)]
    rng = random.Random(f"{seed}/equations")
    source = problems("sft", 0, seed, space)
    pools["equations"] = [Example("en", "", equation_line(source, rng)) for _ in range(practice)]
    return pools


def _example(problem: WordProblem, language: str) -> Example:
    return Example(language, question(problem, language), response(problem, language))


def equation_line(source: Sequence[WordProblem], rng: random.Random, count: int = 3) -> str:
    """`count` equations of random problems: "3 + 4 = 7. 12 / 3 = 4. 5 * 6 = 30."."""
    found: list[str] = []
    while len(found) < count:
        found += equations(rng.choice(source))
    return " ".join(f"{equation}." for equation in found[:count])


def vocabulary_text(languages: Sequence[str], seed: int, count: int = 2000, space: str = "") -> list[str]:
    """Sentences to train a vocabulary on: questions and responses of the splits `sft` and `train`, number words and
    digits. No problem of `test` is in it."""
    languages = check_offered(languages, LANGUAGES, "quickstart")
    lines = []
    for split in ("sft", "train"):
        pool = problems(split, 0, seed, space)[:count]
        lines += [make(p, code) for p in pool for code in languages for make in (question, response)]
    lines += [nfc(number_word(code, n)) for code in languages for n in range(2, 100)]
    return lines + [f"= {n}" for n in range(100) for _ in range(20)]
