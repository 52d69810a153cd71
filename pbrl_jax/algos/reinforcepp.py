"""REINFORCE++ (Hu, 2025, arXiv 2501.03262): no critic and no group; advantages whitened over the tokens of a batch.

The KL belongs into the reward here (`kl_in: reward`), where the return to go carries it; nothing forbids the loss.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.algos.advantages import without_penalty
from pbrl_jax.algos.returns import returns_to_go, token_rewards, whiten
from pbrl_jax.config.tree import AlgoConfig
from pbrl_jax.core.masking import masked_mean, where_valid


def advantages(
    reward_PG: Float[Array, "P G"],
    valid_PG: Bool[Array, "P G"],
    mask_BR: Bool[Array, "B R"],
    *,
    config: AlgoConfig,
    penalty_BR: Float[Array, "B R"] | None = None,
) -> Float[Array, "B R"]:
    """Discounted return to go of each token (`gamma`), whitened over all tokens of the batch; 0 outside the mask."""
    reward_B = where_valid(reward_PG, valid_PG).reshape(-1)
    token_BR = token_rewards(reward_B, mask_BR, penalty_BR)
    return whiten(returns_to_go(token_BR, mask_BR, gamma=config.gamma), mask_BR)


def baseline_advantages(
    reward_PG: Float[Array, "P G"],
    valid_PG: Bool[Array, "P G"],
    mask_BR: Bool[Array, "B R"],
    *,
    config: AlgoConfig,
    penalty_BR: Float[Array, "B R"] | None = None,
) -> Float[Array, "B R"]:
    """REINFORCE++-baseline: reward minus the group's mean on every token, whitened over the tokens of the batch.

    A penalty is taken off the reward, in sum over the row.
    """
    reward_PG = without_penalty(reward_PG, penalty_BR)
    centred_PG = where_valid(where_valid(reward_PG, valid_PG) - masked_mean(reward_PG, valid_PG, 1, True), valid_PG)
    return whiten(jnp.broadcast_to(centred_PG.reshape(-1, 1), mask_BR.shape), mask_BR)
