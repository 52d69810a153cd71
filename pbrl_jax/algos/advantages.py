"""Advantages of groups of samples: how much better a response is than the others to the same prompt.

Group-relative advantages are those of GRPO (Shao et al., 2024, arXiv 2402.03300, section 4.1.2). The conventions are
TRL's: unbiased spread (divisor n - 1), epsilon added to the spread and not under the root, and rows that could not be
scored left out of mean and spread.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.core.errors import lookup
from pbrl_jax.core.masking import divide_or_zero, masked_count, masked_mean, masked_range, masked_std, where_valid
from pbrl_jax.core.records import pytree

#: Rewards of a group that lie within this of each other count as all the same (TRL compares the spread with 1e-8).
SAME_REWARD = 1e-8


@pytree
class ScoredGroups:
    """P groups of G responses as an algorithm sees them, B = P * G.

    `reward_PG` is anything where `valid_PG` is false. `mask_BR` marks the tokens that count. `penalty_BR` is taken off
    the tokens' rewards (`returns.kl_penalty`), where the KL is in the reward. `rewards_PGF` are the rewards of F
    functions apart, NaN where one could not score a row, and `weights_F` their weights; only where they are scaled
    before they are summed.
    """

    reward_PG: Float[Array, "P G"]
    valid_PG: Bool[Array, "P G"]
    mask_BR: Bool[Array, "B R"]
    penalty_BR: Float[Array, "B R"] | None = None
    rewards_PGF: Float[Array, "P G F"] | None = None
    weights_F: Float[Array, "F"] | None = None

    @property
    def net_reward_PG(self) -> Float[Array, "P G"]:
        """Rewards of rows minus the sum of their tokens' penalties, where there are any."""
        if self.penalty_BR is None:
            return self.reward_PG
        return self.reward_PG - self.penalty_BR.sum(axis=1).reshape(self.reward_PG.shape)


def group_spread(reward_PG: Float[Array, "P G"], valid_PG: Bool[Array, "P G"]) -> Float[Array, "P 1"]:
    """Unbiased standard deviation within each group."""
    return masked_std(reward_PG, valid_PG, axis=1, keepdims=True, ddof=1)


def batch_spread(reward_PG: Float[Array, "P G"], valid_PG: Bool[Array, "P G"]) -> Float[Array, "1 1"]:
    """Unbiased standard deviation of all valid rewards, whatever their group."""
    return masked_std(reward_PG, valid_PG, keepdims=True, ddof=1)


#: What `scale` names: the spread that an advantage is divided by. None divides by nothing (Dr. GRPO).
SCALES = {"group": group_spread, "batch": batch_spread, "none": None}


def flat_groups(reward_PG: Float[Array, "P G"], valid_PG: Bool[Array, "P G"]) -> Bool[Array, "P"]:
    """Which groups carry no signal because their valid rewards are all the same (or there is at most one)."""
    return masked_range(reward_PG, valid_PG, axis=1) <= SAME_REWARD


