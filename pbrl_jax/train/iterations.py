"""Several updates on each rollout batch: algo.num_iterations passes over its minibatches."""

from collections.abc import Callable

from pbrl_jax.core.records import TrainBatch
from pbrl_jax.logs.metrics import PhaseTimer
from pbrl_jax.train.programs import updates_per_rollout
from pbrl_jax.train.step import Position, Record, Run, train_step, update_policy


def step_in_cycle(
    run: Run, position: Position, begin: Callable[[Run, Position], tuple[Position, Record]] = train_step
) -> tuple[Position, Record]:
    """A whole step, `begin`, where a cycle begins; then updates on the same batch until it has had all of them."""
    batch = position.batch
    if batch is None:
        following, record = begin(run, position)
        batch = record.scored and record.scored.batch
    else:
        following, record = update_again(run, position, batch)
    ended = following.step % updates_per_rollout(run.experiment.config) == 0
    return following._replace(batch=None if ended else batch), record


def update_again(run: Run, position: Position, batch: TrainBatch) -> tuple[Position, Record]:
    """A further update on the batch of the cycle under way."""
    if run.functions is None:
        raise ValueError("A fused step makes one update on each rollout batch.")
    timer, step = PhaseTimer(), position.step + 1
    state, metrics = update_policy(run.functions, position.state, run.frozen, batch, timer)
    return position._replace(step=step, state=state, unevaluated=False), Record(step, metrics, None, timer.metrics())
