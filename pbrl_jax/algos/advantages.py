"""Advantages of groups of samples: how much better a response is than the others to the same prompt.

Group-relative advantages are those of GRPO (Shao et al., 2024, arXiv 2402.03300, section 4.1.2). The conventions are
TRL's: unbiased standard deviation (divisor n - 1) plus epsilon, and rows without a score are left out of mean and
standard deviation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.core.errors import lookup
from pbrl_jax.core.masking import divide_or_zero, masked_count, masked_mean, masked_range, masked_std, where_valid
from pbrl_jax.core.records import pytree

#: Rewards of a group with at most this range count as equal (TRL compares the standard deviation with 1e-8).
SAME_REWARD = 1e-8


@pytree
class ScoredGroups:
    """Rewards of P groups of G responses, the input of algorithms; B = P * G.

    `reward_PG` is ignored where `valid_PG` is false. `mask_BR` marks the tokens that count. `penalty_BR` is subtracted
    from the tokens' rewards (`returns.kl_penalty`) if the KL is in the reward. `rewards_PGF` are the separate rewards
    of F functions, NaN where one could not score a row, and `weights_F` their weights; given only if they are scaled
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
        """Rewards of rows minus the sums of their tokens' penalties."""
        if self.penalty_BR is None:
            return self.reward_PG
        return self.reward_PG - self.penalty_BR.sum(axis=1).reshape(self.reward_PG.shape)

    @property
    def by_function(self) -> tuple[Float[Array, "F P G"], Bool[Array, "F P G"]]:
        """The separate rewards of each function, and which of them count; of the sum alone where none are given."""
        if self.rewards_PGF is None:
            return self.reward_PG[None], self.valid_PG[None]
        reward_FPG = jnp.moveaxis(self.rewards_PGF, -1, 0)
        return reward_FPG, ~jnp.isnan(reward_FPG) & self.valid_PG[None]

    @property
    def flat_P(self) -> Bool[Array, "P"]:
        """Groups without a training signal: `flat_groups`, of every function where they are scaled apart."""
        return jax.vmap(flat_groups)(*self.by_function).all(axis=0)


#: `scale` -> the axis of the unbiased standard deviation that advantages are divided by: within each group, or of all
#: valid rewards of the batch; "none" does not divide (Dr. GRPO).
SCALES = {"group": 1, "batch": None, "none": ()}


def flat_groups(reward_PG: Float[Array, "P G"], valid_PG: Bool[Array, "P G"]) -> Bool[Array, "P"]:
    """Groups without a training signal: their valid rewards are all equal, or there is at most one."""
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
    """Reward minus the group's baseline, divided by a standard deviation.

    Args:
      reward_PG: one reward per sample; ignored where invalid, also NaN.
      valid_PG: rows with a reward. Invalid rows are left out of mean and standard deviation and get advantage 0.
      scale: `group` divides by the standard deviation of the row's group, `batch` by that of all valid rewards, `none`
        does not divide (Liu et al., 2025, arXiv 2503.20783).
      epsilon: added to the standard deviation. With TRL's 1e-4 rewards that differ only by noise are scaled to unit
        variance; a value near the noise of the reward avoids that.
      leave_one_out: the baseline is the mean of the *other* valid samples (RLOO, Ahmadian et al., 2024,
        arXiv 2402.14740): n / (n - 1) times the deviation from the group's mean. The divisor does not change.
      floor: lower bound of the divisor, in the unit of the reward.

    Returns:
      Advantages; exactly 0 in invalid rows, in groups with fewer than two valid rows, and in groups with equal rewards.
      A valid reward that is not finite makes its group's advantages not finite, so that the update is skipped and
      counted.

    Raises:
      ConfigError: `scale` is not a name in SCALES.
    """
    axis = lookup(SCALES, scale, "value of algo.scale_rewards")
    adv_PG = where_valid(reward_PG, valid_PG) - masked_mean(reward_PG, valid_PG, axis=1, keepdims=True)
    if leave_one_out:
        count_P1 = masked_count(valid_PG, axis=1, keepdims=True, dtype=adv_PG.dtype)
        adv_PG = adv_PG * divide_or_zero(count_P1, jnp.maximum(count_P1 - 1, 0))
    if axis != ():
        std = masked_std(reward_PG, valid_PG, axis=axis, keepdims=True, ddof=1)
        adv_PG = adv_PG / ((jnp.maximum(std, floor) if floor else std) + epsilon)
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

    If rewards are summed first, the function with the largest standard deviation dominates; here only the weights
    decide (Liu et al., 2026, arXiv 2601.05242; TRL's `multi_objective_aggregation: normalize_then_sum`). The sum is
    centred and scaled again over the whole batch, and exactly 0 where it is the same everywhere.

    Args:
      reward_FPG: rewards by function; ignored where invalid.
      valid_FPG: a row that some functions could not score has the sum of the others, or 0 without any.
      weights_F: weight of each function.
      epsilon, floor: see `group_advantages`; the floor applies to each function's groups.
    """
    parts_FPG = jax.vmap(
        lambda reward, valid: group_advantages(reward, valid, scale="group", epsilon=epsilon, floor=floor)
    )(reward_FPG, valid_FPG)
    value_PG, valid_PG = (parts_FPG * weights_F[:, None, None]).sum(axis=0), valid_FPG.any(axis=0)
    adv_PG = (value_PG - masked_mean(value_PG, valid_PG)) / (masked_std(value_PG, valid_PG, ddof=1) + epsilon)
    return where_valid(adv_PG, valid_PG & ~(masked_range(value_PG, valid_PG) <= SAME_REWARD))


def zero_std_share(reward_PG: Float[Array, "P G"], valid_PG: Bool[Array, "P G"]) -> Float[Array, ""]:
    """Share in [0, 1] of flat groups among those with at least two valid rewards. With one response per group every
    valid group is flat and counts."""
    comparable_P = masked_count(valid_PG, axis=1) >= min(2, reward_PG.shape[1])
    return masked_mean(flat_groups(reward_PG, valid_PG).astype(reward_PG.dtype), comparable_P)


def group_metrics(reward_PG: Float[Array, "P G"], valid_PG: Bool[Array, "P G"]) -> dict[str, Float[Array, ""]]:
    """TRL's reward metrics over the valid rows of a whole batch, which cannot be added over parts of it.

    `reward` and `reward_std` are the mean and the unbiased standard deviation over all valid rows, as in TRL 1.16
    (older versions averaged the groups' standard deviations); `frac_reward_zero_std` is `zero_std_share`.
    """
    return {
        "reward": masked_mean(reward_PG, valid_PG),
        "reward_std": masked_std(reward_PG, valid_PG, ddof=1),
        "frac_reward_zero_std": zero_std_share(reward_PG, valid_PG),
    }
