"""Terms that look at the tokens alone: repetition and length."""

import jax.numpy as jnp
import numpy as np

from pbrl_jax.core.config import RewardConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.inputs import RewardInputs


def repetition_penalty(tokens_BR: np.ndarray, lengths_B: np.ndarray, ngram: int, largest: float) -> np.ndarray:
    """`largest` (at most 0) times the share of n-grams that occurred before in the same response, [B] (float64).

    A response of fewer than `ngram` tokens has none and gets 0. TRL's get_repetition_penalty_reward.
    """
    found = np.zeros(len(tokens_BR))
    for row, (tokens, length) in enumerate(zip(np.asarray(tokens_BR), np.asarray(lengths_B), strict=True)):
        total = int(length) - ngram + 1
        if total > 0:
            windows = np.lib.stride_tricks.sliding_window_view(tokens[: int(length)], ngram)
            found[row] = largest * (1 - len(np.unique(windows, axis=0)) / total)
    return found


def overlong_penalty(lengths_B: np.ndarray, limit: int, cache: int) -> np.ndarray:
    """0 up to `limit - cache` tokens, -1 from `limit` on, a straight line between, [B] (float64).

    Soft overlong punishment: arXiv 2503.14476 (DAPO), equation 13.
    """
    return -np.clip((np.asarray(lengths_B, np.float64) - (limit - cache)) / cache, 0.0, 1.0)


def make_repetition(config: RewardConfig):
    """The reward `repetition`: in [repetition_penalty, 0]."""

    def score(inputs: RewardInputs) -> Scores:
        value = repetition_penalty(
            inputs.tokens_BR, inputs.lengths_B, config.repetition_ngram, config.repetition_penalty
        )
        return Scores(jnp.asarray(value, jnp.float32), jnp.ones(len(value), bool), {})

    return score


def make_overlong(config: RewardConfig):
    """The reward `overlong`: in [-1, 0], by the number of sampled tokens, the end-of-sequence token included."""

    def score(inputs: RewardInputs) -> Scores:
        limit = config.overlong_length or inputs.tokens_BR.shape[1]
        value = overlong_penalty(inputs.lengths_B, limit, config.overlong_cache or max(1, limit // 5))
        return Scores(jnp.asarray(value, jnp.float32), jnp.ones(len(value), bool), {})

    return score


def check_shaping(config: RewardConfig) -> None:
    """Refuse settings of the two terms that make no sense (ConfigError)."""
    if config.repetition_ngram < 1:
        raise ConfigError(f"reward.repetition_ngram is {config.repetition_ngram}; expected 1 or more.")
    if config.repetition_penalty > 0:
        raise ConfigError(
            f"reward.repetition_penalty is {config.repetition_penalty}, which rewards repetition; expected 0 or less."
        )
    if min(config.overlong_length, config.overlong_cache) < 0:
        raise ConfigError("reward.overlong_length and reward.overlong_cache may not be negative.")
    if config.overlong_length and config.overlong_cache > config.overlong_length:
        raise ConfigError(
            f"reward.overlong_cache is {config.overlong_cache}, more than reward.overlong_length = "
            f"{config.overlong_length}. Give the last tokens over which the penalty grows."
        )
