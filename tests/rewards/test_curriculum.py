"""The pivot curriculum: weights by hand, and a reward whose total follows them."""

import numpy as np
import pytest
from tiny_world import problem_prompts, reward_inputs

from pbrl_jax import Config, RewardConfig, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.rewards.combine import RewardAssets, check_reward, make_reward, weights_at
from pbrl_jax.run.check import validate
from pbrl_jax.train.fused import check_fusable

CURRICULUM = {
    "functions": (f"{__name__}:pivot_part", f"{__name__}:answer_part"), "reward_weights": (1.0, 0.0),
    "final_weights": (0.0, 2.0), "curriculum_start": 10, "curriculum_steps": 20, "language_gate": "off",
}  # fmt: skip


def pivot_part(prompts, completions, **columns):
    """Fails in the first row."""
    return [None, *(0.5 for _ in completions[1:])]


def answer_part(prompts, completions, **columns):
    return [0.25 for _ in completions]


@pytest.mark.parametrize(
    "shape, step, weights",
    [
        ("linear", 0, (1.0, 0.0)),
        ("linear", 10, (1.0, 0.0)),
        ("linear", 15, (0.75, 0.5)),
        ("linear", 30, (0.0, 2.0)),
        ("linear", 99, (0.0, 2.0)),
        ("cosine", 15, ((1 + np.sqrt(0.5)) / 2, 1 - np.sqrt(0.5))),
        ("cosine", 20, (0.5, 1.0)),
    ],
)
def test_weights_by_hand(shape, step, weights):
    config = RewardConfig(**CURRICULUM, curriculum_shape=shape)
    assert weights_at(config, step) == pytest.approx(weights)
    assert weights_at(RewardConfig(), step) == (1.0,)


def test_the_total_follows_the_weights():
    """A row to which the pivot's reward does not apply (None) is invalid until another reward has a weight."""
    score = make_reward(RewardConfig(**CURRICULUM), RewardAssets(None, ("en", "sw", "zh"), None))
    inputs = reward_inputs(problem_prompts(1), ["one", "two", "three"])
    for step, value, valid in ((0, 0.5, False), (15, 0.75 * 0.5 + 0.5 * 0.25, True), (30, 0.5, True)):
        total = score(inputs._replace(step=step)).total
        np.testing.assert_allclose(total.value_B[1:], value, rtol=1e-6)
        assert total.valid_B.tolist() == [valid, True, True]


def test_settings_that_cannot_work():
    with pytest.raises(ConfigError, match="final_weights has 1 entries and reward.functions 2"):
        check_reward(RewardConfig(**{**CURRICULUM, "final_weights": (1.0,)}))
    config = with_values(Config(), reward={**CURRICULUM, "reward_weights": (1.0, 1.0)})
    with pytest.raises(ConfigError, match="sum_then_normalize"):
        validate(with_values(config, algo={"multi_objective_aggregation": "normalize_then_sum"}), 1)
    with pytest.raises(ConfigError, match="reward.final_weights"):
        check_fusable(config, True)
