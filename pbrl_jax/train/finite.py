"""No run goes on, is saved, evaluated or exported with numbers that are not finite.

An update looks at what it writes: one boolean of its metrics, computed where the new parameters and moments are. The
loops read it a step later, and count the updates in a row that were skipped.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

import jax
import numpy as np

from pbrl_jax.core.errors import NotFiniteError
from pbrl_jax.core.records import STATE_FINITE
from pbrl_jax.core.trees import all_finite

#: Among the counters of a run: updates in a row that were skipped; absent where the last one was made.
SKIPPED = "skipped_updates"


def is_finite(metrics: Mapping[str, Any]) -> bool:
    """Whether the state after an update with these metrics is finite; waits for the device."""
    return bool(jax.device_get(metrics.get(STATE_FINITE, True)))


def check_update(step: int, metrics: Mapping[str, Any], streaks: MutableMapping[str, int], limit: int) -> None:
    """Count skipped updates in a row, and end a run that cannot go on.

    Args:
      metrics: of the update, STATE_FINITE and `grad_norm` among them.
      streaks: counters of the run, changed in place; without SKIPPED where the last update was made.
      limit: skipped updates in a row that end a run.

    Raises:
      NotFiniteError: the state is not finite, or so many updates were skipped.
    """
    if not is_finite(metrics):
        raise NotFiniteError(
            f"Step {step}: parameters or moments are not finite any more (NaN or infinite). They are neither saved nor "
            "evaluated; the last checkpoint is from before. The same command comes to the same point: start again from "
            "that policy in another --workdir, with a lower learning rate or a smaller max_grad_norm."
        )
    if np.isfinite(jax.device_get(metrics.get("grad_norm", 0.0))):
        streaks.pop(SKIPPED, None)
        return
    streaks[SKIPPED] = streaks.get(SKIPPED, 0) + 1
    if streaks[SKIPPED] >= limit:
        raise NotFiniteError(
            f"Step {step}: {streaks[SKIPPED]} updates in a row were skipped, because their gradients were not finite "
            f"(guard.max_skipped_updates = {limit}). The parameters are those of before. Look for infinite values "
            "in your own rewards, lower the learning rate, or train in float32 (--policy.dtype float32)."
        )


def refuse_not_finite(params: Any, what: str) -> None:
    """Raise NotFiniteError where parameters that are to become a result hold NaN or an infinity."""
    if not jax.jit(all_finite)(params):
        raise NotFiniteError(
            f"{what} holds parameters that are not finite (NaN or infinite). They are no result: nothing is evaluated "
            "or exported. Start again in another --workdir with a lower learning rate."
        )
