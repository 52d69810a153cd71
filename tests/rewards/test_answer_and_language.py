"""The answer reward and the language gates, by hand."""

import numpy as np
import pytest
from tiny_world import LANGUAGES, canonical_responses, problem_prompts, reward_inputs, tokenizer

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.sources import quickstart
from pbrl_jax.rewards.answer import score_answers
from pbrl_jax.rewards.language import identified_gate, make_gate
from pbrl_jax.text.token_languages import token_language_table

SWAHILI = problem_prompts(1, ("sw",))[0]._replace(answer="20")
ENGLISH = "Ali starts with 10 bottles and buys 10 more bottles. The answer is 20."
RIGHT = "Ali anaanza na chupa 10 na kununua chupa 10 zaidi. Jibu ni 20."


def test_a_right_a_wrong_and_an_unparsable_answer():
    texts = [RIGHT, "Jibu ni 21.", "sijui", "", ENGLISH]
    scores = score_answers(reward_inputs([SWAHILI] * 5, texts))
    assert scores.value_B.tolist() == [1, 0, 0, 0, 0]
    assert scores.valid_B.all()


def test_a_row_without_a_gold_answer_is_invalid_and_never_zero():
    prompts = [SWAHILI, SWAHILI._replace(answer=None)]
    assert score_answers(reward_inputs(prompts, [RIGHT] * 2)).valid_B.tolist() == [True, False]


def test_the_identifier_passes_its_language_and_what_is_too_short():
    texts = [RIGHT, ENGLISH, "20", "", "阿里原来有十个瓶子，又买了十个瓶子。"]
    found = identified_gate(reward_inputs([SWAHILI] * 5, texts), LANGUAGES)
    assert found.tolist() == [True, False, True, True, False]


def test_english_is_an_alternative_also_where_a_run_trains_one_language():
    """Judged among Swahili alone, every text in Latin letters would be Swahili."""
    assert identified_gate(reward_inputs([SWAHILI] * 2, [RIGHT, ENGLISH]), ("sw",)).tolist() == [True, False]


@pytest.fixture(scope="module")
def table():
    problems = quickstart.problems("sft", 60, 0, "small")
    texts = {code: [quickstart.response(p, code) for p in problems] for code in LANGUAGES}
    return token_language_table(tokenizer(), texts)


def test_the_token_gate_sees_one_foreign_word(table):
    prompts, texts = problem_prompts(2), canonical_responses(2)
    inputs = reward_inputs(prompts, texts)
    assert make_gate("tokens", LANGUAGES, table)(inputs).all()
    spoiled = [text.replace("10", "10 answer", 1) if "10" in text else text + " answer" for text in texts]
    found = make_gate("tokens", LANGUAGES, table)(reward_inputs(prompts, spoiled))
    assert found.tolist() == [prompt.language == "en" for prompt in prompts]


def test_the_token_gate_does_not_look_behind_a_response(table):
    inputs = reward_inputs([SWAHILI], [RIGHT])
    foreign = next(i for i in range(tokenizer().vocab_size) if table["zh"][i] and not table["sw"][i])
    padded = inputs._replace(tokens_BR=np.pad(inputs.tokens_BR, ((0, 0), (0, 2)), constant_values=foreign))
    gate = make_gate("tokens", LANGUAGES, table)
    assert gate(padded).tolist() == gate(inputs).tolist()
    assert not gate(padded._replace(lengths_B=inputs.lengths_B + 1)).any()


def test_a_gate_that_is_off_passes_everything():
    assert make_gate("off", LANGUAGES, None)(reward_inputs([SWAHILI] * 2, [RIGHT, ENGLISH])).tolist() == [True, True]


@pytest.mark.parametrize("name, message", [("tokens", "use hard or off"), ("soft", "hard, tokens, off")])
def test_a_gate_that_cannot_work_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        make_gate(name, LANGUAGES, None)
