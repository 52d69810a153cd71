"""train.rollout_ahead: every rollout is sampled one step early, while the host scores the one before it.

| on the devices | on the host |
|---|---|
| rollout n + 1, with the parameters that update n is about to change | rewards of rollout n: text, judges, endpoints |
| update n | |

So a batch is trained on one update after the policy that sampled it (all updates of one rollout, where there are
several), and the weight of algo.importance_sampling_mode corrects for that. The first rollout is sampled with the
parameters it updates. What is pending between two steps is the next rollout, tokens and log-probs: it is in the
checkpoint, its prompts follow from the data cursor, and it is sampled after the last step too, for a run that goes on.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax

from pbrl_jax.core.records import Rollout
from pbrl_jax.logs.metrics import PhaseTimer
from pbrl_jax.mesh.agree import own_turns
from pbrl_jax.train.programs import updates_per_rollout
from pbrl_jax.train.step import Drawn, Position, Record, Run, Scored, draw, policy_step, train_step

THREAD = "reward"
"""Name of the thread that scores, and of its exchanges with those of the other hosts."""


def step_ahead(run: Run, position: Position) -> tuple[Position, Record]:
    """`step.train_step` on the rollout that is pending, after the next one is sampled with the same parameters.

    Raises:
      Interrupted, RewardError: as `train_step`; what was pending still is.
    """
    functions, timer = run.functions, PhaseTimer()
    if functions is None:
        raise ValueError("A fused step samples what it updates on.")
    drawn = draw(run.experiment, position.step, position.cursor)
    params = functions.params(position.state, run.frozen)
    with timer.phase("generate"):
        pending = functions.rollout(params, drawn) if position.pending is None else position.pending
    with ThreadPoolExecutor(1, THREAD) as pool:
        scoring = pool.submit(score, run, pending, drawn)
        following = draw(run.experiment, position.step + updates_per_rollout(run.experiment.config), drawn.cursor)
        with timer.phase("generate"):
            sampled = functions.rollout(params, following)
        with timer.phase("reward"):
            scored = scoring.result()
    del params
    ready = functions._replace(
        params=lambda _state, _frozen: None, rollout=lambda _params, _drawn: pending,
        reward=lambda _rollout, _drawn: scored,
    )  # fmt: skip
    position, record = train_step(run._replace(policy_step=partial(policy_step, ready)), position)
    return position._replace(pending=sampled), record._replace(times={**record.times, **timer.metrics()})


def score(run: Run, rollout: Rollout, drawn: Drawn) -> Scored:
    """The rewards of a rollout, in a thread of their own."""
    if run.functions is None:
        raise ValueError("A fused step scores on the devices.")
    with own_turns(THREAD), jax.set_mesh(run.experiment.mesh):
        return run.functions.reward(rollout, drawn)
