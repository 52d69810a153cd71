"""Terms that look at the tokens alone: repetition and length. Each has a twin on the device, for the fused step."""

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
    """What `repetition` reads."""

    repetition_ngram: int = identity(3, at_least=1, note="an n-gram has 1 or more tokens")
    """Reward `repetition`: length in tokens of the n-grams that are counted."""
    repetition_penalty: float = identity(-1.0, at_most=0, note="more than 0 rewards repetition")
    """Reward `repetition`: value where all n-grams are the same (TRL's max_penalty)."""


@dataclass(frozen=True)
class OverlongConfig(RewardConfig):
    """What `overlong` reads."""

    overlong_length: int = identity(0, at_least=0, note="a length is not negative")
    """Reward `overlong`: tokens at which the penalty is -1; 0: rollout.max_completion_length."""
    overlong_cache: int = identity(0, at_least=0, note="a length is not negative")
    """Reward `overlong`: tokens below that length over which the penalty falls from 0 to -1 (DAPO's soft punish
    cache); 0: a fifth of it."""  # ASSUMED


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


def repeated_share(tokens_BR: Int[Array, "B R"], lengths_B: Int[Array, "B"], ngram: int) -> Float[Array, "B"]:
    """The share of n-grams that occurred before in the same response: repetition_penalty on the device, with -1.

    The n-grams of a row are sorted, so that equal ones stand beside each other: exact, O(R log R), and traceable.
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
    """(tokens at which the penalty is -1, tokens over which it grows) of responses of at most `width` tokens."""
    limit = config.overlong_length or width
    return limit, config.overlong_cache or max(1, limit // 5)


def make_token_repetition(config: RepetitionConfig, _spec=None) -> Callable[[TokenInputs], Scores]:
    """The reward `repetition` on the device."""

    def score(inputs: TokenInputs) -> Scores:
        share_B = repeated_share(inputs.tokens_BR, inputs.lengths_B, config.repetition_ngram)
        return Scores(config.repetition_penalty * share_B, jnp.ones(share_B.shape, bool), {})

    return score


def make_token_overlong(config: OverlongConfig, _spec=None) -> Callable[[TokenInputs], Scores]:
    """The reward `overlong` on the device."""

    def score(inputs: TokenInputs) -> Scores:
        limit, cache = overlong_bounds(config, inputs.tokens_BR.shape[1])
        value_B = -jnp.clip((inputs.lengths_B - (limit - cache)) / cache, 0.0, 1.0)
        return Scores(value_B, jnp.ones(value_B.shape, bool), {})

    return score


def make_repetition(config: RepetitionConfig):
    """The reward `repetition`: in [repetition_penalty, 0]."""

    def score(inputs: RewardInputs) -> Scores:
        value = repetition_penalty(
            inputs.tokens_BR, inputs.lengths_B, config.repetition_ngram, config.repetition_penalty
        )
        return Scores(jnp.asarray(value, jnp.float32), jnp.ones(len(value), bool), {})

    return score


def make_overlong(config: OverlongConfig):
    """The reward `overlong`: in [-1, 0], by the number of sampled tokens, the end-of-sequence token included."""

    def score(inputs: RewardInputs) -> Scores:
        value = overlong_penalty(inputs.lengths_B, *overlong_bounds(config, inputs.tokens_BR.shape[1]))
        return Scores(jnp.asarray(value, jnp.float32), jnp.ones(len(value), bool), {})

    return score


def check_overlong(config: OverlongConfig) -> None:
    """Refuse a penalty that grows over more tokens than there are (ConfigError)."""
    if config.overlong_length and config.overlong_cache > config.overlong_length:
        raise ConfigError(
            f"reward.overlong_cache is {config.overlong_cache}, more than reward.overlong_length = "
            f"{config.overlong_length}. Give the last tokens over which the penalty grows."
        )
