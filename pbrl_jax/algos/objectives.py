"""The pieces of a policy objective: ratio, clipped surrogate, KL estimates, and aggregation over tokens.

All are functions of arrays. Log-probs are natural logarithms of the sampled tokens' probabilities. Only what enters an
exp is clamped (log-ratios to +-20; k3 also at its output to +-10, as verl and NeMo-RL do), so ordinary values are
untouched and extreme ones stay finite, with a zero gradient beyond the clamp.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.core.errors import lookup
from pbrl_jax.core.masking import divide_or_zero, masked_count, masked_sum, where_valid

MAX_LOG_RATIO = 20.0
MAX_K3 = 10.0


def importance_ratio(logp: Float[Array, "*shape"], old_logp: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """exp(logp - old_logp), the log-ratio clamped to +-20."""
    return jnp.exp(jnp.clip(logp - old_logp, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _k1(logp, ref_logp):
    return logp - ref_logp


def _k2(logp, ref_logp):
    return 0.5 * jnp.square(logp - ref_logp)


def _k3(logp, ref_logp):
    reverse = jnp.clip(ref_logp - logp, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1 keeps the digits that exp(x) - 1 - x loses where the two policies are close, which is where training lives.
    return jnp.clip(jnp.expm1(reverse) - reverse, -MAX_K3, MAX_K3)


KL_ESTIMATORS = {"k1": _k1, "k2": _k2, "k3": _k3}


def kl_estimate(
    logp: Float[Array, "*shape"], ref_logp: Float[Array, "*shape"], estimator: str
) -> Float[Array, "*shape"]:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled (Schulman, 2020).

    With d = logp - ref_logp: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. As *values*, k1 and k3 are unbiased (k3 has
    less variance and is never negative) and k2 is biased. What matters in a loss is the expected *gradient*, which
    is another matter (Tang and Munos, 2025, arXiv 2506.09477):

      k1: exactly zero. The mean of grad log p over p's own samples vanishes, so a k1 loss adds noise and no pull.
      k2: the gradient of KL(policy || reference), the one that is meant.
      k3: the gradient of the *forward* KL(reference || policy): it pulls towards covering the reference.

    Times the importance ratio (`use_bias_correction_kl`), on-policy, k1 and k3 both have the gradient of
    KL(policy || reference), and k2 has that of its own biased value.

    Args:
      logp: log-probs under the policy; gradients flow through it.
      ref_logp: log-probs of the same tokens under the reference. Replace masked entries first (`where_valid`).
      estimator: `k1`, `k2` or `k3`. k1 and k2 contain no exp and are not clamped.

    Raises:
      ConfigError: `estimator` is not a name in KL_ESTIMATORS.
    """
    return lookup(KL_ESTIMATORS, estimator, "value of algo.kl_estimator")(logp, ref_logp)


class Surrogate(NamedTuple):
    """Per-token policy loss (lower is better) and which tokens the clip has cut off from the gradient."""

    loss: Float[Array, "*shape"]
    low_clipped: Bool[Array, "*shape"]
    high_clipped: Bool[Array, "*shape"]


def clipped_surrogate(
    ratio: Float[Array, "*shape"], adv: Float[Array, "*shape"], *, epsilon: float, epsilon_high: float | None = None
) -> Surrogate:
    """-min(ratio * adv, clip(ratio, 1 - epsilon, 1 + epsilon_high) * adv), elementwise.

    PPO's clip (Schulman et al., 2017, arXiv 1707.06347, equation 7) with an upper bound of its own (clip-higher, DAPO,
    arXiv 2503.14476). The minimum is attained at a bound only where the ratio has left the range in the direction the
    advantage asked for, and so it is written: a token exactly on a bound keeps its whole gradient.

    Args:
      ratio: importance ratio of each token.
      adv: advantage of each token; spread a row's advantage over its tokens before.
      epsilon: lower bound is 1 - epsilon.
      epsilon_high: upper bound is 1 + epsilon_high; None takes epsilon.
    """
    low, high = 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)
    low_clipped = (ratio < low) & (adv < 0)
    high_clipped = (ratio > high) & (adv > 0)
    bounded = jnp.where(low_clipped, low, jnp.where(high_clipped, high, ratio))
    return Surrogate(-bounded * adv, low_clipped, high_clipped)


def _row_means(loss_BR, mask_BR, rows, length):
    count_B = masked_count(mask_BR, axis=1, dtype=loss_BR.dtype)
    return divide_or_zero(masked_sum(loss_BR, mask_BR, axis=1), count_B).sum(), rows


def _tokens(loss_BR, mask_BR, rows, length):
    return masked_sum(loss_BR, mask_BR), masked_count(mask_BR, dtype=loss_BR.dtype)


def _rows_of_constant_length(loss_BR, mask_BR, rows, length):
    return masked_sum(loss_BR, mask_BR), rows * length


AGGREGATIONS = {
    "grpo": _row_means,
    "sapo": _row_means,
    "bnpo": _tokens,
    "dapo": _tokens,
    "cispo": _tokens,
    "gpg": _tokens,
    "dr_grpo": _rows_of_constant_length,
}


def aggregate(
    loss_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    loss_type: str,
    max_completion_length: int,
    count_masked_rows: bool = False,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Per-token losses as (sum, count): add both over microbatches and hosts, then divide once.

      grpo, sapo: sum of row means / rows. Every response weighs the same, so a token of a long one weighs less.
      bnpo, dapo, cispo, gpg: token sum / tokens. In TRL bnpo divides each microbatch by its own tokens and averages
        the quotients, and dapo divides by the tokens of the whole generation batch; with one division of exact sums
        they coincide.
      dr_grpo: token sum / (rows * max_completion_length): a constant, so length changes no weight.

    Args:
      loss_BR: per-token losses; anything under the mask.
      mask_BR: tokens that count. Rows that are invalid or left out arrive all False.
      loss_type: a name in AGGREGATIONS.
      max_completion_length: the constant of dr_grpo, in tokens.
      count_masked_rows: whether a row without any token still counts as a row in grpo and dr_grpo. False: it has left
        the loss, and the other rows weigh what they would weigh without it (verl's sequence mean). True: it counts
        with loss 0, which shrinks the others (TRL).

    Raises:
      ConfigError: `loss_type` is not a name in AGGREGATIONS.
    """
    reduce = lookup(AGGREGATIONS, loss_type, "value of algo.loss_type")
    loss_BR = where_valid(loss_BR, mask_BR)
    counted_B = jnp.ones(mask_BR.shape[:1], bool) if count_masked_rows else mask_BR.any(axis=1)
    return reduce(loss_BR, mask_BR, masked_count(counted_B, dtype=loss_BR.dtype), max_completion_length)
