"""Several rewards, their weights and the language gate, as one: RewardInputs -> (Scores, Scores of each, gate)."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pbrl_jax.assets.encoder import Encoder
from pbrl_jax.core.config import RewardConfig
from pbrl_jax.core.errors import ConfigError, did_you_mean
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.answer import score_answers
from pbrl_jax.rewards.cosine import make_cosine
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.rewards.language import make_gate
from pbrl_jax.rewards.user import make_user_reward


class RewardAssets(NamedTuple):
    """What rewards may need beyond their inputs."""

    encoder: Encoder
    languages: Sequence[str]
    token_table: Mapping[str, np.ndarray] | None


#: name -> (config, assets) -> (RewardInputs -> Scores). Another reward is another line.
REWARDS: dict[str, Callable] = {
    "cosine": lambda config, assets: make_cosine(config, assets.encoder),
    "answer": lambda config, assets: score_answers,
}


class Combined(NamedTuple):
    """The reward of a batch: the total, each function's own scores, and who passed the language gate."""

    total: Scores
    each: dict[str, Scores]
    right_language_B: np.ndarray


def make_reward(config: RewardConfig, assets: RewardAssets) -> Callable[[RewardInputs], Combined]:
    """All functions of `config`, weighted and gated.

    A row is valid when every function with a weight could score it. A response in the wrong language gets
    `rejected_value`, whatever the functions say; an empty response is a valid 0.

    Raises:
      ConfigError: an unknown function, or weights that do not match the functions.
    """
    check_reward(config)
    functions = {}
    for name in config.functions:
        functions[name] = make_user_reward(name) if ":" in name else REWARDS[name](config, assets)
    gate = make_gate(config.language_gate, assets.languages, assets.token_table)

    def score(inputs: RewardInputs) -> Combined:
        each = {name: function(inputs) for name, function in functions.items()}
        value = jnp.zeros(len(inputs.completions))
        valid = jnp.ones(len(inputs.completions), bool)
        for weight, scores in zip(config.reward_weights, each.values(), strict=True):
            if weight:
                value = value + weight * jnp.where(scores.valid_B, scores.value_B, 0.0)
                valid = valid & scores.valid_B
        right = gate(inputs)
        empty = jnp.asarray([not text.strip() for text in inputs.completions])
        value = jnp.where(empty, 0.0, jnp.where(jnp.asarray(right), value, config.rejected_value))
        return Combined(Scores(value, valid, {}), each, right)

    return score


def check_reward(config: RewardConfig) -> None:
    """Refuse names and weights that cannot work (ConfigError)."""
    for name in config.functions:
        if ":" not in name and name not in REWARDS:
            raise ConfigError(
                f"Unknown reward {name!r}. {did_you_mean(name, REWARDS)} A function of your own is "
                "package.module:function."
            )
    if len(config.functions) != len(config.reward_weights) or not config.functions:
        raise ConfigError(
            f"reward.functions has {len(config.functions)} entries and reward.reward_weights "
            f"{len(config.reward_weights)}. Give one weight per function."
        )
