"""Other baselines of a group: OPO's length-weighted mean, and GPG's correction for groups without signal."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pbrl_jax.algos.advantages import ScoredGroups, flat_groups, group_advantages
from pbrl_jax.config.algo import AlgoConfig
from pbrl_jax.core.masking import divide_or_zero, masked_count, masked_sum, where_valid


def estimate_opo(
    groups: ScoredGroups, value_BR: Float[Array, "B R"] | None = None, *, config: AlgoConfig
) -> tuple[Float[Array, "B"], None]:
    """Reward minus the group's mean weighted by length: the baseline of least gradient variance if every token's
    gradient is as long as any other's (OPO, Hao et al., 2025, arXiv 2505.23585). Nothing is scaled.
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
    """Reward minus the group's mean, times (rows / rows of groups with signal), so that groups whose rewards are all
    the same do not shrink the gradient of the others (GPG, Chu et al., 2025, arXiv 2504.02546).
    """
    reward_PG, valid_PG = groups.net_reward_PG, groups.valid_PG
    adv_PG = group_advantages(reward_PG, valid_PG, scale="none", epsilon=0.0)
    signal_PG = valid_PG & ~flat_groups(reward_PG, valid_PG)[:, None]
    rows, signal = (masked_count(rows, dtype=adv_PG.dtype) for rows in (valid_PG, signal_PG))
    return (adv_PG * rows / jnp.maximum(signal, 1)).reshape(-1), None
