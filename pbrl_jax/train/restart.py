"""The position of a run on disk: where it starts, what a checkpoint of it holds, how it is restored."""

import dataclasses
from typing import Any

import jax
import numpy as np

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.checkpoint import BackgroundSaver, check_same_experiment, restore_latest, save_checkpoint
from pbrl_jax.checkpoint.older import with_later_fingerprints
from pbrl_jax.config.serialize import from_json, to_json
from pbrl_jax.core.errors import CheckpointError, lookup
from pbrl_jax.data.batches import start_cursor
from pbrl_jax.logs.metrics import MetricWriter
from pbrl_jax.mesh.sharding import place, replicated
from pbrl_jax.mesh.watch import phase
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.guard import acts
from pbrl_jax.train.hosted import batch_shapes, cycle_batch_shapes
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.staged import announce
from pbrl_jax.train.start import keeps_start, new_critic, taken, trained_shapes
from pbrl_jax.train.state import abstract_state, place_state, state_shapes
from pbrl_jax.train.step import Position
from pbrl_jax.weights.policies import let_go


def state_parts(experiment: Experiment) -> dict[str, Any]:
    """What a run's state consists of beside its parameters: the arguments `optimizer, mesh, beta, critic, offload` of
    `train.state.place_state`."""
    config = experiment.config
    algo = config.algo
    raises = acts(config.guard) and algo.beta > 0
    has_critic = lookup(ALGORITHMS, algo.name, "algorithm").critic
    return {
        "optimizer": make_optimizer(config.optim),
        "mesh": experiment.mesh,
        "beta": None if algo.kl_target is None and not raises else algo.beta,
        "critic": new_critic(experiment.policy.spec.width, config) if has_critic else None,
        "offload": "optimizer" in config.train.offload,
    }


def new_position(experiment: Experiment) -> Position:
    """The start of a run: the start policy's parameters, no moments, the first batch. Where nothing else of the run
    reads these parameters, the state takes their arrays."""
    params, axes, gives = taken(experiment.policy, experiment.config, keeps_start(experiment.config))
    state = place_state(params, axes=axes, donate=gives, **state_parts(experiment))
    return Position(0, state, start_cursor(), None)


def save(
    experiment: Experiment, position: Position, writer: MetricWriter, saver: BackgroundSaver | None = None
) -> None:
    """Write a checkpoint from which the run continues bit by bit; the log is made durable before.

    With a saver it is written while the caller goes on, who may donate the position's arrays.
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
        "pending": position.pending is not None,
    }
    tree = {"state": position.state, "batch": position.batch, "pending": position.pending}
    where, limit = experiment.work.checkpoints, experiment.config.train.save_total_limit
    with phase("save"):
        (save_checkpoint if saver is None else saver.start)(where, position.step, tree, meta, keep=limit)


def restore(experiment: Experiment) -> Position:
    """The position of the last whole checkpoint, or the start where there is none yet.

    Raises:
      CheckpointError: the checkpoint belongs to another experiment or data set (all differences are named), or every
        checkpoint is damaged.
    """
    config = experiment.config
    params, axes = trained_shapes(experiment.policy.spec, config)
    shapes = state_shapes(params, axes=axes, **state_parts(experiment))

    def abstract(meta):
        if "config" not in meta:
            raise CheckpointError(
                f"{experiment.work.checkpoints} holds checkpoints of `pbrl sft` or `pbrl encoder`, expected those of "
                "`pbrl train`. Use another --workdir."
            )
        saved = from_json(meta["config"], type(config))
        prints = dict(experiment.fingerprints)
        check_same_experiment(saved, config, with_later_fingerprints(meta["fingerprints"], prints), prints)
        batch = cycle_batch_shapes(experiment) if meta["in_cycle"] else None
        if not keeps_start(config):
            let_go(experiment.policy)  # what is restored takes the place of its parameters
        keeps_beta = meta.get("keeps_beta", saved.algo.kl_target is not None)
        beta = abstract_state(place_beta(experiment)) if keeps_beta else None
        pending = batch_shapes(experiment).rollout if meta.get("pending") else None
        return {"state": dataclasses.replace(shapes, beta=beta), "batch": batch, "pending": pending}

    found = restore_latest(experiment.work.checkpoints, abstract)
    if found is None:
        return new_position(experiment)
    announce(found)
    tree, meta, state = found.tree, found.meta, found.tree["state"]
    if state.beta is None and shapes.beta is not None:  # a guard that raises it was switched on since
        state = dataclasses.replace(state, beta=place_beta(experiment))
    unevaluated, batch = meta.get("unevaluated", False), tree["batch"]
    if batch is not None and batch.old_logp_BR is None:  # of a version that compared with the sampler's
        batch = dataclasses.replace(batch, old_logp_BR=batch.rollout.logp_BR)
    streaks, unlogged = meta.get("streaks", {}), meta.get("unlogged", {})
    return Position(found.step, state, meta["cursor"], batch, streaks, unevaluated, unlogged, tree["pending"])


def place_beta(experiment: Experiment) -> jax.Array:
    """A KL weight for the state, at its start."""
    return place(np.float32(experiment.config.algo.beta), replicated(experiment.mesh))
