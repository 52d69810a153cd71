"""Parts of policy objectives: importance ratios, clipped surrogate and KL estimates.

Log-probs are natural logarithms of the sampled tokens' probabilities. Only arguments of exp are clamped (log-ratios to
+-20; k3 also at its output to +-10, as in verl and NeMo-RL): ordinary values are unchanged, and extreme ones stay
finite, with zero gradient beyond the clamp.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.core.errors import lookup
from pbrl_jax.core.masking import masked_mean

MAX_LOG_RATIO = 20.0
MAX_K3 = 10.0


def importance_ratio(logp: Float[Array, "*shape"], old_logp: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """exp(logp - old_logp), the log-ratio clamped to +-20."""
    return jnp.exp(jnp.clip(logp - old_logp, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _token_level(logp_BR, old_logp_BR, mask_BR):
    return importance_ratio(logp_BR, old_logp_BR)


def _sequence_level(logp_BR, old_logp_BR, mask_BR):
    gap_B1 = masked_mean(logp_BR - old_logp_BR, mask_BR, axis=1, keepdims=True)
    return jnp.broadcast_to(importance_ratio(gap_B1, jnp.zeros_like(gap_B1)), logp_BR.shape)


def _sequence_token_level(logp_BR, old_logp_BR, mask_BR):
    sequence_BR = jax.lax.stop_gradient(_sequence_level(logp_BR, old_logp_BR, mask_BR))
    return sequence_BR * jnp.exp(logp_BR - jax.lax.stop_gradient(logp_BR))


LEVELS = {"token": _token_level, "sequence": _sequence_level, "sequence_token": _sequence_token_level}


def ratio_at_level(
    logp_BR: Float[Array, "B R"], old_logp_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], level: str
) -> Float[Array, "B R"]:
    """Importance ratio of every token.

      token: p / p_old of the token itself.
      sequence: the geometric mean of a row's token ratios, the same for all its tokens (GSPO, Zheng et al., 2025,
        arXiv 2507.18071).
      sequence_token: that value, with the gradient of each token's own log-prob (GSPO-token, same paper). With one
        advantage per row its gradient is that of `sequence`; it also allows one advantage per token.

    Args:
      logp_BR, old_logp_BR: log-probs with finite values outside the mask (`where_valid`).
      mask_BR: tokens that count.
      level: a name in LEVELS. Log-ratios are clamped to +-20 before the exp.

    Raises:
      ConfigError: `level` is not a name in LEVELS.
    """
    return lookup(LEVELS, level, "value of algo.importance_sampling_level")(logp_BR, old_logp_BR, mask_BR)


def _k3(logp, ref_logp):
    reverse = jnp.clip(ref_logp - logp, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1 keeps the digits that exp(x) - 1 - x loses if the two policies are similar, as they are in training.
    return jnp.clip(jnp.expm1(reverse) - reverse, -MAX_K3, MAX_K3)


KL_ESTIMATORS: dict[str, Callable] = {
    "k1": lambda logp, ref_logp: logp - ref_logp,
    "k2": lambda logp, ref_logp: 0.5 * jnp.square(logp - ref_logp),
    "k3": _k3,
}


def kl_estimate(
    logp: Float[Array, "*shape"], ref_logp: Float[Array, "*shape"], estimator: str
) -> Float[Array, "*shape"]:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled (Schulman, 2020).

    With d = logp - ref_logp: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. As *values*, k1 and k3 are unbiased (k3 has
    less variance and is never negative) and k2 is biased. In a loss only the expected *gradient* matters (Tang and
    Munos, 2025, arXiv 2506.09477):

      k1: exactly zero, as the mean of grad log p over samples of p is zero: a k1 loss only adds noise.
      k2: the gradient of KL(policy || reference), which is the intended one.
      k3: the gradient of the *forward* KL(reference || policy), which favours covering the reference.

    Multiplied by the importance ratio (`use_bias_correction_kl`), on-policy, k1 and k3 have the gradient of
    KL(policy || reference), and k2 has that of its biased value.

    Args:
      logp: log-probs under the policy, with gradient.
      ref_logp: log-probs of the same tokens under the reference. Replace masked entries first (`where_valid`).
      estimator: `k1`, `k2` or `k3`. k1 and k2 contain no exp and are not clamped.

    Raises:
      ConfigError: `estimator` is not a name in KL_ESTIMATORS.
    """
    return lookup(KL_ESTIMATORS, estimator, "value of algo.kl_estimator")(logp, ref_logp)


class Surrogate(NamedTuple):
    """Per-token policy loss (lower is better), and the tokens whose gradient the clip sets to zero."""

    loss: Float[Array, "*shape"]
    low_clipped: Bool[Array, "*shape"]
    high_clipped: Bool[Array, "*shape"]


def clipped_surrogate(
    ratio: Float[Array, "*shape"], adv: Float[Array, "*shape"], *, epsilon: float, epsilon_high: float | None = None
) -> Surrogate:
    """-min(ratio * adv, clip(ratio, 1 - epsilon, 1 + epsilon_high) * adv), elementwise.

    PPO's clip (Schulman et al., 2017, arXiv 1707.06347, equation 7) with a separate upper bound (clip-higher, DAPO,
    arXiv 2503.14476). Written as a choice by the sign of the advantage, so that a token exactly on a bound keeps its
    whole gradient.

    Args:
      ratio: importance ratio of each token.
      adv: advantage of each token.
      epsilon: the lower bound is 1 - epsilon.
      epsilon_high: the upper bound is 1 + epsilon_high; None: epsilon.
    """
    low, high = 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)
    low_clipped = (ratio < low) & (adv < 0)
    high_clipped = (ratio > high) & (adv > 0)
    bounded = jnp.where(low_clipped, low, jnp.where(high_clipped, high, ratio))
    return Surrogate(-bounded * adv, low_clipped, high_clipped)
