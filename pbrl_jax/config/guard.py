"""Settings of the guard against collapse; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import operational


@dataclass(frozen=True)
class GuardConfig:
    """Detection of a run that collapses, and the reaction to it."""

    max_invalid_share: float = operational(0.5, at_least=0, at_most=1)
    """Save the state and stop if more than this share of the rewards is invalid for `patience` consecutive steps."""
    max_skipped_updates: int = operational(10, at_least=1)
    """Save the state and stop if this many consecutive updates are skipped because their gradients are not finite.
    Parameters that are not finite stop the run at once and are not saved."""
    action: Literal["warn", "stop", "raise_beta", "roll_back"] = operational("warn")
    """Reaction if a metric is past its bound for `patience` consecutive steps: warn; stop (the state is saved);
    raise_beta (the KL weight is multiplied by beta_factor); or roll_back (restore the last good checkpoint, and raise
    the KL weight). See pbrl_jax.train.recovery."""
    patience: int = operational(5, at_least=1)
    """Consecutive steps after which the guard reacts to a metric past its bound or to invalid rewards, and after which
    a message says that no group had different rewards. Metrics of a rollout count once, however many updates are made
    on it; kl and entropy count at every update. The guard acts after the last update on a rollout."""
    beta_factor: float = operational(2.0, at_least=1, only_with=("action", "raise_beta", "roll_back"))
    """raise_beta and roll_back: factor on the KL weight; 1: unchanged."""
    max_beta: float = operational(1.0, at_least=0, only_with=("action", "raise_beta", "roll_back"))
    """raise_beta and roll_back: largest KL weight."""
    max_rollbacks: int = operational(3, at_least=1, only_with=("action", "roll_back"))
    """roll_back: the run stops after this many."""
    min_language_share: float | None = operational(None, at_least=0, at_most=1)
    """Lower bound on the share of responses in their prompt's language; None: not checked."""
    min_mean_length: float | None = operational(None, at_least=0)
    """Lower bound on the mean length of responses, in tokens."""
    max_clipped_ratio: float | None = operational(None, at_least=0, at_most=1)
    """Upper bound on the share of responses that reach the length limit."""
    min_entropy: float | None = operational(None, at_least=0)
    """Lower bound on the policy's entropy per token, in nats; needs log.entropy."""
    min_reward_std: float | None = operational(None, at_least=0)
    """Lower bound on the standard deviation of the rewards of a step."""
    max_kl: float | None = operational(None, at_least=0)
    """Upper bound on the KL per token to the reference; needs algo.beta."""
