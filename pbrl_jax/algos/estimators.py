"""Further advantage estimators: OPO and GPG within groups, REINFORCE++ over a batch.

REINFORCE++ (Hu, 2025, arXiv 2501.03262) has neither critic nor groups: advantages are whitened over the tokens of a
batch. Its KL belongs in the reward (`kl_in: reward`), so that the return to go contains it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pbrl_jax.algos.advantages import ScoredGroups, flat_groups, group_advantages
from pbrl_jax.algos.returns import DiscountConfig, returns_to_go, token_rewards, whiten
from pbrl_jax.config.algo import AlgoConfig
from pbrl_jax.core.masking import divide_or_zero, masked_count, masked_sum, where_valid


def estimate_opo(
    groups: ScoredGroups, value_BR: Float[Array, "B R"] | None = None, *, config: AlgoConfig
) -> tuple[Float[Array, "B"], None]:
    """Reward minus the group's length-weighted mean, not scaled: the baseline with the least gradient variance if the
    gradients of all tokens have the same norm (OPO, Hao et al., 2025, arXiv 2505.23585).
    """
    reward_PG, valid_PG = groups.net_reward_PG, groups.valid_PG
    length_PG = masked_count(groups.mask_BR, axis=1).reshape(reward_PG.shape).astype(reward_PG.dtype)
    weighted_P1 = masked_sum(length_PG * where_valid(reward_PG, valid_PG), valid_PG, axis=1, keepdims=True)
    baseline_P1 = divide_or_zero(weighted_P1, masked_sum(length_PG, valid_PG, axis=1, keepdims=True))
    keep_PG = valid_PG & ~flat_groups(reward_PG, valid_PG)[:, None]
    return where_valid(where_valid(reward_PG, valid_PG) - baseline_P1, keep_PG).reshape(-1), None


def estimate_gpg(
    groups: ScoredGroups, value_BR: Float[Array, "B R"] | None = None, *, config: AlgoConfig
) -> tuple[Float[Array, "B"], None]:
    """Reward minus the group's mean, times (rows / rows of groups with different rewards), so that groups with equal
    rewards do not reduce the gradient of the others (GPG, Chu et al., 2025, arXiv 2504.02546). With
    `mask_zero_std_groups` these have left the count of the loss already, and the factor is 1."""
    reward_PG, valid_PG = groups.net_reward_PG, groups.valid_PG
    adv_PG = group_advantages(reward_PG, valid_PG, scale="none", epsilon=0.0)
    signal_PG = valid_PG & ~flat_groups(reward_PG, valid_PG)[:, None]
    rows, signal = (masked_count(rows, dtype=adv_PG.dtype) for rows in (valid_PG, signal_PG))
    factor = 1 if config.mask_zero_std_groups else rows / jnp.maximum(signal, 1)
    return (adv_PG * factor).reshape(-1), None


def estimate_reinforce_pp(
    groups: ScoredGroups, value_BR: Float[Array, "B R"] | None = None, *, config: DiscountConfig
) -> tuple[Float[Array, "B R"], None]:
    """Discounted return to go of each token (`gamma`), whitened over all tokens of the batch; 0 outside the mask."""
    reward_B = where_valid(groups.reward_PG, groups.valid_PG).reshape(-1)
    token_BR = token_rewards(reward_B, groups.mask_BR, groups.penalty_BR)
    return whiten(returns_to_go(token_BR, groups.mask_BR, gamma=config.gamma), groups.mask_BR), None


def estimate_reinforce_pp_baseline(
    groups: ScoredGroups, value_BR: Float[Array, "B R"] | None = None, *, config: AlgoConfig
) -> tuple[Float[Array, "B R"], None]:
    """REINFORCE++-baseline: reward minus the group's mean on every token, whitened over the tokens of the batch.
    Before, it is exactly 0 in groups with equal rewards. The sum of a row's penalties is subtracted from its reward."""
    centred_PG = group_advantages(groups.net_reward_PG, groups.valid_PG, scale="none", epsilon=0.0)
    return whiten(jnp.broadcast_to(centred_PG.reshape(-1, 1), groups.mask_BR.shape), groups.mask_BR), None
