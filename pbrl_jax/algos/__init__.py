"""Algorithms: maths on arrays, without models or text.

A new member of the family is a file that defines `advantages` and `policy_loss` with the signatures of `grpo.py`, and
one line in ALGORITHMS.
"""

from collections.abc import Callable
from typing import NamedTuple

from pbrl_jax.algos import grpo


class Algorithm(NamedTuple):
    """The two functions an update needs.

    `advantages(reward_PG, valid_PG, *, config) -> adv_PG`;
    `loss(logp_BR, old_logp_BR, adv_B, mask_BR, *, config, ref_logp_BR=None, max_completion_length=None)
    -> (sum, count, metrics)`. See `grpo.advantages` and `grpo.policy_loss`.
    """

    advantages: Callable
    loss: Callable


ALGORITHMS = {"grpo": Algorithm(grpo.advantages, grpo.policy_loss)}
