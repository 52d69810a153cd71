"""PPO's advantages from a critic, and the critic's clipped loss.

Schulman et al., 2017 (arXiv 1707.06347), with the details that are common for language models (Huang et al., 2023,
"The N implementation details of RLHF with PPO"): the KL in the token rewards, GAE, advantages whitened over the tokens
of the batch, returns not whitened, and a value loss clipped around the values at sampling time. The policy's loss is
`grpo.policy_loss` with one advantage per token.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.algos.advantages import ScoredGroups
from pbrl_jax.algos.losses import aggregate
from pbrl_jax.algos.returns import DiscountConfig, generalised_advantages, token_rewards, whiten
from pbrl_jax.config.fields import identity
from pbrl_jax.core.masking import masked_count, where_valid


@dataclass(frozen=True)
class PpoConfig(DiscountConfig):
    """Further settings of PPO and its critic."""

    lam: float = identity(0.95, at_least=0, at_most=1)
    """ppo: lambda of the generalised advantages; 1 is the return to go minus the value."""
    vf_coef: float = identity(0.1, above=0)
    """ppo: weight of the value loss, which is added to the policy's; both share the trunk."""  # ASSUMED: not stated
    cliprange_value: float | None = identity(0.2, at_least=0)
    """ppo: largest distance of a value from that at sampling time before its loss is clipped; None does not clip."""
    critic_learning_rate: float = identity(1e-5, at_least=0, at_most=1)
    """ppo: peak learning rate of the value head, with the schedule of optim."""  # ASSUMED: not stated
    value_pretrain_steps: int = identity(0, at_least=0)
    """ppo: number of first steps that train only the value head."""  # ASSUMED: not stated


def estimate(
    groups: ScoredGroups, value_BR: Float[Array, "B R"], *, config: PpoConfig
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """(whitened advantages of tokens, returns as the critic's targets); both 0 outside the mask.

    Args:
      groups: the reward of a response is given at its last token, the penalties at each token.
      value_BR: the critic's value of the state in which each token was sampled, without gradient.
      config: `gamma` and `lam`, see `returns.generalised_advantages`.
    """
    mask_BR = groups.mask_BR
    value_BR = where_valid(value_BR, mask_BR)
    reward_BR = token_rewards(groups.reward_PG.reshape(-1), mask_BR, groups.penalty_BR)
    adv_BR = generalised_advantages(reward_BR, value_BR, mask_BR, gamma=config.gamma, lam=config.lam)
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
    """Half the squared error of the value, or of the value clipped to `cliprange_value` around the old one if that
    error is larger.

    Args:
      value_BR: values of the critic being trained, with gradient.
      old_value_BR: those at sampling time.
      return_BR: targets, in the unit of the reward.
      mask_BR: tokens that count; values outside it are ignored.
      cliprange_value: half the width of the clip, in the unit of the value; None does not clip.
      loss_type, max_completion_length: the aggregation, see `losses.aggregate`; the same as of the policy's loss, so
        that both have the same count.

    Returns:
      sum, count: as of `grpo.policy_loss`.
      metrics: `value_clip_ratio`, the share of tokens with a larger clipped error; (numerator, denominator).
    """
    value_BR, old_value_BR, return_BR = (where_valid(x, mask_BR) for x in (value_BR, old_value_BR, return_BR))
    error_BR = jnp.square(value_BR - return_BR)
    clipped_BR = error_BR
    if cliprange_value is not None:
        bounded_BR = jnp.clip(value_BR, old_value_BR - cliprange_value, old_value_BR + cliprange_value)
        clipped_BR = jnp.square(bounded_BR - return_BR)
    larger_BR = clipped_BR > error_BR
    loss_BR = 0.5 * jnp.where(larger_BR, clipped_BR, error_BR)
    total, count = aggregate(loss_BR, mask_BR, loss_type=loss_type, max_completion_length=max_completion_length)
    share = masked_count(larger_BR & mask_BR, dtype=total.dtype), masked_count(mask_BR, dtype=total.dtype)
    return total, count, jax.lax.stop_gradient({"value_clip_ratio": share})
