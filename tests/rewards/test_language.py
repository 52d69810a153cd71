"""The language gates and their modes, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_world import LANGUAGES, canonical_responses, problem_prompts, reward_inputs, tokenizer

from pbrl_jax import RewardConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.sources import quickstart
from pbrl_jax.rewards.language import Verdict, apply_gate, identified_gate, make_gate, response_share
from pbrl_jax.text.token_languages import token_language_table

SWAHILI = problem_prompts(1, ("sw",))[0]._replace(answer="20")
ENGLISH = "Ali starts with 10 bottles and buys 10 more bottles. The answer is 20."
RIGHT = "Ali anaanza na chupa 10 na kununua chupa 10 zaidi. Jibu ni 20."
REASONING = (
    "Bata wa Janet hutaga mayai kumi na sita kila siku. Yeye hula mayai matatu asubuhi na huuza mengine sokoni. "
)
KINYARWANDA = (
    "Abantu bose bavuka aribo kandi bangana mu gaciro no mu burenganzira. Arya atatu mu gitondo kandi agurisha asigaye "
    "ku isoko buri munsi. "
)


def gate(name, languages=LANGUAGES, table=None, **settings):
    return make_gate(RewardConfig(language_gate=name, **settings), languages, table)


def test_the_identifier_passes_its_language_and_what_is_too_short():
    texts = [RIGHT, ENGLISH, "20", "", "阿里原来有十个瓶子，又买了十个瓶子。"]
    verdict = gate("hard")(reward_inputs([SWAHILI] * 5, texts))
    assert verdict.right_B.tolist() == [True, False, True, True, False]
    assert verdict.share_B.tolist() == [1, 0, 1, 1, 0]


def test_english_is_an_alternative_also_where_a_run_trains_one_language():
    found = identified_gate(reward_inputs([SWAHILI] * 2, [RIGHT, ENGLISH]), ("sw",), 0.8)
    assert found.right_B.tolist() == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        REASONING + KINYARWANDA + "Jibu ni 20.",  # a third language
        REASONING * 10 + "So the answer is 20.",  # an English tail
        REASONING * 10 + "Jibu ni the number of eggs that she can sell, 20.",  # an English answer
        "First she eats three of the eggs and sells the rest at the market. Jibu ni mayai ishirini, yaani 20.",
        REASONING + "Then the rest of the eggs are sold at the market for two dollars each. Jibu ni 20.",
        REASONING + "$\\text{the total of all of the eggs}$ ```print('the answer is here')``` Jibu ni 20.",
    ],
)
def test_what_the_gate_must_see(text):
    assert gate("hard")(reward_inputs([SWAHILI], [text])).right_B.tolist() == [False]


@pytest.mark.parametrize(
    "text",
    [
        REASONING * 3 + "Jibu ni 20.",
        REASONING + "$\\text{ jumla ya mayai } x = 4 \\times 5 \\text{ km}$ ```jibu = mayai * 2``` Jibu ni 20.",
        REASONING + "\\boxed{20}",
        "Jibu ni 20.",
        "<think>" + REASONING + "</think><answer>20</answer>",
    ],
)
def test_what_the_gate_must_let_through(text):
    assert gate("hard")(reward_inputs([SWAHILI], [text])).right_B.tolist() == [True]


def test_the_share_is_that_of_the_worst_part():
    """Reasoning all Swahili; the answer part is English but for its marker and so decides."""
    text = REASONING * 10 + "Jibu ni the number of eggs that she can sell at the market on every day of the year."
    assert response_share(REASONING, "sw", LANGUAGES) == 1.0
    assert response_share(text, "sw", LANGUAGES) < 0.5


@pytest.fixture(scope="module")
def table():
    problems = quickstart.problems("sft", 60, 0, "small")
    texts = {code: [quickstart.response(p, code) for p in problems] for code in LANGUAGES}
    return token_language_table(tokenizer(), texts)


def test_the_token_gate_sees_one_foreign_word(table):
    prompts, texts = problem_prompts(2), canonical_responses(2)
    inputs = reward_inputs(prompts, texts)
    assert gate("tokens", table=table)(inputs).right_B.all()
    spoiled = [text.replace("10", "10 answer", 1) if "10" in text else text + " answer" for text in texts]
    found = gate("tokens", table=table)(reward_inputs(prompts, spoiled))
    assert found.right_B.tolist() == [prompt.language == "en" for prompt in prompts]
    assert found.share_B.tolist() == found.right_B.tolist()


def test_the_token_gate_does_not_look_behind_a_response(table):
    inputs = reward_inputs([SWAHILI], [RIGHT])
    foreign = next(i for i in range(tokenizer().vocab_size) if table["zh"][i] and not table["sw"][i])
    padded = inputs._replace(tokens_BR=np.pad(inputs.tokens_BR, ((0, 0), (0, 2)), constant_values=foreign))
    seen = gate("tokens", table=table)
    assert seen(padded).right_B.tolist() == seen(inputs).right_B.tolist()
    assert not seen(padded._replace(lengths_B=inputs.lengths_B + 1)).right_B.any()


def test_a_gate_that_is_off_passes_everything():
    assert gate("off")(reward_inputs([SWAHILI] * 2, [RIGHT, ENGLISH])).right_B.tolist() == [True, True]


VALUES = jnp.array([0.9, 0.9, 0.9, -0.5])
VERDICT = Verdict(np.array([1.0, 0.75, 0.0, 0.0], np.float32), np.array([True, False, False, False]))


@pytest.mark.parametrize(
    "settings, step, expected",
    [
        ({"language_gate": "hard"}, 0, [0.9, -0.2, -0.2, -0.2]),
        ({"language_gate": "tokens"}, 0, [0.9, -0.2, -0.2, -0.2]),
        ({"language_gate": "off"}, 0, [0.9, 0.9, 0.9, -0.5]),
        ({"language_gate": "penalty", "gate_penalty": 0.3}, 0, [0.9, 0.6, 0.6, -0.8]),
        # 0.9 - 0.25 * 1.1, 0.9 - 1.1; what lies below the rejected value is not lifted
        ({"language_gate": "soft"}, 0, [0.9, 0.625, -0.2, -0.5]),
        # no effect, half of soft, all of soft
        ({"language_gate": "scheduled", "gate_schedule_steps": 10}, 0, [0.9, 0.9, 0.9, -0.5]),
        ({"language_gate": "scheduled", "gate_schedule_steps": 10}, 5, [0.9, 0.7625, 0.35, -0.5]),
        ({"language_gate": "scheduled", "gate_schedule_steps": 10}, 99, [0.9, 0.625, -0.2, -0.5]),
        ({"language_gate": "scheduled", "gate_schedule_steps": 0}, 0, [0.9, 0.625, -0.2, -0.5]),
    ],
)
def test_modes_by_hand(settings, step, expected):
    config = RewardConfig(rejected_value=-0.2, **settings)
    np.testing.assert_allclose(apply_gate(config, VALUES, VERDICT, step), expected, atol=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"language_gate": "tokens"}, "use hard or off"),
        ({"language_gate": "strict"}, "hard, penalty, soft, scheduled, tokens, off"),
        ({"language_gate": "hard", "gate_share": 0.0}, "gate_share"),
        ({"language_gate": "hard", "gate_penalty": -1.0}, "negative"),
    ],
)
def test_a_gate_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_gate(RewardConfig(**settings), LANGUAGES, None)
