"""Token rewards, returns to go, generalised advantages, whitening and the KL penalty."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.algos.advantages import SAME_REWARD
from pbrl_jax.algos.objectives import kl_estimate
from pbrl_jax.config.algo import AlgoConfig
from pbrl_jax.config.fields import identity
from pbrl_jax.core.masking import masked_mean, masked_range, masked_variance, where_valid

#: Added to the variance under the root when whitening (verl's convention).
WHITEN_EPSILON = 1e-8


@dataclass(frozen=True)
class DiscountConfig(AlgoConfig):
    """Settings of algorithms that sum rewards over tokens."""

    absent = "gives every token of a response the same advantage"
    gamma: float = identity(1.0, at_least=0, at_most=1)
    """Discount per token, of algorithms that sum rewards over tokens (reinforce_plus_plus, ppo)."""


def kl_penalty(
    logp_BR: Float[Array, "B R"],
    ref_logp_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    beta: float | Float[Array, ""],
    estimator: str,
) -> Float[Array, "B R"]:
    """beta * KL estimate of each sampled token, to be subtracted from its reward; 0 outside the mask, no gradient.

    In the reward only the *value* of the estimate matters, as a factor of the policy gradient, not its own gradient.
    With d = logp - ref_logp, on-policy, the expected gradient is

      k1: exactly that of KL(policy || reference).
      k2: that of the mean of d^2 / 2 with constant d, which is not the gradient of a KL.
      k3: that of KL(policy || reference) minus that of KL(reference || policy).

    Args:
      logp_BR: log-probs under the policy that sampled.
      ref_logp_BR: log-probs under the reference.
      mask_BR: sampled tokens; values outside it are ignored.
      beta: weight, a number or a scalar array.
      estimator: k1, k2 or k3; see `objectives.kl_estimate`.
    """
    kl_BR = kl_estimate(where_valid(logp_BR, mask_BR), where_valid(ref_logp_BR, mask_BR), estimator)
    return jax.lax.stop_gradient(where_valid(beta * kl_BR, mask_BR))


def token_rewards(
    reward_B: Float[Array, "B"], mask_BR: Bool[Array, "B R"], penalty_BR: Float[Array, "B R"] | None = None
) -> Float[Array, "B R"]:
    """The response's reward on its last token, minus a penalty on each; 0 outside the mask."""
    last_BR = mask_BR & (jnp.cumsum(mask_BR, axis=1) == mask_BR.sum(axis=1, keepdims=True))
    rewards_BR = where_valid(jnp.broadcast_to(reward_B[:, None], mask_BR.shape), last_BR)
    return rewards_BR if penalty_BR is None else rewards_BR - where_valid(penalty_BR, mask_BR)


def generalised_advantages(
    reward_BR: Float[Array, "B R"],
    value_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    gamma: float,
    lam: float,
) -> Float[Array, "B R"]:
    """GAE (Schulman et al., 2016, arXiv 1506.02438, equation 16), not whitened; 0 outside the mask.

    Tokens outside the mask are skipped, as if their neighbours were adjacent. Returns, the targets of the value
    function, are the advantages plus the values.

    Args:
      reward_BR: reward of each token.
      value_BR: value of the state in which each token was sampled.
      mask_BR: tokens that count; values outside it are ignored.
      gamma: discount per token.
      lam: 1 is the return to go minus the value, 0 the one-step difference.
    """
    reward_BR, value_BR = where_valid(reward_BR, mask_BR), where_valid(value_BR, mask_BR)
    start = jnp.zeros_like(value_BR[:, 0])

    def back(carry, column):
        next_value, next_adv = carry
        reward, value, keep = column
        adv = reward + gamma * next_value - value + gamma * lam * next_adv
        carry = jnp.where(keep, value, next_value), jnp.where(keep, adv, next_adv)
        return carry, jnp.where(keep, adv, 0.0)

    _, adv_RB = jax.lax.scan(back, (start, start), (reward_BR.T, value_BR.T, mask_BR.T), reverse=True)
    return adv_RB.T


def returns_to_go(reward_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], *, gamma: float) -> Float[Array, "B R"]:
    """Discounted sum of a token's reward and all later ones of its row; 0 outside the mask."""
    return generalised_advantages(reward_BR, jnp.zeros_like(reward_BR), mask_BR, gamma=gamma, lam=1.0)


def whiten(
    values: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    *,
    ddof: int = 1,
    epsilon: float = WHITEN_EPSILON,
) -> Float[Array, "*shape"]:
    """(values - mean) / sqrt(variance + epsilon) over all valid entries; 0 elsewhere, and where all are equal to a few
    roundings. `ddof` 1 and epsilon 1e-8 under the root are verl's convention; OpenRLHF uses the biased variance."""
    clean = where_valid(values, mask)
    same = jnp.maximum(SAME_REWARD, 4 * jnp.finfo(clean.dtype).eps * jnp.abs(clean).max())
    std = jnp.sqrt(masked_variance(values, mask, ddof=ddof) + epsilon)
    return where_valid((clean - masked_mean(values, mask)) / std, mask & ~(masked_range(values, mask) < same))


def adapted_beta(
    beta: Float[Array, ""], kl: Float[Array, ""], *, target: float, horizon: int, responses: int
) -> Float[Array, ""]:
    """The next KL weight: beta * (1 + clip(kl / target - 1, -0.2, 0.2) * min(responses / horizon, 1)).

    Ziegler et al., 2019 (arXiv 1909.08593), section 2.2; more responses than the horizon would take beta below 0 there.
    A KL that is not finite leaves beta unchanged.

    Args:
      beta: the current weight.
      kl: the KL measured with it.
      target: the KL to reach, in the same unit.
      horizon: responses after which a constant error of 20 % or more has changed beta by about 20 %.
      responses: number of responses of the measurement.
    """
    error = jnp.clip(kl / target - 1, -0.2, 0.2)
    return jnp.where(jnp.isfinite(kl), beta * (1 + error * min(responses / horizon, 1)), beta).astype(beta.dtype)
