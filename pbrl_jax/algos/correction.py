"""Importance weights between sampler and trainer, which compute different log-probs of the same policy."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.algos.objectives import importance_ratio
from pbrl_jax.core.errors import lookup
from pbrl_jax.core.masking import masked_sum, where_valid


def _truncate(ratio, low, high):
    return jnp.clip(ratio, low, high)


def _mask(ratio, low, high):
    inside = (ratio >= (0.0 if low is None else low)) & (ratio <= (jnp.inf if high is None else high))
    return jnp.where(inside, ratio, 0.0)


#: mode -> (whether the ratio is that of the whole row, function that applies the bounds).
MODES = {
    "token_truncate": (False, _truncate),
    "token_mask": (False, _mask),
    "sequence_truncate": (True, _truncate),
    "sequence_mask": (True, _mask),
}


def correction_mode(mode: str, sampler_differs: bool) -> str:
    """`mode`; `auto` becomes `token_truncate` if sampler and trainer compute different log-probs, else `off`."""
    if mode != "auto":
        return mode
    return "token_truncate" if sampler_differs else "off"


def sampler_weights(
    trainer_logp_BR: Float[Array, "B R"],
    sampler_logp_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    mode: str,
    clip_min: float | None = None,
    clip_max: float | None = None,
) -> Float[Array, "B R"]:
    """Weight of each token's policy loss: the bounded ratio p_trainer / p_sampler of the policy that sampled.

    Truncated importance sampling (Yao et al., 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"); masking instead of truncating is the choice of IcePop and TRL. Conventions are TRL's: the ratio of a
    sequence is the product of its tokens' ratios (the *sum* of log-ratios, not the mean); bounds may be None.

    Args:
      trainer_logp_BR: the trainer's log-probs of the sampled tokens, for the parameters that sampled; without gradient.
      sampler_logp_BR: those of the sampler.
      mask_BR: tokens that count; values outside it are ignored.
      mode: a name in MODES. `*_truncate` clips the ratio to the bounds; `*_mask` sets it to 0 outside them.
      clip_min, clip_max: the bounds, both inclusive.

    Returns:
      Weights, 0 outside the mask.

    Raises:
      ConfigError: `mode` is not a name in MODES.
    """
    whole_row, bound = lookup(MODES, mode, "value of algo.importance_sampling_mode")
    gap_BR = where_valid(trainer_logp_BR, mask_BR) - where_valid(sampler_logp_BR, mask_BR)
    if whole_row:
        gap_BR = jnp.broadcast_to(masked_sum(gap_BR, mask_BR, axis=1, keepdims=True), mask_BR.shape)
    return where_valid(bound(importance_ratio(gap_BR, jnp.zeros_like(gap_BR)), clip_min, clip_max), mask_BR)