def group_advantages(
    reward_PG: Float[Array, "P G"],
    valid_PG: Bool[Array, "P G"],
    *,
    scale: str,
    epsilon: float,
    leave_one_out: bool = False,
    floor: float = 0.0,
) -> Float[Array, "P G"]:
    """Reward minus the group's baseline, over a spread.

    Args:
      reward_PG: one reward per sample; anything where invalid, NaN included.
      valid_PG: which rewards could be computed. Invalid rows leave mean and spread and get advantage 0.
      scale: `group` divides by the spread of the row's group, `batch` by the spread over all valid rewards, `none`
        by nothing (Liu et al., 2025, arXiv 2503.20783).
      epsilon: added to the spread. With TRL's 1e-4 a group whose rewards differ by noise alone is blown up to unit
        spread; a value near the noise of the reward keeps it small.
      leave_one_out: the baseline is the mean of the *other* valid samples (RLOO, Ahmadian et al., 2024,
        arXiv 2402.14740): n / (n - 1) times the deviation from the group's mean. The spread stays that of all.
      floor: the least spread to divide by, in the unit of the reward: groups that differ by less are not blown up.

    Returns:
      Advantages, 0 in rows that are invalid, in groups with fewer than two valid rows, and (exactly, rounding errors
      are not amplified) in groups whose rewards are all the same. A reward that is not finite although it is marked
      valid makes its group's advantages not finite, so that the update is skipped and counted instead of being wrong.

    Raises:
      ConfigError: `scale` is not a name in SCALES.
    """
    spread = lookup(SCALES, scale, "value of algo.scale_rewards")
    adv_PG = where_valid(reward_PG, valid_PG) - masked_mean(reward_PG, valid_PG, axis=1, keepdims=True)
    if leave_one_out:
        count_P1 = masked_count(valid_PG, axis=1, keepdims=True, dtype=adv_PG.dtype)
        adv_PG = adv_PG * divide_or_zero(count_P1, jnp.maximum(count_P1 - 1, 0))
    if spread is not None:
        width = spread(reward_PG, valid_PG)
        adv_PG = adv_PG / ((jnp.maximum(width, floor) if floor else width) + epsilon)
    return where_valid(adv_PG, valid_PG & ~flat_groups(reward_PG, valid_PG)[:, None])


def normalize_then_sum(
    reward_FPG: Float[Array, "F P G"],
    valid_FPG: Bool[Array, "F P G"],
    weights_F: Float[Array, "F"],
    *,
    epsilon: float,
    floor: float = 0.0,
) -> Float[Array, "P G"]:
    """Advantages of F reward functions, each scaled within its groups before they are weighted and added (GDPO).

    Summed first, the function with the widest spread drowns the others; here each weighs what its weight says (Liu
    et al., 2026, arXiv 2601.05242; TRL's `multi_objective_aggregation: normalize_then_sum`). The sum is centred and
    scaled once more over the whole batch.

    Args:
      reward_FPG: rewards by function; anything where invalid.
      valid_FPG: a row that one function could not score takes part with the others; one without any gets 0.
      weights_F: weight of each function.
      epsilon, floor: see `group_advantages`; the floor is that of each function's groups.
    """
    parts_FPG = jax.vmap(
        lambda reward, valid: group_advantages(reward, valid, scale="group", epsilon=epsilon, floor=floor)
    )(reward_FPG, valid_FPG)
    value_PG, valid_PG = (parts_FPG * weights_F[:, None, None]).sum(axis=0), valid_FPG.any(axis=0)
    spread_11 = batch_spread(value_PG, valid_PG)
    return where_valid((value_PG - masked_mean(value_PG, valid_PG)) / (spread_11 + epsilon), valid_PG)


def zero_std_share(reward_PG: Float[Array, "P G"], valid_PG: Bool[Array, "P G"]) -> Float[Array, ""]:
    """Share in [0, 1] of the groups without spread, among the groups that have at least two valid rewards; groups of
    one response never have a spread, and count."""
    comparable_P = masked_count(valid_PG, axis=1) >= min(2, reward_PG.shape[1])
    return masked_mean(flat_groups(reward_PG, valid_PG).astype(reward_PG.dtype), comparable_P)


def group_metrics(reward_PG: Float[Array, "P G"], valid_PG: Bool[Array, "P G"]) -> dict[str, Float[Array, ""]]:
    """TRL's reward metrics over the valid rows of a whole batch; a spread is no sum, so do not add them over parts.

    `reward` and `reward_std` are the mean and the unbiased standard deviation over all valid rows together, as in
    TRL 1.16 (older versions averaged the groups' spreads); `frac_reward_zero_std` is `zero_std_share`.
    """
    return {
        "reward": masked_mean(reward_PG, valid_PG),
        "reward_std": masked_std(reward_PG, valid_PG, ddof=1),
        "frac_reward_zero_std": zero_std_share(reward_PG, valid_PG),
    }
