"""The two ways to make steps: three programs with the host in between, or one fused program.

Both are generators of (position after the step, outcome); the loop does not know which it has. An outcome is read a
step later, while the device works on the next one. A position that is sent in goes on with its state and batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import RewardError, lookup
from pbrl_jax.core.records import Prompt, PromptBatch, Rollout, SamplingParams, Scores, TrainBatch, TrainState
from pbrl_jax.data.batches import next_batch
from pbrl_jax.logs.metrics import PhaseTimer
from pbrl_jax.mesh.agree import host_array, host_count, is_first
from pbrl_jax.mesh.offload import fetched, sent_back
from pbrl_jax.mesh.rows import held_rows, own_devices, owned_rows, rows_on_mesh
from pbrl_jax.mesh.sharding import batch_sharding, place, replicated
from pbrl_jax.rewards.combine import Combined, RewardAssets, make_reward, run_assets, weights_at
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.rollout.decode import completions
from pbrl_jax.rollout.generate import Interrupted, make_generate
from pbrl_jax.rollout.packing import choose_bucket, packed_buckets
from pbrl_jax.rollout.sampling import sampling_params, step_key
from pbrl_jax.train.adapters import whole
from pbrl_jax.train.dynamic import Collected, make_rounds
from pbrl_jax.train.experiment import Experiment, device_pivots, device_prompts, pivot_vectors, token_tables
from pbrl_jax.train.fused import check_fusable, make_fused_step
from pbrl_jax.train.host_rows import ScoredRows, logged_rows, of_all_hosts, own_rollout
from pbrl_jax.train.metrics import reward_metrics, rollout_metrics, sample_rows
from pbrl_jax.train.signals import stop_agreed
from pbrl_jax.train.update import make_update, make_values


class Position(NamedTuple):
    """Where a run stands between two steps: all of it goes into a checkpoint.

    `batch` is the scored rollout batch of a cycle under way (num_iterations > 1), None between cycles; `streaks` are
    the counters of the collapse guard, up to the last step whose metrics were read; `unevaluated` says that a stop came
    in the middle of the evaluation after the step, which is then the first thing to do.
    """

    step: int
    state: TrainState
    cursor: dict[str, int]
    batch: TrainBatch | None
    streaks: Mapping[str, int] = MappingProxyType({})
    unevaluated: bool = False


class Outcome(NamedTuple):
    """What a step did. `read()` waits for the device and gives (metrics, sample rows).

    `check()` looks at the rewards of a fused step, which nobody has seen before the update; hosted steps are checked
    before it.

    Raises (from check):
      RewardError: too many of the step's rewards are invalid.
    """

    step: int
    read: Callable[[], tuple[dict[str, Any], list[dict]]]
    check: Callable[[], None] = lambda: None


#: Yields a step at a time; takes a changed position in.
Steps = Generator[tuple[Position, Outcome], Position | None, None]


def guard_rewards(config: Config, step: int, valid_B) -> None:
    """Stop a run whose rewards mostly fail (RewardError)."""
    valid = np.asarray(valid_B)
    invalid = 1 - float(valid.mean())
    if invalid > config.guard.max_invalid_share:
        raise RewardError(
            f"Step {step}: {invalid:.0%} of the rewards are invalid (first in row {int(np.argmin(valid))}: NaN, "
            f"infinite, None, an exception, or no reference), more than guard.max_invalid_share = "
            f"{config.guard.max_invalid_share:.0%}. Rewards of this run: {', '.join(config.reward.functions)}. Mend "
            "them and run the same command: it goes on from the last step that was saved."
        )


def run_sampling(experiment: Experiment) -> SamplingParams:
    """The run's sampling settings."""
    rollout = experiment.config.rollout
    return sampling_params(rollout.temperature, rollout.top_p, rollout.top_k, experiment.policy.tokenizer.eos_ids)


