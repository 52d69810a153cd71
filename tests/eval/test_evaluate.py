"""Evaluation: accuracies of canned texts by hand, and greedy decoding in batches that the prompts do not fill."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import policy, problem_prompts, tokenizer

from pbrl_jax.core.errors import DataError
from pbrl_jax.eval import evaluate as evaluation
from pbrl_jax.eval.evaluate import (
    Decoder,
    answer_texts,
    eval_metrics,
    evaluate,
    grade,
    mean_non_english,
    summarise,
)
from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.rollout.engine import SEGMENT_LENGTH
from pbrl_jax.rollout.refill import make_programs
from pbrl_jax.text.prompts import format_prompts

ENGLISH, SWAHILI, CHINESE = (prompt._replace(answer="20") for prompt in problem_prompts(1))
LANGUAGES = ("en", "sw", "zh")
IN_SWAHILI = "Ali anaanza na chupa 10 na kununua chupa 10 zaidi. "
IN_ENGLISH = "Ali starts with 10 bottles and buys 10 more bottles. "
CANNED = [
    (ENGLISH, IN_ENGLISH + "The answer is 20."),
    (ENGLISH, IN_ENGLISH + "The answer is 20."),
    (ENGLISH, IN_ENGLISH + "The answer is 19."),
    (ENGLISH, IN_ENGLISH + "20"),
    (SWAHILI, IN_SWAHILI + "Jibu ni 20."),
    (SWAHILI, IN_ENGLISH + "#### 20"),
    (SWAHILI, IN_ENGLISH + "The answer is 20."),
    (SWAHILI, ""),
    (CHINESE, "答案是 20。"),
]


def small_decoder() -> Decoder:
    return Decoder(policy().spec, tokenizer(), 48, 8, 4)


def test_grades_by_hand():
    graded = [grade(prompt, text, LANGUAGES) for prompt, text in CANNED]
    assert [row.extracted for row in graded] == ["20", "20", "19", None, "20", "20", None, None, "20"]
    assert [row.correct for row in graded] == [True, True, False, False, True, True, False, False, True]
    assert [row.right_language for row in graded] == [True] * 5 + [False, False, True, True]
    assert not grade(SWAHILI._replace(answer=None), "Jibu ni 20.", LANGUAGES).correct


def test_the_table_and_its_metrics_by_hand():
    table = summarise([grade(prompt, text, LANGUAGES) for prompt, text in CANNED])
    assert table == {
        "en": {"accuracy": 0.5, "n": 4, "extraction_failures": 0.25, "right_language": 1.0},
        "sw": {"accuracy": 0.5, "n": 4, "extraction_failures": 0.5, "right_language": 0.5},
        "zh": {"accuracy": 1.0, "n": 1, "extraction_failures": 0.0, "right_language": 1.0},
    }
    assert mean_non_english(table) == 0.75, "of languages, not of problems"
    assert eval_metrics(table) == {
        "eval/accuracy/en": 0.5, "eval/accuracy/sw": 0.5, "eval/accuracy/zh": 1.0,
        "eval/right_language/en": 1.0, "eval/right_language/sw": 0.5, "eval/right_language/zh": 1.0,
        "eval/problems/en": 4, "eval/problems/sw": 4, "eval/problems/zh": 1,
        "eval/mean_non_english": 0.75, "eval/gap_to_english": -0.25,
    }  # fmt: skip


def test_english_alone_has_no_mean_over_the_others():
    table = {"en": {"accuracy": 1.0, "right_language": 1.0, "n": 2}}
    assert mean_non_english(table) is None
    assert eval_metrics(table) == {"eval/accuracy/en": 1.0, "eval/right_language/en": 1.0, "eval/problems/en": 2}
    assert eval_metrics(summarise([])) == {}


def test_an_english_reply_is_found_where_one_language_is_evaluated(monkeypatch):
    """Judged among Swahili alone, every text in Latin letters would be Swahili."""
    monkeypatch.setattr(evaluation, "answer_texts", lambda *_, **__: [IN_SWAHILI, IN_ENGLISH])
    table, responses = evaluate(small_decoder(), None, [SWAHILI] * 2)
    assert table["sw"]["right_language"] == 0.5
    assert [response.right_language for response in responses] == [True, False]


PROMPTS = problem_prompts(4)[:10]
QUESTIONS, CODES = [p.question for p in PROMPTS], [p.language for p in PROMPTS]


def greedy_text(question: str, code: str) -> str:
    """Token by token through the plain causal model."""
    ids = format_prompts([question], [code], tokenizer())[0]
    start = len(ids)
    logits = jax.jit(functools.partial(causal_logits, spec=policy().spec))
    tokens = np.zeros((1, 56), np.int32)
    while len(ids) < start + 8:
        tokens[0, : len(ids)] = ids
        mask = jnp.arange(56)[None] < len(ids)
        ids.append(int(logits(policy().params, tokens_BT=jnp.asarray(tokens), mask_BT=mask)[0, len(ids) - 1].argmax()))
        if ids[-1] in tokenizer().eos_ids:
            ids.pop()
            break
    return tokenizer().decode(ids[start:])


@pytest.fixture(scope="module")
def greedy():
    return answer_texts(small_decoder(), policy().params, QUESTIONS, CODES)


def test_greedy_answers_are_those_of_the_causal_model(greedy):
    for row in (0, 5, 9):
        assert greedy[row] == greedy_text(QUESTIONS[row], CODES[row])
    assert len(set(greedy)) > 5


def test_ten_prompts_in_batches_of_four_keep_their_order_and_compile_once(greedy):
    decoder, ticks = small_decoder(), []
    length = decoder.max_completion_length
    compiled = make_programs(decoder.spec, 1, length, SEGMENT_LENGTH, "auto").programs.segment
    before = compiled._cache_size()
    backwards = answer_texts(decoder, policy().params, QUESTIONS[::-1], CODES[::-1], tick=ticks.append)
    assert backwards == greedy[::-1]
    assert ticks == [4, 4, 2]
    assert compiled._cache_size() == before


def test_samples_do_not_depend_on_the_batch_size():
    """A row's randomness comes from its place among the questions and the seed."""
    runs = [
        answer_texts(small_decoder()._replace(batch_size=size), policy().params, QUESTIONS, CODES, 1.0, seed)
        for size, seed in ((4, 3), (100, 3), (4, 4))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) == 10


def test_no_questions_give_no_answers():
    assert answer_texts(small_decoder(), policy().params, [], []) == []
    assert evaluate(small_decoder(), policy().params, []) == ({}, [])


def test_evaluate_grades_what_was_decoded(greedy):
    ticks = []
    table, responses = evaluate(small_decoder(), policy().params, PROMPTS, tick=ticks.append)
    assert [response.completion for response in responses] == greedy
    assert [response.prompt for response in responses] == PROMPTS
    assert {code: row["n"] for code, row in table.items()} == {"en": 4, "sw": 3, "zh": 3}
    assert sum(ticks) == 10


def test_a_prompt_that_is_too_long_is_refused():
    found = "10 of 10 questions are too long: .* tokens, expected 1 to 4: .*Raise rollout.max_prompt_length"
    with pytest.raises(DataError, match=found):
        answer_texts(small_decoder()._replace(max_prompt_length=4), policy().params, QUESTIONS, CODES)
