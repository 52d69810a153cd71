"""The guards of a run: rewards that fail, and metrics that show a policy falling apart, watched at every step.

A run that answers in English, stops early, never stops, repeats itself, or earns the same reward everywhere still
has a falling loss. Bounds are `config.guard`'s; None does not look.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pbrl_jax.config.tree import Config, GuardConfig
from pbrl_jax.core.errors import PbrlError, RewardError
from pbrl_jax.train.programs import updates_per_rollout

#: Among the counters of a run: steps in a row most of whose rewards were invalid; absent where the last was not.
FAILED = "failed_rewards"


class CollapseError(PbrlError):
    """A run was stopped because a metric stayed past its bound."""


class Bound(NamedTuple):
    """A metric and the range it should lie in; None is no bound. `sampled`: it is of a rollout, and the same in all
    updates on it; others are of the parameters before each update."""

    metric: str
    low: float | None = None
    high: float | None = None
    sampled: bool = False


def bounds(guard: GuardConfig) -> tuple[Bound, ...]:
    """What is watched."""
    watched = (
        Bound("language/consistency", low=guard.min_language_share, sampled=True),
        Bound("completions/mean_length", low=guard.min_mean_length, sampled=True),
        Bound("completions/clipped_ratio", high=guard.max_clipped_ratio, sampled=True),
        Bound("entropy", low=guard.min_entropy),
        Bound("reward_std", low=guard.min_reward_std, sampled=True),
        Bound("kl", high=guard.max_kl),
    )
    return tuple(bound for bound in watched if bound.low is not None or bound.high is not None)


def broken_bounds(guard: GuardConfig, metrics: Mapping[str, Any]) -> dict[str, str]:
    """metric -> what was found and expected, of those out of their range; NaN is out of every range.

    A metric that a step does not have (nothing was sampled in it) is not judged.
    """
    found = {}
    for name, low, high, _ in bounds(guard):
        if name not in metrics:
            continue
        value = float(metrics[name])
        if low is not None and not value >= low:
            found[name] = f"{name} is {value:.4g}, expected at least {low:g}"
        elif high is not None and not value <= high:
            found[name] = f"{name} is {value:.4g}, expected at most {high:g}"
    return found


def failed_in_a_row(config: Config, before: int, step: int, valid_B) -> int:
    """How many steps in a row, up to this one, had more invalid rewards than guard.max_invalid_share.

    Args:
      before: the same of the step before.
      valid_B: which rewards of the step are valid, on the host.

    Raises:
      RewardError: guard.patience of them.
    """
    valid, guard = np.asarray(valid_B), config.guard
    invalid = float((~valid).mean())  # as a share is typed: 1 - 0.7 is more than 0.3
    if invalid <= guard.max_invalid_share:
        return 0
    if before + 1 < guard.patience:
        return before + 1
    lasting = f" in step after step, {before + 1} by now (guard.patience)" if before else ""
    raise RewardError(
        f"Step {step}: {invalid:.0%} of the rewards are invalid (first in row {int(np.argmin(valid))}: NaN, infinite, "
        f"an exception, no reference, or scored by other rewards than its group){lasting}, more than "
        f"guard.max_invalid_share = {guard.max_invalid_share:.0%}. Rewards of this run: "
        f"{', '.join(config.reward.functions)}. Mend them and run the same command: it goes on from the last step that "
        "was saved."
    )


def flat_in_a_row(config: Config, metrics: Mapping[str, Any], before: int) -> int:
    """How many steps in a row, up to the one with these metrics, had no group with two different rewards."""
    flat = config.algo.num_generations > 1 and metrics.get("frac_reward_zero_std") == 1
    return before + 1 if flat else 0


def with_failed(streaks: Mapping[str, int], failed: int) -> dict[str, int]:
    """The counters with another number of failed steps in a row."""
    return {name: count for name, count in streaks.items() if name != FAILED} | ({FAILED: failed} if failed else {})


def acts(guard: GuardConfig) -> bool:
    """Whether the guard changes the run's state (raise_beta, roll_back). Then the metrics of every step are read
    before the next one begins, so that what follows does not depend on where a run was stopped and resumed."""
    return guard.action in ("raise_beta", "roll_back") and bool(bounds(guard))


def due(guard: GuardConfig, streaks: Mapping[str, int]) -> bool:
    """Whether a metric has been out of its range for as long as the guard waits."""
    return any(streaks.get(bound.metric, 0) >= guard.patience for bound in bounds(guard))


def steps_back(bound: Bound, streak: int, config: Config) -> int:
    """Optimizer steps from the end of a cycle back to the last parameters with which a metric was in its range.

    A step's metrics are those of the parameters before its update: where the first bad step is b, those of step b - 1
    are bad already, and those of b - 2 the last good ones. A rollout's are those of the parameters that sampled it.
    """
    if not bound.sampled:
        return streak + 1
    return (streak + 1 + config.train.rollout_ahead) * updates_per_rollout(config)


def most_steps_back(config: Config) -> int:
    """The largest number of optimizer steps that a rollback looks back: `patience` may be used up with the first update
    of a cycle, and the guard acts after its last."""
    patience, late = config.guard.patience, updates_per_rollout(config) - 1
    watched = bounds(config.guard) or (Bound("kl"),)
    return max(steps_back(bound, patience + (0 if bound.sampled else late), config) for bound in watched)


def watch(
    guard: GuardConfig, streaks: dict[str, int], step: int, metrics: Mapping[str, Any], sampled: bool = True
) -> str | None:
    """Count a step in, and say what to tell the user when a metric has been out of its range long enough, and
    again each time as many steps have passed.

    Args:
      streaks: metric -> steps in a row that it was out of its range, of those that have it; changed in place. It goes
        into the checkpoint.
      step, metrics: of the step.
      sampled: whether the step sampled a rollout; metrics of a rollout are judged there, once.

    Raises:
      CollapseError: with action stop.
    """
    judged = [bound.metric for bound in bounds(guard) if bound.metric in metrics and (sampled or not bound.sampled)]
    broken = {name: text for name, text in broken_bounds(guard, metrics).items() if name in judged}
    for name in judged:
        streaks[name] = streaks.get(name, 0) + 1 if name in broken else 0
    lasting = [text for name, text in broken.items() if streaks[name] % guard.patience == 0]
    if not lasting:
        return None
    message = f"Step {step}: {'; '.join(lasting)}, for at least {guard.patience} steps in a row."
    if guard.action == "stop":
        raise CollapseError(
            f"{message} Look at samples/. Raise algo.beta or lower optim.learning_rate in another work directory, or "
            "go on with this one: --guard.action warn."
        )
    return message
