"""The position of a run on disk: where it starts, what a checkpoint of it holds, how it is restored."""

import dataclasses

import jax
import numpy as np

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.checkpoint import check_same_experiment, restore_latest, save_checkpoint
from pbrl_jax.config.serialize import from_json, to_json
from pbrl_jax.core.errors import CheckpointError, lookup
from pbrl_jax.data.batches import start_cursor
from pbrl_jax.logs.metrics import MetricWriter
from pbrl_jax.mesh.sharding import place, replicated
from pbrl_jax.mesh.watch import phase
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.guard import acts
from pbrl_jax.train.hosted import cycle_batch_shapes
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.staged import announce
from pbrl_jax.train.start import new_critic, trainable
from pbrl_jax.train.state import abstract_state, place_state
from pbrl_jax.train.step import Position


def new_position(experiment: Experiment) -> Position:
    """The start of a run: the start policy's parameters, no moments, the first batch."""
    optimizer = make_optimizer(experiment.config.optim)
    params, axes = trainable(experiment.policy, experiment.config)
    algo = experiment.config.algo
    raises = acts(experiment.config.guard) and algo.beta > 0
    beta = None if algo.kl_target is None and not raises else algo.beta
    has_critic = lookup(ALGORITHMS, algo.name, "algorithm").critic
    critic = new_critic(experiment.policy.spec.width, experiment.config) if has_critic else None
    offload = "optimizer" in experiment.config.train.offload
    state = place_state(params, optimizer, axes, experiment.mesh, beta, critic, offload)
    return Position(0, state, start_cursor(), None)


def save(experiment: Experiment, position: Position, writer: MetricWriter, prove: bool = False) -> None:
    """Write a checkpoint from which the run continues bit by bit; the log is made durable before.

    `prove`: as in `save_checkpoint`.
    """
    writer.flush()
    meta = {
        "cursor": position.cursor,
        "config": to_json(experiment.config),
        "fingerprints": dict(experiment.fingerprints),
        "in_cycle": position.batch is not None,
        "streaks": dict(position.streaks),
        "unevaluated": position.unevaluated,
        "unlogged": dict(position.unlogged),
        "keeps_beta": position.state.beta is not None,
    }
    tree = {"state": position.state, "batch": position.batch}
    limit = experiment.config.train.save_total_limit
    with phase("save"):
        save_checkpoint(experiment.work.checkpoints, position.step, tree, meta, keep=limit, prove=prove)


def restore(experiment: Experiment) -> Position:
    """The position of the last whole checkpoint, or the start where there is none yet.

    Raises:
      CheckpointError: the checkpoint belongs to another experiment or data set (all differences are named), or every
        checkpoint is damaged.
    """
    fresh = new_position(experiment)

    def abstract(meta):
        if "config" not in meta:
            raise CheckpointError(
                f"{experiment.work.checkpoints} holds checkpoints of `pbrl sft` or `pbrl encoder`, expected those of "
                "`pbrl train`. Use another --workdir."
            )
        saved = from_json(meta["config"], type(experiment.config))
        check_same_experiment(saved, experiment.config, meta["fingerprints"], dict(experiment.fingerprints))
        batch = cycle_batch_shapes(experiment) if meta["in_cycle"] else None
        keeps_beta = meta.get("keeps_beta", saved.algo.kl_target is not None)
        beta = fresh.state.beta if fresh.state.beta is not None else place_beta(experiment)
        shapes = abstract_state(dataclasses.replace(fresh.state, beta=beta if keeps_beta else None))
        return {"state": shapes, "batch": batch}

    found = restore_latest(experiment.work.checkpoints, abstract)
    if found is None:
        return fresh
    announce(found)
    tree, meta, state = found.tree, found.meta, found.tree["state"]
    if state.beta is None:  # a guard that raises it was switched on since
        state = dataclasses.replace(state, beta=fresh.state.beta)
    unevaluated, batch = meta.get("unevaluated", False), tree["batch"]
    if batch is not None and batch.old_logp_BR is None:  # of a version that compared with the sampler's
        batch = dataclasses.replace(batch, old_logp_BR=batch.rollout.logp_BR)
    streaks, unlogged = meta.get("streaks", {}), meta.get("unlogged", {})
    return Position(found.step, state, meta["cursor"], batch, streaks, unevaluated, unlogged)


def place_beta(experiment: Experiment) -> jax.Array:
    """A KL weight that is kept in the state, although this configuration keeps none: it was raised earlier."""
    return place(np.float32(experiment.config.algo.beta), replicated(experiment.mesh))
