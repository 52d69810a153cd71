"""The training loop: steps, log, evaluation, checkpoints.

Metrics of a step are read after the next one was dispatched. Everything a later step depends on is in the checkpoint:
state, cursor, and the scored rollout batch where a cycle is under way.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.checkpoint import check_same_experiment, params_sha256, restore_latest, save_checkpoint
from pbrl_jax.config.serialize import from_json, to_json
from pbrl_jax.config.tree import LoraConfig
from pbrl_jax.core.errors import CheckpointError, HostLost, PbrlError, lookup
from pbrl_jax.core.paths import read_json_lines, write_atomic
from pbrl_jax.data.batches import start_cursor
from pbrl_jax.logs.metrics import MetricWriter
from pbrl_jax.logs.progress import Progress
from pbrl_jax.logs.samples import write_samples
from pbrl_jax.mesh.agree import is_first
from pbrl_jax.mesh.offload import check_host_memory, in_host_memory
from pbrl_jax.mesh.sharding import place, replicated
from pbrl_jax.mesh.watch import phase
from pbrl_jax.rollout.generate import Interrupted
from pbrl_jax.train.adapters import placed_frozen, plain, trainable, whole
from pbrl_jax.train.critic import new_critic
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.guard import acts, bounds, watch
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.recovery import recover
from pbrl_jax.train.staged import announce
from pbrl_jax.train.state import abstract_state, place_state
from pbrl_jax.train.steps import Outcome, Position, batch_shapes, fused_steps, hosted_steps
from pbrl_jax.weights.policies import Policy

Evaluate = Callable[[Any], dict[str, float]]


def train(experiment: Experiment, evaluate: Evaluate | None = None, part: tuple[int, int] | None = None,
          quiet: bool = False) -> Position | None:  # fmt: skip
    """Run, or continue, an experiment to config.train.max_steps.

    Args:
      evaluate: params -> metrics; called every eval_steps and at the end.
      part: (number of this stage, number of stages), for the progress bar.
      quiet: no console line a step.

    Returns:
      The last position; None when a stop was requested (the state is saved; the same command goes on).

    Raises:
      PbrlError: a reward, checkpoint or data error; the last whole state was saved first where there is one.
    """
    config, work = experiment.config, experiment.work
    with jax.set_mesh(experiment.mesh):
        position = restore(experiment)
        if is_first():
            write_atomic(work.config, to_json(config))
        ref_params = reference_params(experiment)
        evaluate = on_whole_params(evaluate, ref_params, config.lora)
        row = unfinished_row(experiment, position) if position.unevaluated and evaluate else None
        writer = MetricWriter(
            work.root, resume_step=position.step, max_steps=config.train.max_steps,
            tensorboard=config.log.tensorboard, quiet=quiet, live=f"train {work.root.name}", wandb=config.log.wandb,
            config=to_json(config), active=is_first(),
        )  # fmt: skip
        bar = Progress("train", config.train.max_steps, done=position.step, part=part, active=quiet and is_first())
        with writer, bar:
            whole_run = True
            if position.step < config.train.max_steps:
                if is_first():
                    work.final.unlink(missing_ok=True)  # it says that a run is finished
                if row is not None:
                    whole_run = evaluate_first(position, row, writer, evaluate)
                elif position.step == 0 and evaluate and config.train.eval_steps and config.train.eval_on_start:
                    if whole_run := (found := evaluated(evaluate, position)) is not None:
                        writer.write_evaluation(0, found)
                if whole_run:
                    position = run_steps(experiment, position, ref_params, writer, bar, evaluate)
            whole_run = position.step >= config.train.max_steps and finish(experiment, position, ref_params, evaluate)
            if not whole_run:
                kept = "saved" if position.step else "nothing to save yet"
                writer.say(f"Stopped at step {position.step}, {kept}. The same command goes on from here.")
        return position if whole_run else None


def run_steps(experiment: Experiment, position: Position, ref_params, writer: MetricWriter, bar: Progress,
              evaluate: Evaluate | None) -> Position:  # fmt: skip
    """All steps up to max_steps, or to a requested stop; the last position is saved."""
    settings = experiment.config.train
    steps = (fused_steps if settings.fused else hosted_steps)(experiment, position, ref_params)
    last, saved, clock = None, position.step, time.perf_counter()
    streaks, acting, changed = dict(position.streaks), acts(experiment.config.guard), None
    with contextlib.closing(steps):
        try:
            while (taken := next_step(steps, changed)) is not None:
                (position, outcome), changed = taken, None
                now, position = time.perf_counter(), position._replace(streaks=streaks)
                before, last, clock = last, _with_metrics(outcome, {"step_time": now - clock}), now
                write_outcome(experiment, writer, before, streaks)
                bar.advance()
                step, done = position.step, position.step >= settings.max_steps
                saving = done or step % settings.save_steps == 0
                evaluating = evaluate is not None and not done and _is_due(step, settings.eval_steps)
                if saving or evaluating or acting:
                    jax.block_until_ready(position.state)
                    pause = time.perf_counter()
                    if evaluating:
                        if (found := evaluated(evaluate, position)) is None:
                            position = position._replace(unevaluated=True)
                            break
                        writer.write_evaluation(step, found)
                        last = _with_metrics(last, found)
                    if write_outcome(experiment, writer, last, streaks, always=evaluating) and acting:
                        position = changed = recovered(experiment, position, streaks, writer)
                    if saving:
                        save(experiment, position, writer)
                        saved = step
                    last, clock = None, clock + time.perf_counter() - pause
                if done:
                    break
            write_outcome(experiment, writer, last, streaks)
        except (CheckpointError, HostLost):
            raise  # the disk does not take more, or a host is gone; the last whole checkpoint stays
        except PbrlError:
            write_outcome(experiment, writer, last, streaks, check=False)
            if position.step > saved:
                save(experiment, position, writer)
            raise
    if position.step > saved:
        save(experiment, position, writer)
    return position


def evaluated(evaluate: Evaluate, position: Position) -> dict[str, float] | None:
    """The metrics of an evaluation; None when a stop was requested in it."""
    try:
        with phase("evaluate"):
            return evaluate(position.state.params)
    except Interrupted:
        return None


def unfinished_row(experiment: Experiment, position: Position) -> dict[str, Any]:
    """What the log holds of the last step, whose evaluation was cut short; nothing on hosts that write no log."""
    rows = read_json_lines(experiment.work.metrics) if is_first() else []
    return next((row for row in reversed(rows) if row["step"] == position.step), {})


def evaluate_first(position: Position, row: dict[str, Any], writer: MetricWriter, evaluate: Evaluate) -> bool:
    """The evaluation that a stop cut short; its metrics join the step's row. False when a stop was requested again."""
    found = evaluated(evaluate, position)
    if found is not None:
        writer.write_evaluation(position.step, found)
        writer.reopen(position.step)
        writer.write(position.step, {name: value for name, value in (row | found).items() if name != "step"})
    return found is not None


