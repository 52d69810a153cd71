"""The guards of a run: rewards that fail, and metrics that show a policy falling apart, watched at every step.

A run that answers in English, stops early, never stops, repeats itself, or earns the same reward everywhere still
has a falling loss. Bounds are `config.guard`'s; None does not look.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pbrl_jax.config.tree import Config, GuardConfig
from pbrl_jax.core.errors import PbrlError, RewardError

#: Among the counters of a run: steps in a row most of whose rewards were invalid; absent where the last was not.
FAILED = "failed_rewards"


class CollapseError(PbrlError):
    """A run was stopped because a metric stayed past its bound."""


class Bound(NamedTuple):
    """A metric and the range it should lie in; None is no bound."""

    metric: str
    low: float | None = None
    high: float | None = None


def bounds(guard: GuardConfig) -> tuple[Bound, ...]:
    """What is watched."""
    watched = (
        Bound("language/consistency", low=guard.min_language_share),
        Bound("completions/mean_length", low=guard.min_mean_length),
        Bound("completions/clipped_ratio", high=guard.max_clipped_ratio),
        Bound("entropy", low=guard.min_entropy),
        Bound("reward_std", low=guard.min_reward_std),
        Bound("kl", high=guard.max_kl),
    )
    return tuple(bound for bound in watched if bound.low is not None or bound.high is not None)


def broken_bounds(guard: GuardConfig, metrics: Mapping[str, Any]) -> dict[str, str]:
    """metric -> what was found and expected, of those out of their range; NaN is out of every range.

    A metric that a step does not have (nothing was sampled in it) is not judged.
    """
    found = {}
    for name, low, high in bounds(guard):
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
    invalid = 1 - float(valid.mean())
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


def watch(guard: GuardConfig, streaks: dict[str, int], step: int, metrics: Mapping[str, Any]) -> str | None:
    """Count a step in, and say what to tell the user when a metric has been out of its range long enough, and
    again each time as many steps have passed.

    Args:
      streaks: metric -> steps in a row that it was out of its range; changed in place. It goes into the checkpoint.
      step, metrics: of the step.

    Raises:
      CollapseError: with action stop.
    """
    broken = broken_bounds(guard, metrics)
    judged = [bound.metric for bound in bounds(guard) if bound.metric in metrics]
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