def reward_assets(experiment: Experiment) -> RewardAssets:
    """What the rewards of a run may need; of several hosts the first alone keeps files."""
    folder = str(experiment.work.root) if is_first() else ""
    return run_assets(experiment.config, experiment.encoder, experiment.token_table, experiment.policy, folder)


def make_collect(experiment: Experiment) -> Callable[..., Collected]:
    """`collect(step, prompts, params, timer, number=0)`: compiled rollout, text, rewards.

    Further rounds of a step (`number` 1 and up) sample with keys of their own.

    Raises (when called):
      Interrupted: a stop was requested while it decoded.
      RewardError: too many rewards are invalid, or a reward returned no scores.
    """
    config, tokenizer, mesh = experiment.config, experiment.policy.tokenizer, experiment.mesh
    G, R = config.algo.num_generations, config.rollout.max_completion_length
    generate = make_generate(experiment.policy.spec, G, R, config.rollout.segment_length, config.rollout.weights)
    sampling = run_sampling(experiment)
    with own_devices(mesh):
        reward = make_reward(config.reward, reward_assets(experiment))
    apart = config.algo.multi_objective_aggregation == "normalize_then_sum"

    def score(step: int, prompts: Sequence[Prompt], host: Rollout) -> ScoredRows:
        texts, pivots = completions(host, tokenizer), pivot_vectors(experiment, prompts, G)
        rows = [prompt for prompt in prompts for _ in range(G)]
        with own_devices(mesh):
            combined = reward(RewardInputs(rows, texts, host.tokens_BR, host.lengths_B, pivots, step))
            total, each = jax.device_get((combined.total, combined.each))
            combined = combined._replace(total=total, each=each, right_language_B=np.asarray(combined.right_language_B))
        return ScoredRows(texts, host, combined, separate_rewards(config, combined, texts) if apart else None)

    def collect(step: int, prompts: Sequence[Prompt], params, timer: PhaseTimer, number: int = 0):
        rows = [prompt for prompt in prompts for _ in range(G)]
        batch, key = device_prompts(experiment, prompts), step_key(config.train.seed, step)
        key = jax.random.fold_in(key, number) if number else key
        own_P = owned_rows(mesh, len(prompts))
        own_B = (own_P[:, None] * G + np.arange(G)).reshape(-1)
        with timer.phase("generate"):
            rollout = generate(params, batch, key, sampling, stop_agreed)
            host = own_rollout(rollout, own_B)
        with timer.phase("reward"):
            logged = logged_rows(rows, config.log.samples_per_step, step + 1)
            logged = logged if config.algo.max_sampling_rounds == 1 else set(range(len(rows)))  # rows may yet move
            found = of_all_hosts(lambda: score(step, [prompts[p] for p in own_P], host), own_B, len(rows), logged)
        total, held_B = found.rewards.total, held_rows(mesh, len(rows))
        guard_rewards(config, step + 1, total.valid_B)
        value_B = np.where(total.valid_B, total.value_B, 0.0).astype(np.float32)
        scored = [value_B, np.asarray(total.valid_B), found.rewards_BF]
        scored = rows_on_mesh([None if x is None else x[held_B] for x in scored], mesh, len(rows))

        weights = zip(config.reward.functions, weights_at(config.reward, step), strict=True)
        extra = {f"rewards/{name}/weight": weight for name, weight in weights} if config.reward.final_weights else {}
        return Collected(TrainBatch(batch, rollout, *scored), rows, found.texts_B, found.rollout, found.rewards, extra)

    return collect


def separate_rewards(config: Config, combined: Combined, completions: Sequence[str]) -> np.ndarray:
    """The rewards of every function with a weight, [B, F], gated as their sum is; NaN where one could not score."""
    empty_B = np.array([not text.strip() for text in completions])
    columns = []
    for weight, scores in zip(config.reward.reward_weights, combined.each.values(), strict=True):
        if weight:
            value_B = np.where(combined.right_language_B, np.asarray(scores.value_B), config.reward.rejected_value)
            columns.append(np.where(scores.valid_B, np.where(empty_B, 0.0, value_B), np.nan))
    return np.stack(columns, axis=1).astype(np.float32)


