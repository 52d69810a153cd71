"""Settings of the collapse guard; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import operational


@dataclass(frozen=True)
class GuardConfig:
    """What stops or steers a run that collapses."""

    max_invalid_share: float = operational(0.5, at_least=0, at_most=1)
    """Stop, with the state saved, when more than this share of the rewards was invalid in `patience` steps in a row."""
    max_skipped_updates: int = operational(10, at_least=1)
    """Stop, with the state saved, when so many updates in a row were skipped because their gradients were not finite.
    Parameters that are not finite stop a run at once, and are not saved."""
    action: Literal["warn", "stop", "raise_beta", "roll_back"] = operational("warn")
    """What follows when a metric has been past its bound for `patience` steps: warn; stop (the state is saved);
    raise_beta (the KL weight is multiplied by beta_factor); or roll_back (the last good checkpoint's state, and the
    higher KL weight). See pbrl_jax.train.recovery."""
    patience: int = operational(5, at_least=1)
    """Steps in a row that a metric must be past its bound, or that most rewards must be invalid. So long, too, no group
    may have had different rewards before a line says so."""
    beta_factor: float = operational(2.0, at_least=1, only_with=("action", "raise_beta", "roll_back"))
    """raise_beta and roll_back: what the KL weight is multiplied by; 1 leaves it."""
    max_beta: float = operational(1.0, at_least=0, only_with=("action", "raise_beta", "roll_back"))
    """raise_beta and roll_back: the largest KL weight they may reach."""
    max_rollbacks: int = operational(3, at_least=1, only_with=("action", "roll_back"))
    """roll_back: after so many the run stops."""
    min_language_share: float | None = operational(None, at_least=0, at_most=1)
    """Least share of responses in their prompt's language; None does not look."""
    min_mean_length: float | None = operational(None, at_least=0)
    """Least mean length of responses, in tokens."""
    max_clipped_ratio: float | None = operational(None, at_least=0, at_most=1)
    """Largest share of responses that reach the length limit."""
    min_entropy: float | None = operational(None, at_least=0)
    """Least entropy of the policy per token, in nats; needs log.entropy."""
    min_reward_std: float | None = operational(None, at_least=0)
    """Least spread of the rewards of a step."""
    max_kl: float | None = operational(None, at_least=0)
    """Largest KL per token to the reference; needs algo.beta."""
