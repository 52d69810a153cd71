"""PPO's value function: advantages from a critic, and the critic's clipped loss.

Schulman et al., 2017 (arXiv 1707.06347), with the details that language model trainers share (Huang et al., 2023,
"The N implementation details of RLHF with PPO"): the KL in the token rewards, GAE, advantages whitened over the tokens
of the batch, returns not whitened, and a value loss clipped around the values at sampling time. The policy's loss is
that of the whole family (`grpo.policy_loss`) with one advantage per token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.algos.objectives import aggregate
from pbrl_jax.algos.returns import generalised_advantages, token_rewards, whiten
from pbrl_jax.core.masking import masked_count, where_valid


def critic_advantages(
    reward_B: Float[Array, "B"],
    value_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    gamma: float,
    lam: float,
    penalty_BR: Float[Array, "B R"] | None = None,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Whitened advantages of tokens, and the returns that the critic is trained towards; both 0 outside the mask.

    Args:
      reward_B: reward of each response, given at its last token; anything in rows that the mask leaves out.
      value_BR: the critic's value of the state in which each token was sampled, without gradient.
      mask_BR: sampled tokens of valid rows. Anything may stand outside it.
      gamma, lam: see `returns.generalised_advantages`.
      penalty_BR: taken off the tokens' rewards (`returns.kl_penalty`).
    """
    value_BR = where_valid(value_BR, mask_BR)
    reward_BR = token_rewards(reward_B, mask_BR, penalty_BR)
    adv_BR = generalised_advantages(reward_BR, value_BR, mask_BR, gamma=gamma, lam=lam)
    return whiten(adv_BR, mask_BR), adv_BR + value_BR


def value_loss(
    value_BR: Float[Array, "B R"],
    old_value_BR: Float[Array, "B R"],
    return_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    cliprange_value: float | None,
    loss_type: str = "dapo",
    max_completion_length: int = 1,
) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, tuple[Float[Array, ""], Float[Array, ""]]]]:
    """Half the squared error, of the value or of the value held within `cliprange_value` of the old one, the larger.

    Args:
      value_BR: values of the critic being trained; gradients flow through it alone.
      old_value_BR: those at sampling time.
      return_BR: targets, in the unit of the reward.
      mask_BR: tokens that count. Anything may stand outside it.
      cliprange_value: half the width of the clip, in the unit of the value; None does not clip.
      loss_type, max_completion_length: the aggregation, see `objectives.aggregate`; that of the policy's loss, so
        that both are divided by one count.

    Returns:
      sum, count: as of `grpo.policy_loss`.
      metrics: `value_clip_ratio`, the share of tokens whose clipped error is the larger; (numerator, denominator).
    """
    value_BR, old_value_BR, return_BR = (where_valid(x, mask_BR) for x in (value_BR, old_value_BR, return_BR))
    error_BR = jnp.square(value_BR - return_BR)
    clipped_BR = error_BR
    if cliprange_value is not None:
        near_BR = jnp.clip(value_BR, old_value_BR - cliprange_value, old_value_BR + cliprange_value)
        clipped_BR = jnp.square(near_BR - return_BR)
    larger_BR = clipped_BR > error_BR
    loss_BR = 0.5 * jnp.where(larger_BR, clipped_BR, error_BR)
    total, count = aggregate(loss_BR, mask_BR, loss_type=loss_type, max_completion_length=max_completion_length)
    share = masked_count(larger_BR & mask_BR, dtype=total.dtype), masked_count(mask_BR, dtype=total.dtype)
    return total, count, jax.lax.stop_gradient({"value_clip_ratio": share})
