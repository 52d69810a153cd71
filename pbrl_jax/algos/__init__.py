"""Algorithms: maths on arrays, without models or text.

A new member of the family is a function with the signature of `grpo.advantages` and one line in ALGORITHMS; another
loss is a function in `surrogates.py` and one line in its table.
"""

from collections.abc import Callable
from typing import NamedTuple

from pbrl_jax.algos import baselines, grpo, ppo, reinforcepp


class Algorithm(NamedTuple):
    """The two functions an update needs.

    `advantages(reward_PG, valid_PG, mask_BR, *, config, penalty_BR=None) -> adv [B] or [B, R]`, see
    `grpo.advantages`; `loss`, see `grpo.policy_loss`. With a `critic`, advantages are `ppo.critic_advantages`, which
    look at values, and the loss has `ppo.value_loss` beside it.
    """

    advantages: Callable
    loss: Callable
    critic: bool = False


ALGORITHMS = {
    "grpo": Algorithm(grpo.advantages, grpo.policy_loss),
    "reinforce_plus_plus": Algorithm(reinforcepp.advantages, grpo.policy_loss),
    "reinforce_plus_plus_baseline": Algorithm(reinforcepp.baseline_advantages, grpo.policy_loss),
    "ppo": Algorithm(ppo.critic_advantages, grpo.policy_loss, critic=True),
    "opo": Algorithm(baselines.opo_advantages, grpo.policy_loss),
    "gpg": Algorithm(baselines.gpg_advantages, grpo.policy_loss),
}