def hosted_steps(experiment: Experiment, position: Position, ref_params) -> Steps:
    """Steps with the host between rollout, reward and update: num_iterations updates on each rollout batch.

    Ends when a stop is requested; a rollout under way is then dropped (its keys derive from the step).

    Raises:
      ConfigError: (before the first step is asked for) a reward that cannot be made.
    """
    spec, config = experiment.policy.spec, experiment.config
    shapes = dataclasses.replace(batch_shapes(experiment), value_BR=None)
    collect = make_rounds(experiment, make_collect(experiment), shapes)
    values, update = make_values(spec, config), compiled_ahead(make_update(spec, config), config)
    if "optimizer" in config.train.offload:
        update = with_fetched_moments(update)
    programs = Programs(collect, compiled_ahead(values, config), update)
    return _hosted(config, position, ref_params, programs)


class Programs(NamedTuple):
    """What a hosted step runs: rollout and reward, the critic's values where there is a critic, the update."""

    collect: Callable
    values: Callable
    update: Callable


def _hosted(config: Config, position: Position, ref_params, programs: Programs):
    step, state, cursor, batch = position[:4]
    while not stop_agreed():
        timer, describe = PhaseTimer(), None
        if batch is None:
            params = whole(state.params, ref_params, config.lora)
            try:
                found, cursor = programs.collect(step, cursor, params, timer)
            except Interrupted:
                return
            batch, describe = found.batch, functools.partial(found.describe, step + 1)
            if state.critic is not None:
                bucket = packed_bucket(config, batch)
                value_BR = programs.values(params, state.critic, batch, bucket=bucket)
                batch = dataclasses.replace(batch, value_BR=value_BR)
        with timer.phase("update"):
            state, metrics = programs.update(state, ref_params, batch, bucket=packed_bucket(config, batch))
            jax.block_until_ready(metrics)
        step += 1
        if step % config.algo.num_iterations == 0:
            batch = None
        outcome = Outcome(step, _reader(metrics | timer.metrics(), describe))
        changed = yield Position(step, state, cursor, batch), outcome
        if changed is not None:
            state, batch = changed.state, changed.batch


def with_fetched_moments(update: Callable) -> Callable:
    """The update of a state whose moments lie in the host's memory, between the updates alone."""

    def call(state: TrainState, *args, bucket: int):
        moments = state.opt_state
        state, metrics = update(dataclasses.replace(state, opt_state=fetched(moments)), *args, bucket=bucket)
        return dataclasses.replace(state, opt_state=sent_back(state.opt_state, moments)), metrics

    return call


def compiled_ahead(program: Callable, config: Config) -> Callable:
    """`program(*args, bucket=n)`, compiled at its first call for every stream length that a later batch may need, so
    that no step of a long run waits for a compiler."""
    if config.lora.quantization in ("int4", "nf4"):
        return program  # a compiled program refuses the layout that 4-bit arrays have outside of it (jax 0.10)
    sizes = (0,)
    if config.train.packed:
        sizes += packed_buckets(config.algo.num_generations, config.rollout.max_completion_length)
    compiled: dict[int, Callable] = {}

    def call(*args, bucket: int):
        if not compiled:
            lowered = [program.lower(*args, bucket=size) for size in sizes]
            with ThreadPoolExecutor(len(sizes)) as pool:
                compiled.update(zip(sizes, pool.map(lambda one: one.compile(), lowered), strict=True))
        return compiled[bucket](*args)

    return call


def packed_bucket(config: Config, batch: TrainBatch) -> int:
    """The packed stream length of a batch; 0 where packing is off or saves nothing."""
    if not config.train.packed:
        return 0
    lengths = host_array(batch.rollout.lengths_B)
    samples = config.train.microbatch_samples or config.algo.num_generations
    return choose_bucket(lengths, samples, config.rollout.max_completion_length)


