"""Learning from pairs of responses: DPO (Rafailov et al., 2023, arXiv 2305.18290) and IPO (Azar et al., 2023, arXiv
2310.12036). With pairs ranked by how well a response agrees with an English reference it is MAPO's form (She et al.,
2024, arXiv 2401.06838)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pbrl_jax.config.supervised import DpoConfig


def preference_loss(
    chosen_P: Float[Array, "P"],
    rejected_P: Float[Array, "P"],
    ref_chosen_P: Float[Array, "P"],
    ref_rejected_P: Float[Array, "P"],
    *,
    config: DpoConfig,
) -> tuple[Float[Array, "P"], dict[str, Float[Array, ""]]]:
    """Loss of each pair, and metrics under TRL's names.

    With h = (chosen - ref_chosen) - (rejected - ref_rejected): `sigmoid` is -log sigmoid(beta h), `label_smoothing`
    of it with the pair turned round; `ipo` is (h - 1 / (2 beta))^2.

    Args:
      chosen_P, rejected_P: log-probs of whole responses (sums over their tokens) under the policy, with gradient.
      ref_chosen_P, ref_rejected_P: those under the reference.
    """
    gained_P, lost_P = chosen_P - ref_chosen_P, rejected_P - ref_rejected_P
    margin_P = gained_P - lost_P
    if config.loss_type == "ipo":
        loss_P = jnp.square(margin_P - 0.5 / config.beta)
    else:
        share = config.label_smoothing
        logit_P = config.beta * margin_P
        loss_P = -(1 - share) * jax.nn.log_sigmoid(logit_P) - share * jax.nn.log_sigmoid(-logit_P)
    metrics = {
        "rewards/chosen": config.beta * gained_P.mean(),
        "rewards/rejected": config.beta * lost_P.mean(),
        "rewards/margins": config.beta * margin_P.mean(),
        "rewards/accuracies": (margin_P > 0).astype(margin_P.dtype).mean(),
        "logps/chosen": chosen_P.mean(),
        "logps/rejected": rejected_P.mean(),
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
