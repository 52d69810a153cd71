"""The losses of `loss_type`: per-token surrogates and their aggregations.

A surrogate is a function `(logp_BR, ratio_BR, adv_BR, config) -> (loss_BR, indicators)`; the indicators are per-token
booleans for the clip metrics. An aggregation is a function `(loss_BR, mask_BR, rows, length) -> (sum, count)`. To add a
loss, write a function and, for its own settings, a frozen dataclass, and add a line to LOSSES.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.algos.objectives import clipped_surrogate
from pbrl_jax.config.algo import AlgoConfig
from pbrl_jax.config.fields import identity
from pbrl_jax.core.errors import ConfigError, lookup
from pbrl_jax.core.masking import divide_or_zero, masked_count, masked_sum, where_valid


@dataclass(frozen=True)
class UpperClipConfig(AlgoConfig):
    """The upper bound of the importance ratio."""

    epsilon_high: float | None = identity(None, at_least=0)
    """Upper clip, 1 + epsilon_high; None: the same as epsilon. For loss_type cispo it is the largest ratio."""


@dataclass(frozen=True)
class ClipConfig(UpperClipConfig):
    """PPO's clip."""

    absent = "does not clip on both sides"
    epsilon: float = identity(0.2, at_least=0, at_most=1)
    """Lower clip of the importance ratio: 1 - epsilon."""
    delta: float | None = identity(None, at_least=1)
    """Largest ratio with a negative advantage (two-sided clip, dual clip); None: no bound."""


@dataclass(frozen=True)
class SapoConfig(AlgoConfig):
    """SAPO's gate."""

    sapo_temperature_pos: float = identity(1.0, at_least=1e-6)
    """loss_type sapo: sharpness of the gate where the advantage is positive."""
    sapo_temperature_neg: float = identity(1.05, at_least=1e-6)
    """loss_type sapo: sharpness of the gate elsewhere."""


def clipped(logp_BR, ratio_BR, adv_BR, config: ClipConfig):
    """PPO's clip with clip-higher; `delta` also bounds the ratio where the advantage is negative.

    Without `delta` the loss of a token with a negative advantage grows with its ratio without bound. Two-sided clipping
    (INTELLECT-2, arXiv 2505.07291) and dual clip (Ye et al., 2020, arXiv 1912.09729) are the same bound, as `delta` is
    above 1 + epsilon_high.
    """
    if config.delta is not None:
        ratio_BR = jnp.where(ratio_BR > config.delta, config.delta, ratio_BR)
    tokens = clipped_surrogate(ratio_BR, adv_BR, epsilon=config.epsilon, epsilon_high=config.epsilon_high)
    return tokens.loss, {
        "clip_ratio/low_mean": tokens.low_clipped,
        "clip_ratio/high_mean": tokens.high_clipped,
        "clip_ratio/region_mean": tokens.low_clipped | tokens.high_clipped,
    }


def check_clip(config: ClipConfig) -> None:
    """Raise ConfigError for a `delta` inside the clip."""
    upper = 1 + (config.epsilon if config.epsilon_high is None else config.epsilon_high)
    if config.delta is not None and config.delta <= upper:
        raise ConfigError(
            f"algo.delta is {config.delta}; expected more than 1 + epsilon_high = {upper:g}, or it would cut what the "
            f"clip allows. Use --algo.delta {2 * upper:g}."
        )


def cispo(logp_BR, ratio_BR, adv_BR, config: UpperClipConfig):
    """Minus log-prob times advantage times the ratio, which is clipped at `epsilon_high` and has no gradient.

    CISPO (MiniMax-M1, arXiv 2506.13585): every token keeps its gradient. As in TRL `epsilon_high` is the bound, not its
    distance from 1, and there is no lower bound.
    """
    bound = cispo_bound(config)
    weight_BR = jax.lax.stop_gradient(jnp.minimum(ratio_BR, bound))
    indicators = {"cispo_clip_ratio": (ratio_BR > bound) & (adv_BR > 0)}
    return -weight_BR * adv_BR * logp_BR, indicators


def cispo_bound(config: UpperClipConfig) -> float:
    """The largest ratio; raise ConfigError where it is missing or below 1."""
    if config.epsilon_high is None or config.epsilon_high < 1:
        raise ConfigError(
            f"algo.loss_type cispo bounds the ratio by algo.epsilon_high itself, and it is {config.epsilon_high}; "
            "expected at least 1. Use --algo.epsilon-high 5.0."
        )
    return config.epsilon_high


