"""Contrastive pairs: parallel, distinct within a batch, and negatives that differ in a number."""

import random
import re

import pytest

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.records import Prompt
from pbrl_jax.data import contrastive
from pbrl_jax.data.contrastive import change_numbers, prompt_pairs, quickstart_pairs
from pbrl_jax.data.sources import quickstart
from pbrl_jax.data.sources.common import prompt_id
from pbrl_jax.text.langid import is_right_language
from pbrl_jax.text.languages import answer_sentence

ALL = quickstart.LANGUAGES


def numbers(text):
    return re.findall(r"\d+", text)


def test_batches_are_parallel_and_distinct():
    kinds = set()
    for step in range(24):
        pairs = quickstart_pairs(ALL, step, 64, seed=0, negatives=2)
        assert len(pairs) == 64
        said = [tuple(numbers(pair.text)) for pair in pairs]
        kinds.add(max(map(len, said)))
        for pair, own in zip(pairs, said, strict=True):
            assert pair.language != pair.target_language
            assert sorted(own) == sorted(numbers(pair.target))
            assert is_right_language(pair.text, pair.language, ALL) is not False
            assert is_right_language(pair.target, pair.target_language, ALL) is not False
            assert len(pair.negatives) == 2
            for negative in pair.negatives:
                assert negative != pair.target and numbers(negative) != numbers(pair.target)
        english = [pair.target for pair in pairs if pair.target_language == "en"]
        assert len(set(english)) == len(english) > 20
    assert 1 in kinds and max(kinds) >= 7


def test_batches_are_a_function_of_seed_and_step():
    assert quickstart_pairs(ALL, 3, 16, 0) == quickstart_pairs(ALL, 3, 16, 0)
    assert quickstart_pairs(ALL, 3, 16, 0) != quickstart_pairs(ALL, 4, 16, 0)
    assert quickstart_pairs(ALL, 3, 16, 0) != quickstart_pairs(ALL, 3, 16, 1)


def test_most_targets_are_english():
    pairs = [pair for step in range(20) for pair in quickstart_pairs(ALL, step, 64, 0) if pair.language != "en"]
    share = sum(pair.target_language == "en" for pair in pairs) / len(pairs)
    # 0.7, and one in seven of the rest
    assert share == pytest.approx(0.7 + 0.3 / 7, abs=0.05)


def test_answer_pairs_are_distinct_numbers_even_in_large_batches():
    rng = random.Random(0)
    pairs = contrastive._answer_pairs(("en", "sw"), 500, 1, rng)
    assert len({numbers(pair.text)[0] for pair in pairs}) == 500
    assert all(pair.text == answer_sentence(numbers(pair.text)[0], pair.language) for pair in pairs)


def test_a_batch_larger_than_the_space_is_an_error_and_no_endless_loop():
    pool = quickstart.problems("encoder", 30, 0)
    with pytest.raises(DataError, match="31 different responses are needed"):
        contrastive.distinct_problems(pool, 31, random.Random(0))
    found = contrastive.distinct_problems(quickstart.problems("encoder", 500, 0), 100, random.Random(0))
    assert len({quickstart.reference(p, "en").reasoning for p in found}) == 100


def test_one_language_makes_no_pairs():
    with pytest.raises(ConfigError, match="two languages or more"):
        quickstart_pairs(("en",), 0, 8, 0)


@pytest.mark.parametrize("text", ["There are 12 eggs; 12 + 3 = 15.", "১২টি ডিম ও ৩টি", "٣ بيضات", "๑๒ ฟอง", "0 left"])
def test_change_numbers_changes_one_number_in_its_own_digits(text):
    rng = random.Random(0)
    for _ in range(50):
        changed = change_numbers(text, rng)
        before, after = [int(n) for n in numbers(text)], [int(n) for n in numbers(changed)]
        assert len(before) == len(after) and min(after) >= 0
        assert len({old for old, new in zip(before, after, strict=True) if old != new}) == 1
        assert re.sub(r"\d+", "#", text) == re.sub(r"\d+", "#", changed)
        zeros = {ord(c) - int(c) for c in "".join(numbers(text))}
        assert zeros == {ord(c) - int(c) for c in "".join(numbers(changed))}
    assert change_numbers("no number here", rng) is None


def test_prompt_pairs_draw_each_problem_once():
    prompts = [Prompt(prompt_id(r, c), c, f"{c} {r}", f"en {r}") for r in range(12) for c in ("en", "sw", "th")]
    prompts.append(Prompt(prompt_id(99, "sw"), "sw", "bila", "no number"))
    prompts.append(Prompt(prompt_id(98, "sw"), "sw", "hakuna", ""))
    pairs = prompt_pairs(prompts, 0, 13, seed=0)
    assert len({pair.target for pair in pairs}) == 13
    assert {pair.language for pair in pairs} == {"sw", "th"}
    for pair in pairs:
        assert len(pair.negatives) == (0 if pair.target == "no number" else 1)
        assert pair.target not in pair.negatives
    assert pairs == prompt_pairs(prompts, 0, 13, seed=0) != prompt_pairs(prompts, 1, 13, seed=0)
    with pytest.raises(DataError, match="batch of 14 pairs needs as many different problems.*has 13"):
        prompt_pairs(prompts, 0, 14, seed=0)


def test_rows_of_one_english_question_are_one_problem():
    """A table with a row per language gives each row an id of its own."""
    prompts = [Prompt(prompt_id(3 * r + place, code), code, f"{code} {r}", f"Of {r} cows")
               for r in range(6) for place, code in enumerate(("sw", "th", "bn"))]  # fmt: skip
    prompts.append(Prompt(prompt_id(99, "sw"), "sw", "sw tena", "of  0 cows"))
    pairs = prompt_pairs(prompts, 0, 6, seed=0)
    assert len({pair.target.casefold().replace("  ", " ") for pair in pairs}) == 6
    with pytest.raises(DataError, match="7 pairs needs as many different problems.*has 6"):
        prompt_pairs(prompts, 0, 7, seed=0)
