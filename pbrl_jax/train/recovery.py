"""What the collapse guard does to a run that falls apart: a higher KL weight, and the last good parameters.

A checkpoint is good when its parameters are from before the first bad step (guard.steps_back). Rolling back takes
parameters, moments and critic from it; the step number, the log and the prompts go on, so that the run does not meet
the same batches with the same keys again. Updates that are undone count as left out (`skipped_updates`).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from pbrl_jax.checkpoint import list_checkpoints, restore_checkpoint
from pbrl_jax.config.tree import GuardConfig
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.records import TrainState
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.guard import CollapseError, bounds, steps_back
from pbrl_jax.train.restart import new_position
from pbrl_jax.train.state import abstract_state
from pbrl_jax.train.step import Position

#: Among the guard's streaks: the number of rollbacks, and a mark for each checkpoint that one has left behind.
ROLLBACKS, ABANDONED = "rollbacks", "abandoned/{}"


def raised(beta, guard: GuardConfig):
    """`beta * beta_factor`, at most max_beta, and never less than it was."""
    return jnp.maximum(beta, jnp.minimum(beta * guard.beta_factor, guard.max_beta)).astype(beta.dtype)


def good_checkpoints(experiment: Experiment, last: int, streaks: Mapping[str, int]) -> Iterator[tuple[int, Any]]:
    """(step, folder) of the checkpoints up to step `last` that no rollback has left behind, newest first."""
    for step, folder in list_checkpoints(experiment.work.checkpoints):
        if step <= last and ABANDONED.format(step) not in streaks:
            yield step, folder


def last_good_state(experiment: Experiment, state: TrainState, last: int, streaks: Mapping[str, int]):
    """(step, state) of the newest good checkpoint up to step `last` that is whole; None where there is none."""
    for step, folder in good_checkpoints(experiment, last, streaks):
        try:
            return step, restore_checkpoint(folder, {"state": abstract_state(state)}, partial=True).tree["state"]
        except CheckpointError:
            continue  # damaged, or saved before a KL weight was kept: an older one will do
    return None


def start_state(experiment: Experiment, step: int, last: int, streaks: Mapping[str, int]):
    """((0, the start's state), a note for the user) where no checkpoint up to step `last` can be had.

    Raises:
      CollapseError: one was due since the last rollback, and is removed or damaged.
    """
    kept = sorted(other for other, _ in list_checkpoints(experiment.work.checkpoints) if other < step)
    marked = max((other for other in kept if other <= last and ABANDONED.format(other) in streaks), default=0)
    every, steps = experiment.config.train.save_steps, ", ".join(map(str, kept))
    if kept and last // every > marked // every:
        raise CollapseError(
            f"Step {step}: the last good parameters are those of step {last}, and no whole checkpoint from there or "
            f"before is kept (found: {steps}); the run is not taken back to its start. Look at samples/. Raise "
            "train.save_total_limit in another work directory, or go on with this one: --guard.action warn."
        )
    note = f"ALL TRAINING IS UNDONE: the checkpoints of steps {steps} are from after the last good one, {last}. "
    return (0, new_position(experiment).state), note if kept else ""


def rolled_back(experiment: Experiment, position: Position, streaks: dict[str, int]):
    """(state of the last good parameters, what to tell); the checkpoints that are left behind are marked in `streaks`.

    `position` is between two cycles, so that the next rollout gets all of its updates.
    """
    guard, state = experiment.config.guard, position.state
    done = streaks.get(ROLLBACKS, 0)
    if done >= guard.max_rollbacks:
        raise CollapseError(
            f"Step {position.step}: the run fell apart again after {done} rollbacks (guard.max_rollbacks). Look at "
            "samples/. Lower optim.learning_rate or raise algo.beta in another work directory."
        )
    lasting = [(bound, streaks[bound.metric]) for bound in bounds(guard) if streaks.get(bound.metric)]
    last = position.step - max((steps_back(*broken, experiment.config) for broken in lasting), default=1)
    found, note = last_good_state(experiment, state, last, streaks), ""
    if found is None:
        found, note = start_state(experiment, position.step, last, streaks)
    step, good = found
    left = [other for other, _ in list_checkpoints(experiment.work.checkpoints) if step < other < position.step]
    streaks |= {ROLLBACKS: done + 1} | dict.fromkeys(map(ABANDONED.format, left), 1)
    state = dataclasses.replace(good, step=state.step, skipped=state.step - (good.step - good.skipped), beta=state.beta)
    return state, f"Rolled back to the parameters of step {step} (rollback {done + 1} of {guard.max_rollbacks}). {note}"


def recover(experiment: Experiment, position: Position, streaks: dict[str, int]) -> tuple[Position, str]:
    """The position that a run goes on from after the guard was set off, and what to tell the user.

    Args:
      position: after the step that set it off.
      streaks: the guard's counters, changed in place: what was acted upon is counted anew.

    Raises:
      CollapseError: guard.max_rollbacks is used up.
    """
    guard, state, told = experiment.config.guard, position.state, ""
    back = guard.action == "roll_back"
    if back:
        state, told = rolled_back(experiment, position, streaks)
    streaks.update({bound.metric: 0 for bound in bounds(guard)})
    if state.beta is not None:  # without a reference there is no KL weight
        beta = raised(state.beta, guard)
        state = dataclasses.replace(state, beta=beta)
        told += f"The KL weight is {float(beta):.4g} from here on."
    position = position._replace(batch=None, pending=None) if back else position
    return position._replace(state=state), told
