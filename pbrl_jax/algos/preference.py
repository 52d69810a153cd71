"""Learning from pairs of responses: DPO (Rafailov et al., 2023, arXiv 2305.18290), IPO (Azar et al., 2023, arXiv
2310.12036) and their relatives, with TRL's names and formulas. With pairs ranked by how well a response agrees with an
English reference it is MAPO's form (She et al., 2024, arXiv 2401.06838)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pbrl_jax.config.supervised import DpoConfig
from pbrl_jax.core.errors import lookup


class PairGains(NamedTuple):
    """What the policy has gained over the reference on the two responses of each pair: the difference of the
    log-probs of whole responses (sums over their tokens), and the numbers of tokens."""

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
    """-log sigmoid(logit), `share` of it with the pair turned round."""
    return -(1 - share) * jax.nn.log_sigmoid(logit_P) - share * jax.nn.log_sigmoid(-logit_P)


def _sigmoid(gains: PairGains, config: DpoConfig):
    return _smoothed(config.beta * gains.margin_P, config.label_smoothing)


def _sigmoid_norm(gains: PairGains, config: DpoConfig):
    return -jax.nn.log_sigmoid(config.beta * gains.token_margin_P)


def _robust(gains: PairGains, config: DpoConfig):
    share, logit_P = config.label_smoothing, config.beta * gains.margin_P
    kept_P, turned_P = jax.nn.log_sigmoid(logit_P), jax.nn.log_sigmoid(-logit_P)
    return (share * turned_P - (1 - share) * kept_P) / (1 - 2 * share)


def _hinge(gains: PairGains, config: DpoConfig):
    return jax.nn.relu(1 - config.beta * gains.margin_P)


def _ipo(gains: PairGains, config: DpoConfig):
    return jnp.square(gains.token_margin_P - 0.5 / config.beta)


def _nca_pair(gains: PairGains, config: DpoConfig):
    chosen_P, rejected_P = config.beta * gains.chosen_P, config.beta * gains.rejected_P
    pushed_down = jax.nn.log_sigmoid(-chosen_P) + jax.nn.log_sigmoid(-rejected_P)
    return -jax.nn.log_sigmoid(chosen_P) - 0.5 * pushed_down


def _sppo_hard(gains: PairGains, config: DpoConfig):
    return jnp.square(gains.chosen_P - 0.5 / config.beta) + jnp.square(gains.rejected_P + 0.5 / config.beta)


def _apo_zero(gains: PairGains, config: DpoConfig):
    return jax.nn.sigmoid(-config.beta * gains.chosen_P) + jax.nn.sigmoid(config.beta * gains.rejected_P)


def _apo_down(gains: PairGains, config: DpoConfig):
    return jax.nn.sigmoid(config.beta * gains.chosen_P) + jax.nn.sigmoid(-config.beta * gains.margin_P)


PREFERENCE_LOSSES = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid_norm,
    "robust": _robust,
    "hinge": _hinge,
    "ipo": _ipo,
    "nca_pair": _nca_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
}


def preference_loss(
    logp_P2: Float[Array, "P 2"], ref_logp_P2: Float[Array, "P 2"], lengths_P2: Int[Array, "P 2"], *, config: DpoConfig
) -> tuple[Float[Array, "P"], dict[str, Float[Array, "P"]]]:
    """Loss of each pair, and metrics of each pair under TRL's names.

    With c and r the gains over the reference on the chosen and the rejected response, h = c - r, and t the difference
    of the gains *per token*:

      sigmoid: -log sigmoid(beta h), `label_smoothing` of it with the pair turned round (DPO; conservative DPO).
      sigmoid_norm: -log sigmoid(beta t) (DPO with log-probs per token).
      robust: DPO without the bias of pairs that are the wrong way round (Chowdhury et al., 2024, arXiv 2403.00409).
      hinge: max(0, 1 - beta h) (SLiC, arXiv 2305.10425).
      ipo: (t - 1 / (2 beta))^2; per token, as its authors ran it and as TRL computes it.
      nca_pair: -log sigmoid(beta c) - (log sigmoid(-beta c) + log sigmoid(-beta r)) / 2 (arXiv 2402.05369).
      sppo_hard: (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 (arXiv 2405.00675).
      apo_zero, apo_down: sigmoids of each gain (arXiv 2408.06266, equations 7 and 8).

    Args:
      logp_P2: log-probs of whole responses (sums over their tokens) under the policy, with gradient: chosen, rejected.
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


def preferred_pairs(rewards: Sequence[float | None], *, pairs: str, min_margin: float) -> list[tuple[int, int]]:
    """(chosen, rejected) places in a group, those with the widest margin first.

    Args:
      rewards: one per response; None is invalid and takes no part.
      pairs: `all` pairs whose rewards differ by at least min_margin, or only `best_worst`.
      min_margin: least difference, in the unit of the reward; equal rewards never make a pair.
    """
    valid = {i: value for i, value in enumerate(rewards) if value is not None}
    order = sorted(valid, key=lambda i: (-valid[i], i))
    found = [
        (better, worse)
        for place, better in enumerate(order)
        for worse in order[place + 1 :]
        if valid[better] > valid[worse] and valid[better] - valid[worse] >= min_margin
    ]
    found.sort(key=lambda pair: valid[pair[1]] - valid[pair[0]])
    return found[:1] if pairs == "best_worst" else found
