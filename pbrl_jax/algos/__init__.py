"""Algorithms: maths on arrays, without models or text.

Another algorithm is one file with a function like `grpo.estimate` and one line in ALGORITHMS; settings of its own are a
frozen dataclass in its file, which the line names. Another loss is a function in `losses.py` and a line in its table.
"""

from collections.abc import Callable
from typing import NamedTuple

from pbrl_jax.algos import estimators, grpo, ppo
from pbrl_jax.algos.returns import DiscountConfig
from pbrl_jax.config.algo import AlgoConfig


class Algorithm(NamedTuple):
    """How rewards become advantages, and what that needs. The loss is `grpo.policy_loss` for all.

    `estimate(groups: ScoredGroups, value_BR, *, config) -> (adv [B] or [B, R], return_BR)`: `value_BR` are a critic's
    values and `return_BR` its targets, both None without a `critic`; with one, `ppo.value_loss` is added to the loss.
    """

    estimate: Callable
    settings: type[AlgoConfig] = AlgoConfig
    """The settings it reads: AlgoConfig, or a subclass with settings of its own."""
    check: Callable | None = None
    """`check(config)` refuses settings that do not go together (ConfigError)."""
    critic: bool = False
    compares_groups: bool = False
    """The baseline is made of a prompt's other samples, so that two are needed."""
    per_token: bool = False
    """Rewards are summed over tokens, so that the tokens of a response have advantages of their own."""


ALGORITHMS = {
    "grpo": Algorithm(grpo.estimate, grpo.GrpoConfig, grpo.check_scaling, compares_groups=True),
    "reinforce_plus_plus": Algorithm(estimators.estimate_reinforce_pp, DiscountConfig, per_token=True),
    "reinforce_plus_plus_baseline": Algorithm(estimators.estimate_reinforce_pp_baseline, compares_groups=True),
    "ppo": Algorithm(ppo.estimate, ppo.PpoConfig, critic=True, per_token=True),
    "opo": Algorithm(estimators.estimate_opo, compares_groups=True),
    "gpg": Algorithm(estimators.estimate_gpg, compares_groups=True),
}