def _reader(metrics: dict[str, Any], describe: Callable | None):
    def read():
        described, rows = ({}, []) if describe is None else describe()
        return described | jax.device_get(metrics), rows

    return read


def fused_steps(experiment: Experiment, position: Position, ref_params) -> Steps:
    """Steps of one program each; the host only feeds prompts.

    Raises:
      ConfigError: (before the first step is asked for) a configuration that cannot be fused.
    """
    config, policy, encoder = experiment.config, experiment.policy, experiment.encoder
    check_fusable(config, policy.tokenizer.fingerprint == encoder.tokenizer.fingerprint, encoder.prefix)
    fused = make_fused_step(policy.spec, encoder.spec, config)
    tables, sampling = token_tables(experiment), run_sampling(experiment)
    encoder_params, everywhere = encoder.params, jax.jit(lambda x: x, out_shardings=replicated(experiment.mesh))
    if host_count() > 1:
        encoder_params = place(encoder_params, jax.tree.map(lambda _: replicated(experiment.mesh), encoder_params))

    def run() -> Steps:
        step, state, cursor = position[:3]
        while not stop_agreed():
            prompts, cursor = next_batch(experiment.sampler, cursor)
            state, metrics, rollout, scores = fused(
                state, ref_params, encoder_params, device_prompts(experiment, prompts),
                device_pivots(experiment, prompts), tables, sampling, step_key(config.train.seed, jnp.int32(step)),
            )  # fmt: skip
            if host_count() > 1:
                rollout, scores = everywhere((rollout, scores))  # every host reads all rows, a step later
            step += 1
            outcome = _fused_outcome(experiment, step, prompts, metrics, rollout, scores)
            changed = yield Position(step, state, cursor, None), outcome
            state = state if changed is None else changed.state

    return run()


def _fused_outcome(experiment: Experiment, step: int, prompts, metrics, rollout: Rollout, scores: Scores) -> Outcome:
    def read():
        rows = [prompt for prompt in prompts for _ in range(experiment.config.algo.num_generations)]
        host, host_scores = jax.device_get((rollout, scores))
        parts = dict(host_scores.parts)
        right_B = parts.pop("right_language") > 0
        terms = {
            name.removeprefix("value/"): Scores(parts.pop(name), np.ones_like(host_scores.valid_B), {})
            for name in list(parts)
            if name.startswith("value/")
        }
        each = {"cosine": Scores(parts.pop("value"), host_scores.valid_B, parts)} | terms
        described = reward_metrics(each, right_B, rows) | rollout_metrics(host, rows)
        texts = completions(host, experiment.policy.tokenizer)
        return described | jax.device_get(metrics), sample_rows(step, rows, texts, host_scores, each)

    def check():
        guard_rewards(experiment.config, step, jax.device_get(scores.valid_B))

    return Outcome(step, read, check)


def batch_shapes(experiment: Experiment) -> TrainBatch:
    """Shapes and shardings of a TrainBatch, for a checkpoint taken inside a cycle."""
    config = experiment.config
    P, T = config.train.prompts_per_step, config.rollout.max_prompt_length
    B, R = P * config.algo.num_generations, config.rollout.max_completion_length
    sharding = batch_sharding(experiment.mesh)
    separate = config.algo.multi_objective_aggregation == "normalize_then_sum"

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return TrainBatch(
        PromptBatch(array(jnp.int32, P, T), array(jnp.int32, P), array(jnp.int32, P)),
        Rollout(array(jnp.int32, B, R), array(jnp.int32, B), array(jnp.float32, B, R), array(jnp.bool_, B)),
        array(jnp.float32, B),
        array(jnp.bool_, B),
        array(jnp.float32, B, sum(map(bool, config.reward.reward_weights))) if separate else None,
        array(jnp.float32, B, R) if lookup(ALGORITHMS, config.algo.name, "algorithm").critic else None,
    )