def sapo(logp_BR, ratio_BR, adv_BR, config: SapoConfig):
    """A sigmoid gate instead of the clip: gradients decrease with the distance of the ratio from 1 (SAPO, arXiv
    2511.20347).

    The gate is 4 / t * sigmoid(t * (ratio - 1)), with slope 1 at ratio 1; t is `sapo_temperature_pos` where the
    advantage is positive, else `sapo_temperature_neg`.
    """
    t_BR = jnp.where(adv_BR > 0, config.sapo_temperature_pos, config.sapo_temperature_neg).astype(ratio_BR.dtype)
    return -4 / t_BR * jax.nn.sigmoid(t_BR * (ratio_BR - 1)) * adv_BR, {}


def policy_gradient(logp_BR, ratio_BR, adv_BR, config: AlgoConfig):
    """-log-prob times advantage, without a ratio (GPG, arXiv 2504.02546, and plain REINFORCE)."""
    return -adv_BR * logp_BR, {}


def check_no_ratio(config: AlgoConfig) -> None:
    """Raise ConfigError for settings that need an importance ratio."""
    expected = {"num_iterations": 1, "minibatch_prompts": 0, "importance_sampling_level": "token"}
    if wrong := {name: value for name, value in expected.items() if getattr(config, name) != value}:
        found = " and ".join(f"algo.{name} is {getattr(config, name)}" for name in wrong)
        use = " ".join(f"--algo.{name.replace('_', '-')} {value}" for name, value in wrong.items())
        what = f"algo.loss_type {config.loss_type} has no importance ratio"
        raise ConfigError(f"{what}, but {found}. Use {use}, or another loss_type.")


def row_means(loss_BR, mask_BR, rows, length):
    """Sum of row means / rows: every response has the same weight, so tokens of long responses have less."""
    count_B = masked_count(mask_BR, axis=1, dtype=loss_BR.dtype)
    return divide_or_zero(masked_sum(loss_BR, mask_BR, axis=1), count_B).sum(), rows


def token_mean(loss_BR, mask_BR, rows, length):
    """Token sum / tokens."""
    return masked_sum(loss_BR, mask_BR), masked_count(mask_BR, dtype=loss_BR.dtype)


def constant_length(loss_BR, mask_BR, rows, length):
    """Token sum / (rows * max_completion_length): weights do not depend on lengths."""
    return masked_sum(loss_BR, mask_BR), rows * length


class Loss(NamedTuple):
    """A loss: its surrogate, its aggregation, the class of the surrogate's settings, and a function `check(config)`
    that raises ConfigError for settings that do not fit together."""

    surrogate: Callable
    aggregation: Callable
    settings: type[AlgoConfig] = AlgoConfig
    check: Callable | None = None


#: loss_type -> loss. In TRL bnpo divides each microbatch by its own tokens and averages, and dapo divides by the tokens
#: of the whole generation batch; here exact sums are divided once, so that both are the same.
LOSSES = {
    "grpo": Loss(clipped, row_means, ClipConfig, check_clip),
    "bnpo": Loss(clipped, token_mean, ClipConfig, check_clip),
    "dr_grpo": Loss(clipped, constant_length, ClipConfig, check_clip),
    "dapo": Loss(clipped, token_mean, ClipConfig, check_clip),
    "cispo": Loss(cispo, token_mean, UpperClipConfig, cispo_bound),
    "sapo": Loss(sapo, row_means, SapoConfig),
    "gpg": Loss(policy_gradient, token_mean, check=check_no_ratio),
}


def aggregate(
    loss_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    loss_type: str,
    max_completion_length: int,
    count_masked_rows: bool = False,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Per-token losses as (sum, count) by the loss's aggregation: add both over microbatches and hosts, then divide
    once.

    Args:
      loss_BR: per-token losses; ignored outside the mask.
      mask_BR: tokens that count; all False in rows that are invalid or left out.
      loss_type: a name in LOSSES.
      max_completion_length: the constant of `constant_length`, in tokens.
      count_masked_rows: whether rows without tokens count as rows in `row_means` and `constant_length`. False: they do
        not affect the other rows (verl's sequence mean). True: they count with loss 0, which reduces the weight of the
        others (TRL).

    Raises:
      ConfigError: `loss_type` is not a name in LOSSES.
    """
    reduce = lookup(LOSSES, loss_type, "value of algo.loss_type").aggregation
    loss_BR = where_valid(loss_BR, mask_BR)
    counted_B = jnp.ones(mask_BR.shape[:1], bool) if count_masked_rows else mask_BR.any(axis=1)
    return reduce(loss_BR, mask_BR, masked_count(counted_B, dtype=loss_BR.dtype), max_completion_length)
