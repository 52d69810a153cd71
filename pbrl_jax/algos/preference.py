"""Losses of pairs of responses: DPO (Rafailov et al., 2023, arXiv 2305.18290), IPO (Azar et al., 2023, arXiv
2310.12036) and others, with TRL's names and formulas. With pairs ranked by agreement with an English reference this is
MAPO (She et al., 2024, arXiv 2401.06838)."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pbrl_jax.config.supervised import DpoConfig
from pbrl_jax.core.errors import lookup


class PairGains(NamedTuple):
    """Log-ratios of policy and reference for both responses of each pair (sums over their tokens), and their numbers of
    tokens."""

    chosen_P: Float[Array, "P"]
    rejected_P: Float[Array, "P"]
    chosen_length_P: Int[Array, "P"]
    rejected_length_P: Int[Array, "P"]

    @property
    def margin_P(self) -> Float[Array, "P"]:
        return self.chosen_P - self.rejected_P

    @property
    def token_margin_P(self) -> Float[Array, "P"]:
        """The difference of the gains per token."""
        chosen_P = self.chosen_P / jnp.maximum(self.chosen_length_P, 1)
        return chosen_P - self.rejected_P / jnp.maximum(self.rejected_length_P, 1)


def _smoothed(logit_P, share: float):
    """-log sigmoid(logit), mixed with a share of the loss of the reversed pair."""
    return -(1 - share) * jax.nn.log_sigmoid(logit_P) - share * jax.nn.log_sigmoid(-logit_P)


def _robust(logit_P, share: float):
    kept_P, reversed_P = jax.nn.log_sigmoid(logit_P), jax.nn.log_sigmoid(-logit_P)
    return (share * reversed_P - (1 - share) * kept_P) / (1 - 2 * share)


def _nca_pair(chosen_P, rejected_P):
    lowered_P = jax.nn.log_sigmoid(-chosen_P) + jax.nn.log_sigmoid(-rejected_P)
    return -jax.nn.log_sigmoid(chosen_P) - 0.5 * lowered_P


#: dpo.loss_type -> loss [P] of gains and settings; see `preference_loss`.
PREFERENCE_LOSSES: dict[str, Callable[[PairGains, DpoConfig], jax.Array]] = {
    "sigmoid": lambda gains, dpo: _smoothed(dpo.beta * gains.margin_P, dpo.label_smoothing),
    "sigmoid_norm": lambda gains, dpo: -jax.nn.log_sigmoid(dpo.beta * gains.token_margin_P),
    "robust": lambda gains, dpo: _robust(dpo.beta * gains.margin_P, dpo.label_smoothing),
    "hinge": lambda gains, dpo: jax.nn.relu(1 - dpo.beta * gains.margin_P),
    "ipo": lambda gains, dpo: jnp.square(gains.token_margin_P - 0.5 / dpo.beta),
    "nca_pair": lambda gains, dpo: _nca_pair(dpo.beta * gains.chosen_P, dpo.beta * gains.rejected_P),
    "sppo_hard": lambda gains, dpo: (
        jnp.square(gains.chosen_P - 0.5 / dpo.beta) + jnp.square(gains.rejected_P + 0.5 / dpo.beta)
    ),
    "apo_zero": lambda gains, dpo: (
        jax.nn.sigmoid(-dpo.beta * gains.chosen_P) + jax.nn.sigmoid(dpo.beta * gains.rejected_P)
    ),
    "apo_down": lambda gains, dpo: (
        jax.nn.sigmoid(dpo.beta * gains.chosen_P) + jax.nn.sigmoid(-dpo.beta * gains.margin_P)
    ),
}


def preference_loss(
    logp_P2: Float[Array, "P 2"], ref_logp_P2: Float[Array, "P 2"], lengths_P2: Int[Array, "P 2"], *, config: DpoConfig
) -> tuple[Float[Array, "P"], dict[str, Float[Array, "P"]]]:
    """Loss of each pair, and metrics of each pair under TRL's names.

    With c and r the log-ratios of policy and reference for the chosen and the rejected response, h = c - r, and t the
    same difference of the log-ratios *per token*:

      sigmoid: -log sigmoid(beta h), with weight `label_smoothing` for the reversed pair (DPO; conservative DPO).
      sigmoid_norm: -log sigmoid(beta t) (DPO with log-probs per token).
      robust: DPO without the bias of reversed pairs (Chowdhury et al., 2024, arXiv 2403.00409).
      hinge: max(0, 1 - beta h) (SLiC, arXiv 2305.10425).
      ipo: (t - 1 / (2 beta))^2; per token, as in its authors' experiments and in TRL.
      nca_pair: -log sigmoid(beta c) - (log sigmoid(-beta c) + log sigmoid(-beta r)) / 2 (arXiv 2402.05369).
      sppo_hard: (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 (arXiv 2405.00675).
      apo_zero, apo_down: sums of sigmoids (arXiv 2408.06266, equations 7 and 8).

    Args:
      logp_P2: log-probs of responses (sums over their tokens) under the policy, with gradient: chosen, rejected.
      ref_logp_P2: those under the reference.
      lengths_P2: numbers of tokens of the responses.

    Raises:
      ConfigError: `config.loss_type` is not a name in PREFERENCE_LOSSES.
    """
    gains = PairGains(*(logp_P2 - ref_logp_P2).T, *lengths_P2.T)
    loss_P = lookup(PREFERENCE_LOSSES, config.loss_type, "value of dpo.loss_type")(gains, config)
    metrics = {
        "rewards/chosen": config.beta * gains.chosen_P,
        "rewards/rejected": config.beta * gains.rejected_P,
        "rewards/margins": config.beta * gains.margin_P,
        "rewards/accuracies": (gains.margin_P > 0).astype(gains.margin_P.dtype),
        "logps/chosen": logp_P2[:, 0],
        "logps/rejected": logp_P2[:, 1],
    }
    return loss_P, jax.lax.stop_gradient(metrics)


#: Rewards are float32 numbers, which miss a bound that they equal in decimals by less than this.
ROUNDING = 1e-6


def preferred_pairs(rewards: Sequence[float | None], *, pairs: str, min_margin: float) -> list[tuple[int, int]]:
    """(chosen, rejected) indices in a group, sorted by falling margin.

    Args:
      rewards: one per response; None is invalid and in no pair.
      pairs: `all` pairs whose rewards differ by at least min_margin, or only `best_worst`.
      min_margin: smallest difference, in the unit of the reward; equal rewards never form a pair.
    """
    valid = {i: value for i, value in enumerate(rewards) if value is not None}
    order = sorted(valid, key=lambda i: (-valid[i], i))
    matches = [
        (better, worse)
        for better, worse in itertools.combinations(order, 2)
        if valid[better] > valid[worse] and valid[better] - valid[worse] >= min_margin - ROUNDING
    ]
    matches.sort(key=lambda pair: valid[pair[1]] - valid[pair[0]])
    return matches[:1] if pairs == "best_worst" else matches
