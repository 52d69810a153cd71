"""What happens between steps: log, guard, evaluation, checkpoints, stop.

Metrics of a step are read after the next one was dispatched. Everything a later step depends on is in the checkpoint:
state, cursor, the scored rollout batch where a cycle of several updates is under way, and a rollout sampled ahead.
"""

import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from pbrl_jax.checkpoint import BackgroundSaver, params_sha256
from pbrl_jax.config.serialize import to_json
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import CheckpointError, HostLost, PbrlError
from pbrl_jax.core.paths import write_atomic
from pbrl_jax.core.stopping import Interrupted
from pbrl_jax.logs.metrics import MetricWriter
from pbrl_jax.logs.progress import Progress
from pbrl_jax.logs.samples import write_samples
from pbrl_jax.logs.trackers import projects_of
from pbrl_jax.logs.window import MetricWindow
from pbrl_jax.mesh.agree import host_count, is_first
from pbrl_jax.mesh.ahead import background_compiles, compile_rest
from pbrl_jax.mesh.watch import phase
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.finite import check_update, is_finite, refuse_not_finite
from pbrl_jax.train.fused import make_fused_policy_step
from pbrl_jax.train.guard import FAILED, acts, due, failed_in_a_row, flat_in_a_row, watch, with_failed
from pbrl_jax.train.hosted import hosted_functions
from pbrl_jax.train.iterations import step_in_cycle
from pbrl_jax.train.metrics import read_record
from pbrl_jax.train.programs import updates_per_rollout
from pbrl_jax.train.recovery import recover
from pbrl_jax.train.restart import restore, save
from pbrl_jax.train.rollout_ahead import step_ahead
from pbrl_jax.train.signals import stop_agreed
from pbrl_jax.train.start import as_rewards_read, frozen_of, kept_start, merged_params
from pbrl_jax.train.step import Position, Record, Run, Scored, policy_step, train_step
from pbrl_jax.train.trained import Frozen, forward_params
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
      PbrlError: a reward, checkpoint or data error; the last state was saved first where there is one.
    """
    config, work = experiment.config, experiment.work
    with jax.set_mesh(experiment.mesh):
        position = restore(experiment)
        if is_first():
            write_atomic(work.config, to_json(config))
        frozen = kept_start(experiment)
        evaluate = on_forward_params(evaluate, frozen, config)
        writer = MetricWriter(
            work.root, resume_step=position.step, max_steps=config.train.max_steps,
            tensorboard=config.log.tensorboard, quiet=quiet, live=f"train {work.root.name}",
            config=to_json(config), active=is_first(), **projects_of(config.log),
        )  # fmt: skip
        bar = Progress("train", config.train.max_steps, done=position.step, part=part, active=quiet and is_first())
        with writer, bar, background_compiles():
            finished = True
            if position.step < config.train.max_steps:
                if is_first():
                    work.final.unlink(missing_ok=True)  # it says that a run is finished
                if position.unevaluated and evaluate:
                    finished = evaluate_first(position, writer, evaluate)
                elif position.step == 0 and evaluate and config.train.eval_steps and config.train.eval_on_start:
                    if finished := (found := evaluated(evaluate, position)) is not None:
                        writer.write_evaluation(0, found)
                if finished:
                    loop = Loop(make_run(experiment, frozen), writer, evaluate, position)
                    del position  # the first step replaces its arrays
                    with loop.saver:
                        position = run_steps(loop, bar)
            finished = position.step >= config.train.max_steps and finish(experiment, position, frozen, evaluate)
            if not finished:
                kept = "saved" if position.step else "nothing to save yet"
                writer.say(f"Stopped at step {position.step}, {kept}. The same command goes on from here.")
        return position if finished else None


def make_run(experiment: Experiment, frozen: Frozen) -> Run:
    """The functions of an experiment's steps.

    Raises:
      ConfigError: a reward that cannot be made, or a step that cannot be fused.
    """
    begin = step_ahead if experiment.config.train.rollout_ahead else train_step
    take = begin if updates_per_rollout(experiment.config) == 1 else functools.partial(step_in_cycle, begin=begin)
    if experiment.config.train.fused:
        return Run(experiment, frozen, None, make_fused_policy_step(experiment), take)
    functions = hosted_functions(as_rewards_read(experiment, frozen))
    return Run(experiment, frozen, functions, functools.partial(policy_step, functions), take)


class Loop:
    """The steps of a run between two checkpoints: where it is, what is not yet written, what is not yet saved."""

    def __init__(self, run: Run, writer: MetricWriter, evaluate: Evaluate | None, position: Position):
        self.run, self.writer, self.evaluate, self.position = run, writer, evaluate, position
        self.saved = self.counted = position.step
        """The last step that is saved, and the last whose metrics were read."""
        self.streaks = dict(position.streaks)
        self.window = MetricWindow(position.unlogged)
        self.flat = 0
        """Steps in a row in which no group had different rewards."""
        self.saver = BackgroundSaver()
        self.unwritten: tuple[Record, dict[str, float]] | None = None
        """The last step's record and further metrics of it; read after the next step was dispatched."""

    @property
    def experiment(self) -> Experiment:
        return self.run.experiment

    def follow(self, record: Record, more: dict[str, float]) -> None:
        """Take a new step's record in, and write that of the step before."""
        before, self.unwritten = self.unwritten, (record, more)
        self.write(before)

    def write(self, row: tuple[Record, dict[str, float]] | None, always: bool = False, check: bool = True) -> None:
        """Count a step's metrics in, once, and write the mean since the last row at the logging cadence (or always);
        rewards and bounds are checked at every step.

        Args:
          row: the step's record and further metrics of it.
          check: False where another error is already under way.

        Raises:
          RewardError: rewards go on failing.
          NotFiniteError: the state, or the gradients of too many updates in a row, are not finite.
          CollapseError: guard.action is stop, and a metric has stayed past its bound.
        """
        if row is None or row[0].step <= self.counted:
            return
        (record, more), config = row, self.experiment.config
        sampled = (record.step - 1) % updates_per_rollout(config) == 0  # the first update on a rollout
        self.counted = record.step
        metrics, samples = read_record(record, self.experiment.policy.tokenizer)
        metrics |= more
        self.window.add(metrics)
        if always or rows_from(record.step, record.step, config):
            self.writer.write(record.step, self.window.take())
        if samples and (always or rows_from(record.step, record.step + updates_per_rollout(config) - 1, config)):
            work, kept = self.experiment.work, config.log.samples_per_step
            self.writer.later(write_samples, work.root, record.step, samples, kept)
        if record.scored is not None:
            self.count_failed(record.step, record.scored, check)
        if check:
            check_update(record.step, record.metrics, self.streaks, config.guard.max_skipped_updates)
            if sampled:
                self.check_signal(record.step, metrics)
            if message := watch(config.guard, self.streaks, record.step, metrics, sampled):
                self.writer.say(message)

    def count_failed(self, step: int, scored: Scored, check: bool) -> None:
        """Count a step in whose rewards mostly failed, and say when that begins. A fused step's rewards are first seen
        here, and end the run where they go on failing (RewardError; not without `check`)."""
        failed, before, guard = scored.failed, self.streaks.get(FAILED, 0), self.experiment.config.guard
        if failed is None:
            valid_B = jax.device_get(scored.rewards.valid_B)
            failed = failed_in_a_row(self.experiment.config, before, step, valid_B) if check else before
        if failed and not before:
            self.writer.say(
                f"Step {step}: more than {guard.max_invalid_share:.0%} of the rewards are invalid, and left out. The "
                f"run stops when that lasts for {guard.patience} steps (guard.patience)."
            )
        self.streaks = with_failed(self.streaks, failed)

    def check_newest(self) -> None:
        """Raise NotFiniteError where the last step left a state that is not finite."""
        if self.unwritten is not None and not is_finite(self.unwritten[0].metrics):
            self.write(self.unwritten)

    def check_signal(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Say when no group has had different rewards for guard.patience steps: there is nothing to learn from."""
        config = self.experiment.config
        self.flat = flat_in_a_row(config, metrics, self.flat)
        if self.flat == config.guard.patience:
            self.writer.say(
                f"Step {step}: in {self.flat} steps in a row all responses to a prompt had the same reward, so "
                "nothing was learned from them. Look at samples/: everything right, everything rejected by the "
                "language gate, or rollout.temperature too low."
            )

    def save(self) -> None:
        """Save the position, where it is not saved yet and its state is finite; it is written while the run goes on."""
        finite = self.unwritten is None or is_finite(self.unwritten[0].metrics)
        if self.position.step > self.saved and finite:
            position = self.position._replace(streaks=self.streaks, unlogged=self.window.saved())
            save(self.experiment, position, self.writer, self.saver)
            self.saved = self.position.step


def rows_from(first: int, last: int, config: Config) -> bool:
    """Whether the logging cadence has a row at one of the steps `first` to `last`."""
    cadence = config.train.logging_steps
    return last // cadence > (first - 1) // cadence or last >= config.train.max_steps


def run_steps(loop: Loop, bar: Progress) -> Position:
    """All steps up to max_steps, or to a requested stop; the last position is saved."""
    clock = time.perf_counter()
    try:
        while not stop_agreed():
            loop.saver.ended()  # raises where a save has failed
            try:
                with phase("step"):
                    loop.position, record = loop.run.take(loop.run, loop.position)
            except Interrupted:
                break
            before, clock = clock, time.perf_counter()
            loop.follow(record, {"step_time": clock - before - record.times.get("time/compile", 0.0)})
            bar.advance()
            compile_rest()
            if pauses_after(loop):
                jax.block_until_ready(loop.position.state)
                pause = time.perf_counter()
                if not between_steps(loop):
                    break
                clock += time.perf_counter() - pause
            if loop.position.step >= loop.experiment.config.train.max_steps:
                break
        loop.write(loop.unwritten)
    except (CheckpointError, HostLost):
        raise  # the disk does not take more, or a host is gone; the last good checkpoint stays
    except Exception as error:
        if isinstance(error, PbrlError) or can_save(loop.position):
            loop.write(loop.unwritten, always=True, check=False)
            loop.save()
            loop.saver.wait()
        raise
    loop.save()
    return loop.position._replace(streaks=loop.streaks)


def can_save(position: Position) -> bool:
    """Whether a position can be saved after an error that only this host may know of: the host is alone, and the update
    that failed has not taken the state's arrays."""
    leaves = jax.tree.leaves((position.state, position.batch, position.pending))
    return host_count() == 1 and not any(leaf.is_deleted() for leaf in leaves)


def pauses_after(loop: Loop) -> bool:
    """Whether something happens before the next step: a save, an evaluation, or a guard that may change the state."""
    return saves_after(loop) or evaluates_after(loop) or acts(loop.experiment.config.guard)


def saves_after(loop: Loop) -> bool:
    """Whether the position is saved now."""
    settings, step = loop.experiment.config.train, loop.position.step
    return step >= settings.max_steps or step % settings.save_steps == 0


def evaluates_after(loop: Loop) -> bool:
    """Whether the policy is evaluated now; after the last step `finish` does it."""
    settings, step = loop.experiment.config.train, loop.position.step
    due = settings.eval_steps > 0 and step % settings.eval_steps == 0
    return loop.evaluate is not None and due and step < settings.max_steps


def between_steps(loop: Loop) -> bool:
    """Evaluate, let the guard act where a cycle has ended, save. False when a stop was requested in the evaluation."""
    evaluating, step = evaluates_after(loop), loop.position.step
    if evaluating and loop.evaluate is not None:
        loop.check_newest()
        if (found := evaluated(loop.evaluate, loop.position)) is None:
            loop.position = loop.position._replace(unevaluated=True)
            loop.write(loop.unwritten, always=True)
            return False
        loop.writer.write_evaluation(step, found)
        if loop.unwritten is not None:
            record, more = loop.unwritten
            loop.unwritten = record, more | found
    loop.write(loop.unwritten, always=evaluating)
    guard, ended = loop.experiment.config.guard, loop.position.batch is None
    if ended and acts(guard) and due(guard, loop.streaks):
        loop.saver.wait()  # the guard reads what is saved
        loop.position, message = recover(loop.experiment, loop.position, loop.streaks)
        loop.writer.say(message)
    if saves_after(loop):
        loop.save()
    loop.unwritten = None
    return True


def evaluated(evaluate: Evaluate, position: Position) -> dict[str, float] | None:
    """The metrics of an evaluation; None when a stop was requested in it."""
    try:
        with phase("evaluate"):
            return evaluate(position.state.params)
    except Interrupted:
        return None


def evaluate_first(position: Position, writer: MetricWriter, evaluate: Evaluate) -> bool:
    """The evaluation that a stop cut short; its metrics join the step's row. False when a stop was requested again."""
    found = evaluated(evaluate, position)
    if found is not None:
        writer.write_evaluation(position.step, found)
        writer.extend(found)
    return found is not None


def on_forward_params(evaluate: Evaluate | None, frozen: Frozen, config) -> Evaluate | None:
    """The evaluation as a function of what is trained."""
    if evaluate is None or not config.lora.rank:
        return evaluate
    return lambda trained: evaluate(forward_params(trained, frozen.base, config.lora))


def finish(experiment: Experiment, position: Position, frozen: Frozen, evaluate: Evaluate | None) -> bool:
    """Evaluate the last parameters and write final.json; adapters are merged. False when a stop was requested."""
    refuse_not_finite(position.state.params, f"Step {position.step} of {experiment.work.root}")
    metrics = evaluated(evaluate, position) if evaluate is not None else {}
    if metrics is None:
        return False
    params = merged_params(position.state.params, frozen.base, experiment.config.lora)
    record = {"step": position.step, "params_sha256": params_sha256(params), "metrics": metrics}
    if is_first():
        write_atomic(experiment.work.final, json.dumps(record, indent=1))
    return True


def trained_policy(experiment: Experiment, position: Position) -> Policy:
    """The policy that a run has made, without adapters."""
    config = experiment.config
    with jax.set_mesh(experiment.mesh):
        base = frozen_of(experiment.policy, config, experiment.mesh).base if config.lora.rank else None
        return experiment.policy._replace(params=merged_params(position.state.params, base, config.lora))
