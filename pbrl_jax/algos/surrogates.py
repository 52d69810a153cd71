"""The per-token policy losses that `loss_type` names, and the importance ratios they are made of.

A surrogate is a function `(logp_BR, ratio_BR, adv_BR, config) -> (loss_BR, indicators)`; the indicators are the
per-token facts behind the clip metrics. What is summed, and divided by what, is `objectives.aggregate`'s business.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.algos.objectives import clipped_surrogate, importance_ratio
from pbrl_jax.config.tree import AlgoConfig
from pbrl_jax.core.errors import ConfigError, lookup
from pbrl_jax.core.masking import masked_mean


def _token_level(logp_BR, old_logp_BR, mask_BR):
    return importance_ratio(logp_BR, old_logp_BR)


def _sequence_level(logp_BR, old_logp_BR, mask_BR):
    gap_B1 = masked_mean(logp_BR - old_logp_BR, mask_BR, axis=1, keepdims=True)
    return jnp.broadcast_to(importance_ratio(gap_B1, jnp.zeros_like(gap_B1)), logp_BR.shape)


def _sequence_token_level(logp_BR, old_logp_BR, mask_BR):
    sequence_BR = jax.lax.stop_gradient(_sequence_level(logp_BR, old_logp_BR, mask_BR))
    return sequence_BR * jnp.exp(logp_BR - jax.lax.stop_gradient(logp_BR))


LEVELS = {"token": _token_level, "sequence": _sequence_level, "sequence_token": _sequence_token_level}


def ratio_at_level(
    logp_BR: Float[Array, "B R"], old_logp_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], level: str
) -> Float[Array, "B R"]:
    """Importance ratio of every token.

      token: p / p_old of the token itself.
      sequence: the geometric mean of a row's token ratios, the same for all its tokens (GSPO, Zheng et al., 2025,
        arXiv 2507.18071).
      sequence_token: that value, with the gradient of each token's own log-prob (GSPO-token, same paper). With one
        advantage per row it has the gradient of `sequence`; advantages may then differ between tokens.

    Args:
      logp_BR, old_logp_BR: log-probs, masked entries replaced before (`where_valid`).
      mask_BR: tokens that count.
      level: a name in LEVELS. Log-ratios are clamped to +-20 before the exp.

    Raises:
      ConfigError: `level` is not a name in LEVELS.
    """
    return lookup(LEVELS, level, "value of algo.importance_sampling_level")(logp_BR, old_logp_BR, mask_BR)


def clipped(logp_BR, ratio_BR, adv_BR, config: AlgoConfig):
    """PPO's clip with clip-higher; `delta` also bounds the ratio where the advantage is negative.

    Without `delta` a ratio that has grown large on a bad token weighs as much as it has grown: two-sided clipping
    (INTELLECT-2, arXiv 2505.07291) and dual clip (Ye et al., 2020, arXiv 1912.09729) are the same bound under two
    names, since `delta` lies above 1 + epsilon_high.
    """
    if config.delta is not None:
        ratio_BR = jnp.where(ratio_BR > config.delta, config.delta, ratio_BR)
    tokens = clipped_surrogate(ratio_BR, adv_BR, epsilon=config.epsilon, epsilon_high=config.epsilon_high)
    return tokens.loss, {
        "clip_ratio/low_mean": tokens.low_clipped,
        "clip_ratio/high_mean": tokens.high_clipped,
        "clip_ratio/region_mean": tokens.low_clipped | tokens.high_clipped,
    }


def cispo(logp_BR, ratio_BR, adv_BR, config: AlgoConfig):
    """Log-prob times advantage times the ratio, bounded by `epsilon_high` itself and without gradient.

    CISPO (MiniMax-M1, arXiv 2506.13585): no token loses its gradient. As in TRL `epsilon_high` is the
    bound, not its distance from 1, and there is no lower one.
    """
    if config.epsilon_high is None:
        raise ConfigError(
            "algo.loss_type cispo needs algo.epsilon_high, the largest ratio itself (not 1 + it), and it is None. "
            "Use --algo.epsilon-high 5.0."
        )
    weight_BR = jax.lax.stop_gradient(jnp.minimum(ratio_BR, config.epsilon_high))
    indicators = {"cispo_clip_ratio": (ratio_BR > config.epsilon_high) & (adv_BR > 0)}
    return -weight_BR * adv_BR * logp_BR, indicators


def sapo(logp_BR, ratio_BR, adv_BR, config: AlgoConfig):
    """A sigmoid gate in place of the clip: gradients fade as the ratio leaves 1 (SAPO, arXiv 2511.20347).

    The gate is 4 / t * sigmoid(t * (ratio - 1)), whose slope at ratio 1 is 1; t is `sapo_temperature_pos` where the
    advantage is positive and `sapo_temperature_neg` elsewhere.
    """
    t_BR = jnp.where(adv_BR > 0, config.sapo_temperature_pos, config.sapo_temperature_neg).astype(ratio_BR.dtype)
    return -4 / t_BR * jax.nn.sigmoid(t_BR * (ratio_BR - 1)) * adv_BR, {}


def policy_gradient(logp_BR, ratio_BR, adv_BR, config: AlgoConfig):
    """-log-prob times advantage, without any ratio (GPG, arXiv 2504.02546, and plain REINFORCE)."""
    return -adv_BR * logp_BR, {}


#: loss_type -> surrogate. How each aggregates stands in `objectives.AGGREGATIONS`.
SURROGATES = {
    "grpo": clipped,
    "bnpo": clipped,
    "dr_grpo": clipped,
    "dapo": clipped,
    "cispo": cispo,
    "sapo": sapo,
    "gpg": policy_gradient,
}
