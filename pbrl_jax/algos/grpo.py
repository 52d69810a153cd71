"""The policy loss of all algorithms, and GRPO's advantages.

Shao et al., 2024 (arXiv 2402.03300), equations 3 and 4, with the variants of `AlgoConfig`. One function computes every
loss: a ratio (`importance_sampling_level`), a surrogate and its aggregation (`loss_type`), the clip's bounds
(`epsilon`, `epsilon_high`, `delta`), a weight between sampler and trainer, an entropy bonus, and the KL. RLOO
(`leave_one_out`, `scale_rewards none`), Dr. GRPO (`loss_type dr_grpo`, `scale_rewards none`), DAPO (`loss_type dapo`,
`epsilon_high 0.28`, `mask_truncated_completions`, `mask_zero_std_groups`) and GSPO (`importance_sampling_level
sequence`) are combinations of settings. All switches are Python values: disabled terms are not compiled.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.algos.advantages import SCALES, ScoredGroups, group_advantages, normalize_then_sum
from pbrl_jax.algos.losses import LOSSES, aggregate
from pbrl_jax.algos.objectives import kl_estimate, ratio_at_level
from pbrl_jax.config.algo import AlgoConfig
from pbrl_jax.config.fields import identity, settings_of
from pbrl_jax.core.errors import ConfigError, lookup
from pbrl_jax.core.masking import masked_count, masked_sum, where_valid

Pair = tuple[Float[Array, ""], Float[Array, ""]]


@dataclass(frozen=True)
class GrpoConfig(AlgoConfig):
    """Settings of GRPO's advantages."""

    scale_rewards: str = identity("group", names=SCALES)
    """Divisor of advantages: the standard deviation of the group, of the batch, or none."""
    min_reward_std: float = identity(0.0, at_least=0, only_with=("scale_rewards",))
    """Lower bound of that standard deviation; keeps groups of nearly equal rewards from amplifying noise."""
    leave_one_out: bool = identity(False)
    """Use the mean of the other samples (RLOO) as the baseline, instead of the group mean."""
    advantage_epsilon: float = identity(1e-4, at_least=0, only_with=("scale_rewards",))
    """Added to the standard deviation."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = identity("sum_then_normalize")
    """Several rewards: sum_then_normalize, or normalize_then_sum (GDPO: each is scaled within its groups first)."""


def estimate(
    groups: ScoredGroups, value_BR: Float[Array, "B R"] | None = None, *, config: GrpoConfig
) -> tuple[Float[Array, "B"], None]:
    """`group_advantages` or `normalize_then_sum`, with the settings of `config`.

    The sum of a row's penalties (the KL in the reward) is subtracted from its reward first.
    """
    if config.multi_objective_aggregation == "normalize_then_sum":
        if groups.rewards_PGF is None or groups.weights_F is None:
            raise ValueError("normalize_then_sum needs the rewards of each function and their weights.")
        adv_PG = normalize_then_sum(
            *groups.by_function, groups.weights_F, epsilon=config.advantage_epsilon, floor=config.min_reward_std
        )
        return adv_PG.reshape(-1), None
    adv_PG = group_advantages(
        groups.net_reward_PG, groups.valid_PG, scale=config.scale_rewards, epsilon=config.advantage_epsilon,
        leave_one_out=config.leave_one_out, floor=config.min_reward_std,
    )  # fmt: skip
    return adv_PG.reshape(-1), None


def scales_rewards_separately(config: AlgoConfig) -> bool:
    """Whether each reward function is scaled within its groups before the rewards are summed."""
    return settings_of(config, GrpoConfig).multi_objective_aggregation == "normalize_then_sum"


def check_scaling(config: GrpoConfig) -> None:
    """Raise ConfigError for settings that normalize_then_sum replaces."""
    alone = config.scale_rewards == "group" and not config.leave_one_out and config.kl_in == "loss"
    if config.multi_objective_aggregation == "normalize_then_sum" and not alone:
        raise ConfigError(
            "algo.multi_objective_aggregation normalize_then_sum scales rewards by itself. Use it with scale_rewards "
            "group, no leave_one_out and kl_in loss."
        )


def policy_loss(
    logp_BR: Float[Array, "B R"],
    old_logp_BR: Float[Array, "B R"],
    adv_B: Float[Array, "B"] | Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    config: AlgoConfig,
    ref_logp_BR: Float[Array, "B R"] | None = None,
    max_completion_length: int | None = None,
    count_masked_rows: bool = False,
    weight_BR: Float[Array, "B R"] | None = None,
    entropy_BR: Float[Array, "B R"] | None = None,
    beta: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Pair]]:
    """Surrogate plus beta times the KL estimate (with `kl_in` loss) minus the entropy bonus, as a sum and a count.

    The loss is sum / count; add both over microbatches and hosts, then divide once. Differentiate the sum.

    Args:
      logp_BR: log-probs of the sampled tokens under the policy being trained; it (and `entropy_BR`) has a gradient.
      old_logp_BR: those under the parameters that sampled; on-policy `jax.lax.stop_gradient(logp_BR)`.
      adv_B: advantage of each row, or [B, R] of each token.
      mask_BR: tokens that count, all False in rows that are left out. Values of the other arrays outside it, NaN and
        infinity included, affect neither value nor gradient.
      ref_logp_BR: those under the reference; needed if the loss has a KL term, else only for the metric.
      max_completion_length: the constant of loss_type dr_grpo, in tokens: the configured length; default R.
      count_masked_rows: see `losses.aggregate`.
      weight_BR: weights of the surrogate's tokens, without gradient (`correction.sampler_weights`).
      entropy_BR: entropy of the policy at each token, for `entropy_coef`; the bonus is aggregated like the loss.
      beta: the KL weight of this step if it is adaptive; default `config.beta`.

    Returns:
      sum, count: float scalars.
      metrics: name -> (numerator, denominator), both to be added like sum and count, without gradient, under TRL's
        names. `clip_ratio/*` and `cispo_clip_ratio` are shares of tokens, or of rows with a ratio per row; `kl` (with a
        reference) is the mean estimate per token, times the ratio with `use_bias_correction_kl`.

    Raises:
      ConfigError: unknown names; beta without reference log-probs, a bonus without entropies; shapes that do not fit.
    """
    _check(config, logp_BR, old_logp_BR, adv_B, mask_BR, ref_logp_BR, weight_BR, entropy_BR)
    logp_BR = where_valid(logp_BR, mask_BR)
    ratio_BR = ratio_at_level(logp_BR, where_valid(old_logp_BR, mask_BR), mask_BR, config.importance_sampling_level)
    surrogate = lookup(LOSSES, config.loss_type, "value of algo.loss_type").surrogate
    loss_BR, indicators = surrogate(logp_BR, ratio_BR, _token_advantages(adv_B, mask_BR), config)
    metrics = _indicator_metrics(indicators, mask_BR, config, loss_BR.dtype)
    loss_BR = loss_BR if weight_BR is None else loss_BR * where_valid(weight_BR, mask_BR)
    if ref_logp_BR is not None:
        kl_BR = kl_estimate(logp_BR, where_valid(ref_logp_BR, mask_BR), config.kl_estimator)
        kl_BR = ratio_BR * kl_BR if config.use_bias_correction_kl else kl_BR
        if config.beta != 0 and config.kl_in == "loss":
            loss_BR = loss_BR + (config.beta if beta is None else beta) * kl_BR
        metrics["kl"] = _token_pair(kl_BR, mask_BR, loss_BR.dtype)
    if config.entropy_coef != 0 and entropy_BR is not None:
        loss_BR = loss_BR - config.entropy_coef * where_valid(entropy_BR, mask_BR)
    total, count = aggregate(
        loss_BR, mask_BR, loss_type=config.loss_type, count_masked_rows=count_masked_rows,
        max_completion_length=max_completion_length or logp_BR.shape[1],
    )  # fmt: skip
    return total, count, jax.lax.stop_gradient(metrics)


def _token_advantages(adv, mask_BR):
    """Advantages of tokens, 0 outside the mask; those of a row [B] are only 0 if the whole row is outside."""
    if adv.ndim == 2:
        return where_valid(adv, mask_BR)
    return jnp.broadcast_to(where_valid(adv, mask_BR.any(axis=1))[:, None], mask_BR.shape)


def _token_pair(values_BR, mask_BR, dtype) -> Pair:
    return masked_sum(values_BR.astype(dtype), mask_BR), masked_count(mask_BR, dtype=dtype)


def _indicator_metrics(indicators, mask_BR, config: AlgoConfig, dtype) -> dict[str, Pair]:
    """Shares of tokens, or of rows with a ratio per row."""
    if config.importance_sampling_level == "token":
        return {name: _token_pair(values, mask_BR, dtype) for name, values in indicators.items()}
    rows = masked_count(mask_BR.any(axis=1), dtype=dtype)
    return {
        name: (masked_count((values & mask_BR).any(axis=1), dtype=dtype), rows) for name, values in indicators.items()
    }


def _check(config: AlgoConfig, logp_BR, old_logp_BR, adv, mask_BR, ref_logp_BR, weight_BR, entropy_BR) -> None:
    """Raise ConfigError for shapes that would broadcast, and for missing inputs of configured terms."""
    if config.beta != 0 and config.kl_in == "loss" and ref_logp_BR is None:
        raise ConfigError(
            f"algo.beta is {config.beta}, which needs the reference's log-probs, but ref_logp_BR is None. "
            "Pass ref_logp_BR, or set --algo.beta 0."
        )
    if config.entropy_coef != 0 and entropy_BR is None:
        raise ConfigError(
            f"algo.entropy_coef is {config.entropy_coef}, which needs entropies, but entropy_BR is None. "
            "Pass entropy_BR, or set --algo.entropy-coef 0."
        )
    arrays = {
        "logp_BR": logp_BR, "old_logp_BR": old_logp_BR, "mask_BR": mask_BR, "ref_logp_BR": ref_logp_BR,
        "weight_BR": weight_BR, "entropy_BR": entropy_BR,
    }  # fmt: skip
    shapes = {name: array.shape for name, array in arrays.items() if array is not None}
    if logp_BR.ndim != 2 or len(set(shapes.values())) != 1 or adv.shape not in (logp_BR.shape[:1], logp_BR.shape):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ConfigError(
            f"policy_loss got {listed}, adv_B {adv.shape}; expected one shape (B, R) for all and (B,) or (B, R) for "
            "adv_B. Pass advantages of groups [P, G] as adv_PG.reshape(-1)."
        )
    if mask_BR.dtype != bool:
        raise ConfigError(f"policy_loss got a mask of {mask_BR.dtype}; expected bool. Pass `mask_BR > 0`.")
