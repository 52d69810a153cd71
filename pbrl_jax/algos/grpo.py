"""GRPO: group-relative advantages with a clipped surrogate and the KL to a reference in the loss.

Shao et al., 2024 (arXiv 2402.03300), equations 3 and 4, with the variants that `AlgoConfig` names: clip-higher, four
aggregations, three KL estimators, leave-one-out baselines. RLOO and Dr. GRPO are settings of it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.algos.advantages import group_advantages
from pbrl_jax.algos.objectives import aggregate, clipped_surrogate, importance_ratio, kl_estimate
from pbrl_jax.core.config import AlgoConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.masking import masked_count, masked_sum, where_valid

Pair = tuple[Float[Array, ""], Float[Array, ""]]


def advantages(
    reward_PG: Float[Array, "P G"], valid_PG: Bool[Array, "P G"], *, config: AlgoConfig
) -> Float[Array, "P G"]:
    """`group_advantages` with the scale, epsilon and baseline of `config`."""
    return group_advantages(
        reward_PG,
        valid_PG,
        scale=config.scale_rewards,
        epsilon=config.advantage_epsilon,
        leave_one_out=config.leave_one_out,
    )


def policy_loss(
    logp_BR: Float[Array, "B R"],
    old_logp_BR: Float[Array, "B R"],
    adv_B: Float[Array, "B"],
    mask_BR: Bool[Array, "B R"],
    *,
    config: AlgoConfig,
    ref_logp_BR: Float[Array, "B R"] | None = None,
    max_completion_length: int | None = None,
    count_masked_rows: bool = False,
) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Pair]]:
    """Clipped surrogate plus beta times the KL estimate, as a sum and a count.

    The loss is sum / count; add both over microbatches and hosts before the one division. Differentiate the sum: the
    count carries no gradient. The KL term enters here, once, and nowhere else.

    Args:
      logp_BR: log-probs of the sampled tokens under the policy being trained; gradients flow through it alone.
      old_logp_BR: those under the policy that sampled. On-policy pass `jax.lax.stop_gradient(logp_BR)`, or the
        sampler's own log-probs.
      adv_B: advantage of each row.
      mask_BR: tokens that count: from lengths, all False in rows that are invalid or left out. What the other arrays
        hold outside it, NaN and infinity included, reaches neither value nor gradient.
      config: `loss_type, epsilon, epsilon_high, beta, kl_estimator, use_bias_correction_kl` are read.
      ref_logp_BR: log-probs under the reference; needed where beta is not 0. Given with beta 0 it is only logged.
      max_completion_length: the constant of loss_type dr_grpo, in tokens; default R. Pass the configured length where
        R is a shorter bucket or a packed length.
      count_masked_rows: see `objectives.aggregate`.

    Returns:
      sum, count: float scalars.
      metrics: name -> (numerator, denominator), both to be added like sum and count, without gradient. TRL's names:
        `clip_ratio/low_mean`, `clip_ratio/high_mean`, `clip_ratio/region_mean` are shares of tokens; `kl` (where a
        reference is given) is the mean estimate per token, times the ratio under `use_bias_correction_kl`.

    Raises:
      ConfigError: unknown loss_type or kl_estimator; beta without reference log-probs; shapes that do not fit.
    """
    _check(logp_BR, old_logp_BR, adv_B, mask_BR, ref_logp_BR, config)
    logp_BR = where_valid(logp_BR, mask_BR)
    ratio_BR = importance_ratio(logp_BR, where_valid(old_logp_BR, mask_BR))
    loss_BR, per_token = _surrogate(ratio_BR, where_valid(adv_B, mask_BR.any(axis=1)), config)
    if ref_logp_BR is not None:
        kl_BR = kl_estimate(logp_BR, where_valid(ref_logp_BR, mask_BR), config.kl_estimator)
        if config.use_bias_correction_kl:
            kl_BR = ratio_BR * kl_BR
        if config.beta != 0:
            loss_BR = loss_BR + config.beta * kl_BR
        per_token["kl"] = kl_BR
    total, count = aggregate(
        loss_BR,
        mask_BR,
        loss_type=config.loss_type,
        max_completion_length=logp_BR.shape[1] if max_completion_length is None else max_completion_length,
        count_masked_rows=count_masked_rows,
    )
    tokens = masked_count(mask_BR, dtype=total.dtype)
    metrics = {name: (masked_sum(values.astype(total.dtype), mask_BR), tokens) for name, values in per_token.items()}
    return total, count, jax.lax.stop_gradient(metrics)


def _surrogate(ratio_BR, adv_B, config: AlgoConfig):
    """Per-token loss without the KL, and the per-token indicators behind TRL's clip metrics."""
    adv_BR = jnp.broadcast_to(adv_B[:, None], ratio_BR.shape)
    tokens = clipped_surrogate(ratio_BR, adv_BR, epsilon=config.epsilon, epsilon_high=config.epsilon_high)
    return tokens.loss, {
        "clip_ratio/low_mean": tokens.low_clipped,
        "clip_ratio/high_mean": tokens.high_clipped,
        "clip_ratio/region_mean": tokens.low_clipped | tokens.high_clipped,
    }


def _check(logp_BR, old_logp_BR, adv_B, mask_BR, ref_logp_BR, config: AlgoConfig) -> None:
    """Refuse what would broadcast, or train without the KL that was asked for, in silence."""
    if config.beta != 0 and ref_logp_BR is None:
        raise ConfigError(
            f"algo.beta is {config.beta}, which needs the reference's log-probs, but ref_logp_BR is None. "
            "Pass ref_logp_BR, or set --algo.beta 0."
        )
    found = {"logp_BR": logp_BR, "old_logp_BR": old_logp_BR, "mask_BR": mask_BR, "ref_logp_BR": ref_logp_BR}
    found = {name: array.shape for name, array in found.items() if array is not None}
    if logp_BR.ndim != 2 or len(set(found.values())) != 1 or adv_B.shape != logp_BR.shape[:1]:
        shapes = ", ".join(f"{name} {shape}" for name, shape in found.items())
        raise ConfigError(
            f"policy_loss got {shapes}, adv_B {adv_B.shape}; expected one shape (B, R) for all and (B,) for adv_B. "
            "Advantages of groups [P, G] are passed as adv_PG.reshape(-1)."
        )
    if mask_BR.dtype != bool:
        raise ConfigError(f"policy_loss got a mask of {mask_BR.dtype}; expected bool. Pass `mask_BR > 0`.")
