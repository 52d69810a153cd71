"""Rewards of the sampled tokens alone: repetition and length. Both can also be computed on the device."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pbrl_jax.config.fields import identity
from pbrl_jax.config.reward import RewardConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.rewards.tokens import TokenInputs


@dataclass(frozen=True)
class RepetitionConfig(RewardConfig):
    """Settings of `repetition`."""

    repetition_ngram: int = identity(3, at_least=1, note="an n-gram has 1 or more tokens")
    """Reward `repetition`: length of the n-grams, in tokens."""
    repetition_penalty: float = identity(-1.0, at_most=0, note="more than 0 rewards repetition")
    """Reward `repetition`: value where all n-grams are the same (TRL's max_penalty)."""


@dataclass(frozen=True)
class OverlongConfig(RewardConfig):
    """Settings of `overlong`."""

    overlong_length: int = identity(0, at_least=0, note="a length is not negative")
    """Reward `overlong`: tokens at which the penalty is -1; 0: rollout.max_completion_length."""
    overlong_cache: int = identity(0, at_least=0, note="a length is not negative")
    """Reward `overlong`: number of tokens before that length over which the penalty falls from 0 to -1 (DAPO's soft
    punish cache); 0: a fifth of the length."""  # ASSUMED


def repetition_penalty(tokens_BR: np.ndarray, lengths_B: np.ndarray, ngram: int, largest: float) -> np.ndarray:
    """`largest` (at most 0) times the share of n-grams that repeat an earlier one of the response, [B] (float64).

    0 for a response of fewer than `ngram` tokens. TRL's get_repetition_penalty_reward.
    """
    penalty_B = np.zeros(len(tokens_BR))
    for row, (tokens, length) in enumerate(zip(np.asarray(tokens_BR), np.asarray(lengths_B), strict=True)):
        total = int(length) - ngram + 1
        if total > 0:
            windows = np.lib.stride_tricks.sliding_window_view(tokens[: int(length)], ngram)
            penalty_B[row] = largest * (1 - len(np.unique(windows, axis=0)) / total)
    return penalty_B


def overlong_penalty(lengths_B, limit: int, cache: int):
    """0 up to `limit - cache` tokens, -1 from `limit` on, linear between, [B]; traceable.

    Soft overlong punishment: arXiv 2503.14476 (DAPO), equation 13.
    """
    return -((lengths_B - (limit - cache)) / cache).clip(0.0, 1.0)


def repeated_share(tokens_BR: Int[Array, "B R"], lengths_B: Int[Array, "B"], ngram: int) -> Float[Array, "B"]:
    """The share of n-grams that repeat an earlier one of the response: repetition_penalty on the device, with -1.

    The n-grams of a row are sorted, so that equal ones are neighbours: exact, O(R log R), and traceable.
    """
    B, R = tokens_BR.shape
    count = R - ngram + 1
    if count < 1:
        return jnp.zeros(B)
    total_B = jnp.maximum(lengths_B - ngram + 1, 0)
    past = (jnp.arange(count)[None] >= total_B[:, None]).astype(jnp.int32)
    keys = (past, *(tokens_BR[:, shift : shift + count] for shift in range(ngram)))
    ordered = jax.lax.sort(keys, dimension=1, num_keys=len(keys))
    same = jnp.stack([key[:, 1:] == key[:, :-1] for key in ordered[1:]]).all(axis=0) & (ordered[0][:, 1:] == 0)
    return same.sum(axis=1) / jnp.maximum(total_B, 1)


def overlong_bounds(config: OverlongConfig, width: int) -> tuple[int, int]:
    """(limit, cache) of overlong_penalty for responses of at most `width` tokens."""
    limit = config.overlong_length or width
    return limit, config.overlong_cache or max(1, limit // 5)


def make_token_repetition(config: RepetitionConfig, _spec=None) -> Callable[[TokenInputs], Scores]:
    """The reward `repetition` on the device."""

    def score(inputs: TokenInputs) -> Scores:
        share_B = repeated_share(inputs.tokens_BR, inputs.lengths_B, config.repetition_ngram)
        return Scores(config.repetition_penalty * share_B, jnp.ones(share_B.shape, bool), {})

    return score


def make_repetition(config: RepetitionConfig, _assets=None) -> Callable[[RewardInputs], Scores]:
    """The reward `repetition`, in [repetition_penalty, 0]."""

    def score(inputs: RewardInputs) -> Scores:
        value = repetition_penalty(
            inputs.tokens_BR, inputs.lengths_B, config.repetition_ngram, config.repetition_penalty
        )
        return Scores(jnp.asarray(value, jnp.float32), jnp.ones(len(value), bool), {})

    return score


def make_overlong(config: OverlongConfig, _assets=None) -> Callable[[RewardInputs | TokenInputs], Scores]:
    """The reward `overlong`, in [-1, 0], of the number of sampled tokens with the end-of-sequence token; host and
    device."""

    def score(inputs: RewardInputs | TokenInputs) -> Scores:
        value = overlong_penalty(inputs.lengths_B, *overlong_bounds(config, inputs.tokens_BR.shape[1]))
        return Scores(jnp.asarray(value, jnp.float32), jnp.ones(len(value), bool), {})

    return score


def check_overlong(config: OverlongConfig) -> None:
    """Raise ConfigError for a penalty that grows over more tokens than there are."""
    if config.overlong_length and config.overlong_cache > config.overlong_length:
        raise ConfigError(
            f"reward.overlong_cache is {config.overlong_cache}, more than reward.overlong_length = "
            f"{config.overlong_length}. Give the number of tokens over which the penalty grows, at most that length."
        )
