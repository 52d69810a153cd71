"""REINFORCE++ (Hu, 2025, arXiv 2501.03262): no critic and no group; advantages whitened over the tokens of a batch.

The KL belongs into the reward here (`kl_in: reward`), where the return to go carries it; nothing forbids the loss.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pbrl_jax.algos.advantages import ScoredGroups
from pbrl_jax.algos.returns import DiscountConfig, returns_to_go, token_rewards, whiten
from pbrl_jax.config.algo import AlgoConfig
from pbrl_jax.core.masking import masked_mean, where_valid


def estimate(
    groups: ScoredGroups, value_BR: Float[Array, "B R"] | None = None, *, config: DiscountConfig
) -> tuple[Float[Array, "B R"], None]:
    """Discounted return to go of each token (`gamma`), whitened over all tokens of the batch; 0 outside the mask."""
    reward_B = where_valid(groups.reward_PG, groups.valid_PG).reshape(-1)
    token_BR = token_rewards(reward_B, groups.mask_BR, groups.penalty_BR)
    return whiten(returns_to_go(token_BR, groups.mask_BR, gamma=config.gamma), groups.mask_BR), None


def estimate_with_baseline(
    groups: ScoredGroups, value_BR: Float[Array, "B R"] | None = None, *, config: AlgoConfig
) -> tuple[Float[Array, "B R"], None]:
    """REINFORCE++-baseline: reward minus the group's mean on every token, whitened over the tokens of the batch.

    A penalty is taken off the reward, in sum over the row.
    """
    reward_PG, valid_PG = groups.net_reward_PG, groups.valid_PG
    centred_PG = where_valid(where_valid(reward_PG, valid_PG) - masked_mean(reward_PG, valid_PG, 1, True), valid_PG)
    return whiten(jnp.broadcast_to(centred_PG.reshape(-1, 1), groups.mask_BR.shape), groups.mask_BR), None
