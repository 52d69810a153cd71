"""What one training step is, top to bottom.

| | function | what happens |
|---|---|---|
| 1 | `draw` | the next prompts, their pivots and the step's sampling key |
| 2 | `StepFunctions.rollout` | the policy answers each prompt `algo.num_generations` times |
| 3 | `StepFunctions.reward` | every response is scored against its pivot |
| 4 | `StepFunctions.advantages` | rewards become advantages, group by group |
| 5 | `StepFunctions.update` | policy gradient, optimizer |
| 6 | `Record` | what the log says of the step, read while the next step runs |

`StepFunctions` are either programs with the host between them (`train.hosted`), or traceable functions that are
compiled together as one program (`train.fused`). What a run may add wraps one of them or the step itself: further
updates on a batch (`train.iterations`), rollouts sampled early (`train.rollout_ahead`), dynamic sampling
(`train.dynamic`), values of a critic, packing and offload (`train.hosted`), several hosts (`train.host_rows`).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from pbrl_jax.core.records import Prompt, PromptBatch, Rollout, TrainBatch, TrainState
from pbrl_jax.data.batches import next_batch
from pbrl_jax.logs.metrics import PhaseTimer
from pbrl_jax.rewards.combine import Combined
from pbrl_jax.rewards.inputs import PivotVectors
from pbrl_jax.rewards.tokens import PivotBatch
from pbrl_jax.rollout.sampling import step_key
from pbrl_jax.train.experiment import Experiment, device_pivots, device_prompts, pivot_vectors
from pbrl_jax.train.guard import FAILED, with_failed
from pbrl_jax.train.update import Frozen, Targets


class Position(NamedTuple):
    """Where a run is between two steps; all of it goes into a checkpoint.

    `batch` is the scored rollout batch of a cycle of several updates, None between cycles; `streaks` are the counters
    of the guards, up to the last step whose metrics were read (FAILED: up to this step); `unevaluated`: a stop
    interrupted the evaluation after this step, which is then made first; `unlogged`: metrics since the last row of the
    log (logs.window); `pending` is a rollout that was sampled ahead (train.rollout_ahead).
    """

    step: int
    state: TrainState
    cursor: dict[str, int]
    batch: TrainBatch | None
    streaks: Mapping[str, int] = MappingProxyType({})
    unevaluated: bool = False
    unlogged: Mapping[str, list] = MappingProxyType({})
    pending: Rollout | None = None


class Drawn(NamedTuple):
    """The prompts of a step, on the devices and as text, their pivots (on the host, or on the devices where the step is
    fused), the key to sample with, and the data cursor behind these prompts."""

    prompts: PromptBatch
    pivots: PivotVectors | PivotBatch
    key: jax.Array
    step: int = 0
    prompts_P: Sequence[Prompt] = ()
    cursor: Mapping[str, int] = MappingProxyType({})
    timer: PhaseTimer = PhaseTimer()
    failed: int = 0
    """Steps in a row before this one whose rewards were mostly invalid."""


class Scored(NamedTuple):
    """A rollout batch with its rewards: `batch` for the update, the rest for the log.

    `host_rollout` and `texts_B` are the rows that this host decoded (see `train.host_rows`); None where no host has
    looked at the tokens yet. `cursor` is that of the data after all prompts that were sampled, `extra` are further
    metrics of the sampling.
    """

    batch: TrainBatch
    rewards: Combined
    prompts_P: Sequence[Prompt]
    cursor: Mapping[str, int]
    host_rollout: Rollout | None = None
    texts_B: Sequence[str] | None = None
    extra: Mapping[str, float] = MappingProxyType({})
    failed: int | None = None
    """Steps in a row up to this one whose rewards were mostly invalid; None where no host has looked yet."""


class Record(NamedTuple):
    """What a step did: its number, the update's metrics, the sampled batch (None for a further update on one), and the
    seconds of its phases. `train.metrics.read_record` turns it into a row of the log."""

    step: int
    metrics: Mapping[str, Any]
    scored: Scored | None
    times: Mapping[str, float]


class StepFunctions(NamedTuple):
    """The parts of a step. `params` makes the parameters that the policy decodes with; `sample` is `sample_batch` or a
    wrapper of it."""

    params: Callable[[Any, Frozen], Any]
    rollout: Callable[[Any, Drawn], Rollout]
    reward: Callable[[Rollout, Drawn], Scored]
    advantages: Callable[[TrainState, Frozen, TrainBatch], Targets]
    update: Callable[[TrainState, Frozen, TrainBatch, Targets], tuple[TrainState, dict[str, Any]]]
    sample: Callable[["StepFunctions", TrainState | None, Frozen, Drawn], Scored]


class Run(NamedTuple):
    """A run as its steps see it: nothing in here changes between steps.

    `policy_step` is `policy_step` with the run's functions, or the compiled fused step, and `functions` is then None;
    `take` is `train_step` or a wrapper of it.
    """

    experiment: Experiment
    frozen: Frozen
    functions: StepFunctions | None
    policy_step: Callable[[TrainState, Frozen, Drawn], tuple[TrainState, dict[str, Any], Scored]]
    take: Callable[["Run", Position], tuple[Position, Record]]


def train_step(run: Run, position: Position) -> tuple[Position, Record]:
    """One step: sample responses to the next prompts, score them, update the policy.

    Raises:
      Interrupted: a stop was requested while the policy decoded; the rollout is dropped, its keys derive from the step.
      RewardError: rewards go on failing; the state is still that of `position`.
    """
    failed = position.streaks.get(FAILED, 0)
    drawn = draw(run.experiment, position.step, position.cursor)._replace(failed=failed)
    state, metrics, scored = run.policy_step(position.state, run.frozen, drawn)
    step, streaks = position.step + 1, with_failed(position.streaks, failed if scored.failed is None else scored.failed)
    following = position._replace(
        step=step, state=state, cursor=dict(scored.cursor), batch=None, streaks=streaks, unevaluated=False
    )
    return following, Record(step, metrics, scored, drawn.timer.metrics())


def draw(experiment: Experiment, step: int, cursor: Mapping[str, int], number: int = 0) -> Drawn:
    """The next prompts of the data and their pivots; sampling round `number` of a step has keys of its own."""
    seed, fused = experiment.config.train.seed, experiment.config.train.fused
    prompts, cursor = next_batch(experiment.sampler, cursor)
    pivots = (device_pivots if fused else pivot_vectors)(experiment, prompts)
    key = step_key(seed, np.int32(step))
    key = jax.random.fold_in(key, number) if number else key
    return Drawn(device_prompts(experiment, prompts), pivots, key, step, prompts, cursor, PhaseTimer())


def policy_step(
    functions: StepFunctions, state: TrainState, frozen: Frozen, drawn: Drawn
) -> tuple[TrainState, dict[str, Any], Scored]:
    """Rollout, reward, advantages, update: a pure function, traceable where its functions are."""
    scored = functions.sample(functions, state, frozen, drawn)
    state, metrics = update_policy(functions, state, frozen, scored.batch, drawn.timer)
    return state, metrics, scored


def sample_batch(functions: StepFunctions, state: TrainState | None, frozen: Frozen, drawn: Drawn) -> Scored:
    """Rollout and reward; `state` is None where `functions.params` knows the policy."""
    with drawn.timer.phase("generate"):
        rollout = functions.rollout(functions.params(state, frozen), drawn)
    with drawn.timer.phase("reward"):
        return functions.reward(rollout, drawn)


def update_policy(
    functions: StepFunctions, state: TrainState, frozen: Frozen, batch: TrainBatch, timer: PhaseTimer
) -> tuple[TrainState, dict[str, Any]]:
    """Advantages and update."""
    with timer.phase("update"):
        targets = functions.advantages(state, frozen, batch)
        return functions.update(state, frozen, batch, targets)
