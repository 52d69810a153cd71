"""`rejected_value` is a floor: no honest attempt scores below an empty reply or one in another language."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import LANGUAGES, encoder, problem_prompts, reward_inputs

from pbrl_jax import Config, RewardConfig
from pbrl_jax.config.tree import with_values
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.combine import REWARDS, RewardAssets, above_floor, combine, make_reward, make_token_reward
from pbrl_jax.rewards.language import Verdict
from pbrl_jax.rewards.tokens import PivotBatch, TokenInputs, TokenTables
from pbrl_jax.train.hosted import separate_rewards

FLOORED = ("hard", "tokens", "soft", "scheduled")
HONEST, ENGLISH, EMPTY = slice(0, 4), 4, 5
TEXTS = ["Jibu ni 20."] * 4 + ["The answer is 20.", ""]
VERDICT = Verdict(np.array([1, 1, 1, 1, 0, 1], np.float32), np.array([True] * 4 + [False, True]))
EMPTY_B = np.array([False] * 5 + [True])
VALUES = st.floats(-100, 100, width=32, allow_subnormal=False)


@st.composite
def scored_replies(draw):
    """Settings and what each function says: of four honest replies anything it may say, of the English one anything."""
    names = draw(st.lists(st.sampled_from([*REWARDS, "own:reward"]), min_size=1, max_size=4, unique=True))
    weights = draw(st.lists(st.floats(-3, 3, width=16), min_size=len(names), max_size=len(names)))
    each = {}
    for name in names:
        value_B = np.array(draw(st.lists(VALUES, min_size=6, max_size=6)), np.float32)
        each[name] = Scores(jnp.asarray(value_B), jnp.ones(6, bool), {})
    reward = {
        "functions": tuple(names),
        "reward_weights": tuple(weights),
        "language_gate": draw(st.sampled_from(FLOORED)),
        "gate_schedule_steps": 0,
        "rejected_value": draw(st.floats(-5, 1, width=16, allow_subnormal=False)),
    }
    return reward, each


@given(scored_replies())
@settings(max_examples=200, deadline=None)
def test_no_combination_of_functions_puts_an_honest_reply_below_the_floor(found):
    reward, each = found
    config = with_values(Config(), reward=reward)
    result = combine(config.reward, each, VERDICT, EMPTY_B, 0)
    value_B = np.asarray(result.value_B)
    assert value_B[HONEST].min() >= value_B[ENGLISH] == np.float32(reward["rejected_value"])
    assert value_B[HONEST].min() >= value_B[EMPTY]
    if any(reward["reward_weights"]):  # each function compared apart, as normalize_then_sum does
        weights = np.array([weight for weight in reward["reward_weights"] if weight])
        columns_BF = np.sign(weights) * separate_rewards(config, result, TEXTS)
        assert (columns_BF[HONEST] >= columns_BF[[ENGLISH]]).all() and (columns_BF[HONEST] >= columns_BF[[EMPTY]]).all()


def test_low_values_keep_their_order_above_the_floor():
    found = np.asarray(above_floor(jnp.array([0.7, 0.0, -0.1, -0.11, -0.3, -1.0, -50.0]), -0.2))
    np.testing.assert_array_equal(found[:3], np.float32([0.7, 0.0, -0.1]))
    assert (np.diff(found) < 0).all() and found[-1] > np.float32(-0.2)
    assert found[4] == pytest.approx(-0.2 + 0.01 / 0.3)
    assert above_floor(jnp.array([0.5, -1.0, 0.0]), 0.0).tolist() == [0.5, 0, 0]


def test_a_long_repetitive_wrong_answer_on_text_and_on_tokens():
    """By hand: repetition and overlong take 2 of 0; an English reply and an empty one get no more."""
    swahili = problem_prompts(1, ("sw",))[0]._replace(answer="19")
    texts = ["Janet anauza mayai tisa kila siku sokoni. Jibu ni 18.", "Janet sells nine eggs. The answer is 18.", ""]
    ids = np.tile(np.arange(5, 8), (3, 40)).astype(np.int32)
    lengths = np.array([120, 120, 0])
    terms = {"functions": ("overlong", "repetition"), "reward_weights": (1.0, 1.0)}
    for names in (("overlong",), ("repetition",), ("answer", "overlong", "repetition")):
        config = RewardConfig(functions=names, reward_weights=(1.0,) * len(names))
        inputs = reward_inputs([swahili] * 3, texts)._replace(tokens_BR=ids, lengths_B=lengths)
        honest, english, empty = make_reward(config, RewardAssets(encoder(), LANGUAGES, None))(inputs).value_B
        assert honest > english == empty == np.float32(-0.2)
    score = make_token_reward(RewardConfig(language_gate="tokens", **terms), encoder().spec)
    ids[1] += 3
    tables = TokenTables(jnp.zeros((1, 12), bool).at[:, :8].set(True), jnp.array([[9]]), jnp.array([2]))
    pivots = PivotBatch(*(jnp.zeros((3, 4)),) * 3, jnp.ones(3, bool), jnp.zeros(3, jnp.int32))
    inputs = TokenInputs(jnp.asarray(ids), jnp.asarray(lengths), pivots, tables, None)
    honest, english, empty = jax.jit(score)(inputs).value_B
    assert honest > english == empty == np.float32(-0.2)
