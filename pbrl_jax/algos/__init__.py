"""Algorithms: functions of arrays, without models or text.

To add an algorithm, write a file with a function like `grpo.estimate` and, for its own settings, a frozen dataclass,
and add a line to ALGORITHMS. To add a loss, write a function in `losses.py` and add a line to its table.
"""

from collections.abc import Callable
from typing import NamedTuple

from pbrl_jax.algos import estimators, grpo, ppo
from pbrl_jax.algos.returns import DiscountConfig
from pbrl_jax.config.algo import AlgoConfig


class Algorithm(NamedTuple):
    """An advantage estimator and its requirements. The loss of all algorithms is `grpo.policy_loss`.

    `estimate(groups: ScoredGroups, value_BR, *, config) -> (adv [B] or [B, R], return_BR)`: `value_BR` are a critic's
    values and `return_BR` its targets, both None without a `critic`; with one, `ppo.value_loss` is added to the loss.
    """

    estimate: Callable
    settings: type[AlgoConfig] = AlgoConfig
    """The class of its settings: AlgoConfig, or a subclass with further settings."""
    check: Callable | None = None
    """`check(config)` raises ConfigError for settings that do not fit together."""
    critic: bool = False
    compares_groups: bool = False
    """Whether the baseline is computed from a prompt's other samples, so that at least two are needed."""
    per_token: bool = False
    """Whether each token has its own advantage, from a sum of rewards over tokens."""


ALGORITHMS = {
    "grpo": Algorithm(grpo.estimate, grpo.GrpoConfig, grpo.check_scaling, compares_groups=True),
    "reinforce_plus_plus": Algorithm(estimators.estimate_reinforce_pp, DiscountConfig, per_token=True),
    "reinforce_plus_plus_baseline": Algorithm(estimators.estimate_reinforce_pp_baseline, compares_groups=True),
    "ppo": Algorithm(ppo.estimate, ppo.PpoConfig, critic=True, per_token=True),
    "opo": Algorithm(estimators.estimate_opo, compares_groups=True),
    "gpg": Algorithm(estimators.estimate_gpg, compares_groups=True),
}
