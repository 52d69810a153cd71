"""Repetition and length terms: TRL's values, and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from algos.oracle_checks import CASES, EXACT
from tiny_world import problem_prompts, reward_inputs

from pbrl_jax import RewardConfig
from pbrl_jax.config.checks import check_section
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.rewards.combine import REWARDS
from pbrl_jax.rewards.shaping import (
    check_overlong,
    make_overlong,
    make_repetition,
    overlong_penalty,
    repeated_share,
    repetition_penalty,
)
from pbrl_jax.rewards.tokens import TokenInputs

PROMPTS = problem_prompts(1, ("sw",)) * 3


def test_trl_repetition():
    case = CASES["trl.reward.repetition"]
    tokens_BR = np.asarray(case.input("ids_minus1_padded"))
    lengths_B = (tokens_BR >= 0).sum(axis=1)
    for ngram in (2, 3):
        case.expect(f"n{ngram}", repetition_penalty(tokens_BR, lengths_B, ngram, -1.0), EXACT)
    assert case.output("n3").min() < 0


def test_trl_soft_overlong():
    case = CASES["trl.reward.soft_overlong"]
    limit, cache = case.config["max_completion_len"], case.config["soft_punish_cache"]
    case.expect("reward", overlong_penalty(np.asarray(case.input("lengths")), limit, cache), EXACT)


def test_repetition_by_hand():
    """1 2 1 2 1: bigrams 12 21 12 21, two of four are new; the padding behind the length says nothing."""
    tokens = np.array([[1, 2, 1, 2, 1, 9], [5, 5, 5, 5, 5, 5], [7, 0, 0, 0, 0, 0]])
    found = repetition_penalty(tokens, np.array([5, 6, 1]), 2, -2.0)
    np.testing.assert_allclose(found, [-1.0, -1.6, 0.0], atol=1e-12)


def test_the_twins_on_the_device():
    """Few different tokens, so that most rows repeat some; lengths from none to all; n-grams longer than a row."""
    rng = np.random.default_rng(0)
    tokens, lengths = rng.integers(0, 3, (64, 12)), rng.integers(0, 13, 64)
    device = jnp.asarray(tokens), jnp.asarray(lengths)
    for ngram in (1, 2, 3, 13):
        own = -np.asarray(repeated_share(*device, ngram))
        np.testing.assert_allclose(own, repetition_penalty(tokens, lengths, ngram, -1.0), atol=1e-6)
    config = RewardConfig(repetition_penalty=-0.5, overlong_length=9, overlong_cache=4)
    inputs = reward_inputs(PROMPTS, ["x"] * 3)._replace(tokens_BR=tokens, lengths_B=lengths)
    on_device = TokenInputs(*device, None, None, None)
    for name, make in (("repetition", make_repetition), ("overlong", make_overlong)):
        found = REWARDS[name].of_tokens(config, None)(on_device)
        np.testing.assert_allclose(found.value_B, make(config)(inputs).value_B, atol=1e-6)
        assert found.valid_B.all()


def test_overlong_by_hand():
    found = overlong_penalty(np.array([0, 80, 85, 90, 100, 120]), 100, 20)
    np.testing.assert_allclose(found, [0, 0, -0.25, -0.5, -1, -1], atol=1e-12)


def test_as_rewards():
    inputs = reward_inputs(PROMPTS, ["Jibu ni 20."] * 3)._replace(
        tokens_BR=np.tile(np.array([[3, 4, 3, 4, 3, 4, 3, 4, 3, 4]]), (3, 1)), lengths_B=np.array([10, 9, 8])
    )
    repetition = make_repetition(RewardConfig(repetition_ngram=2, repetition_penalty=-0.9))(inputs)
    np.testing.assert_allclose(repetition.value_B, [-0.9 * 7 / 9, -0.9 * 6 / 8, -0.9 * 5 / 7], atol=1e-6)
    # the width of the rollout, 10, and a fifth of it
    np.testing.assert_allclose(make_overlong(RewardConfig())(inputs).value_B, [-1, -0.5, 0], atol=1e-6)
    own = RewardConfig(overlong_length=9, overlong_cache=4)
    np.testing.assert_allclose(make_overlong(own)(inputs).value_B, [-1, -1, -0.75], atol=1e-6)
    assert repetition.valid_B.all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"repetition_ngram": 0}, "1 or more"),
        ({"repetition_penalty": 0.5}, "rewards repetition"),
        ({"overlong_length": -1}, "negative"),
        ({"overlong_length": 10, "overlong_cache": 11}, "more than reward.overlong_length"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_section("reward", RewardConfig(**settings))
        check_overlong(RewardConfig(**settings))