def next_step(steps: Generator, changed: Position | None) -> tuple[Position, Outcome] | None:
    """The next step, from `changed` where the loop changed the position; None at a requested stop."""
    try:
        with phase("step"):
            return next(steps) if changed is None else steps.send(changed)
    except StopIteration:
        return None


def recovered(experiment: Experiment, position: Position, streaks: dict[str, int], writer: MetricWriter) -> Position:
    """The position after the collapse guard has done what guard.action asks for."""
    position, told = recover(experiment, position, lambda: new_position(experiment).state, streaks)
    writer.say(told)
    return position._replace(streaks=streaks)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _with_metrics(outcome: Outcome, more: dict[str, float]) -> Outcome:
    """The outcome with further metrics."""

    def read():
        metrics, rows = outcome.read()
        return metrics | more, rows

    return outcome._replace(read=read)


def write_outcome(experiment: Experiment, writer: MetricWriter, outcome: Outcome | None, streaks: dict[str, int], *,
                  always: bool = False, check: bool = True) -> bool:  # fmt: skip
    """Metrics and samples of a step, at the logging cadence (or always); rewards and bounds are checked at every step.

    A step that was written is not written again, so this may be called twice.

    Args:
      streaks: the guard's counters, changed in place.
      check: False where another error is already under way.

    Returns:
      Whether a metric has just been out of its range for long enough.

    Raises:
      RewardError: too many rewards are invalid.
      CollapseError: guard.action is stop, and a metric has stayed past its bound.
    """
    if outcome is None or outcome.step <= writer.last_step:
        return False
    config, message = experiment.config, None
    due = always or outcome.step % config.train.logging_steps == 0 or outcome.step == config.train.max_steps
    metrics = None
    if due or (check and bounds(config.guard)):
        metrics, rows = outcome.read()
    if due:
        writer.write(outcome.step, metrics)
        writer.later(write_samples, experiment.work.root, outcome.step, rows, config.log.samples_per_step)
    if check:
        outcome.check()
        if metrics is not None and (message := watch(config.guard, streaks, outcome.step, metrics)):
            writer.say(message)
    return message is not None


def on_whole_params(evaluate: Evaluate | None, frozen, lora: LoraConfig) -> Evaluate | None:
    """The evaluation as a function of what is trained."""
    if evaluate is None or not lora.rank:
        return evaluate
    return lambda trained: evaluate(whole(trained, frozen, lora))


def reference_params(experiment: Experiment):
    """The start policy's parameters on the mesh; None where neither a KL term nor adapters need them."""
    if experiment.config.algo.beta == 0 and not experiment.config.lora.rank:
        return None
    placed = placed_frozen(experiment.policy, experiment.config, experiment.mesh)
    if "reference" not in experiment.config.train.offload:
        return placed
    check_host_memory(experiment.mesh.devices.flat[0])
    return jax.device_put(placed, in_host_memory(jax.tree.map(lambda x: x.sharding, placed)))


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


def save(experiment: Experiment, position: Position, writer: MetricWriter) -> None:
    """Write a checkpoint from which the run continues bit by bit; the log is made durable before."""
    writer.flush()
    meta = {
        "cursor": position.cursor,
        "config": to_json(experiment.config),
        "fingerprints": dict(experiment.fingerprints),
        "in_cycle": position.batch is not None,
        "streaks": dict(position.streaks),
        "unevaluated": position.unevaluated,
        "keeps_beta": position.state.beta is not None,
    }
    tree = {"state": position.state, "batch": position.batch}
    limit = experiment.config.train.save_total_limit
    with phase("save"):
        save_checkpoint(experiment.work.checkpoints, position.step, tree, meta, keep=limit)


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
        saved = from_json(meta["config"])
        check_same_experiment(saved, experiment.config, meta["fingerprints"], dict(experiment.fingerprints))
        batch = batch_shapes(experiment) if meta["in_cycle"] else None
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
    unevaluated = meta.get("unevaluated", False)
    return Position(found.step, state, meta["cursor"], tree["batch"], meta.get("streaks", {}), unevaluated)


def place_beta(experiment: Experiment) -> jax.Array:
    """A KL weight that is kept in the state, although this configuration keeps none: it was raised earlier."""
    return place(np.float32(experiment.config.algo.beta), replicated(experiment.mesh))


def finish(experiment: Experiment, position: Position, ref_params, evaluate: Evaluate | None) -> bool:
    """Evaluate the last parameters and write final.json; adapters are merged. False when a stop was requested."""
    metrics = evaluated(evaluate, position) if evaluate is not None else {}
    if metrics is None:
        return False
    params = plain(position.state.params, ref_params, experiment.config.lora)
    record = {"step": position.step, "params_sha256": params_sha256(params), "metrics": metrics}
    if is_first():
        write_atomic(experiment.work.final, json.dumps(record, indent=1))
    return True


def trained_policy(experiment: Experiment, position: Position) -> Policy:
    """The policy that a run has made, without adapters."""
    with jax.set_mesh(experiment.mesh):
        frozen = reference_params(experiment) if experiment.config.lora.rank else None
        return experiment.policy._replace(params=plain(position.state.params, frozen, experiment.config.lora))
