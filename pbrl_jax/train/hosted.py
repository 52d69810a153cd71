"""The parts of a step as programs with the host between them: compiled rollout, rewards on decoded text, compiled
update. Every reward can be used, and dynamic sampling, critics, packing and offload."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.grpo import scales_rewards_separately
from pbrl_jax.config.tree import Config, LoraConfig
from pbrl_jax.core.errors import lookup
from pbrl_jax.core.records import PromptBatch, Rollout, SamplingParams, TrainBatch, TrainState
from pbrl_jax.mesh.agree import is_first
from pbrl_jax.mesh.ahead import in_background
from pbrl_jax.mesh.offload import fetched, sent_back
from pbrl_jax.mesh.rows import held_rows, own_devices, owned_rows, rows_on_mesh
from pbrl_jax.mesh.sharding import batch_sharding
from pbrl_jax.models.fused_attention import platform
from pbrl_jax.models.lora import merge_adapters
from pbrl_jax.rewards.combine import (
    Combined,
    RewardAssets,
    gated,
    gated_as_one,
    is_signed,
    make_reward,
    run_assets,
    weights_at,
)
from pbrl_jax.rewards.inputs import PivotVectors, RewardInputs
from pbrl_jax.rewards.language import Verdict
from pbrl_jax.rollout.decode import completions
from pbrl_jax.rollout.refill import make_generate
from pbrl_jax.rollout.sampling import sampling_params
from pbrl_jax.rollout.vllm import VllmSampler
from pbrl_jax.rollout.weights import sampling_spec
from pbrl_jax.train.dynamic import with_dynamic_sampling
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.guard import failed_in_a_row
from pbrl_jax.train.host_rows import HostRows, logged_rows, on_all_hosts, own_rollout
from pbrl_jax.train.packed import make_policy_update, make_rows, make_targets
from pbrl_jax.train.programs import critic_values, keeps_logp, policy_logp, reference_first
from pbrl_jax.train.signals import stop_agreed
from pbrl_jax.train.step import Drawn, Scored, StepFunctions, sample_batch
from pbrl_jax.train.trained import Frozen, forward_params
from pbrl_jax.train.update import advantage_targets


def hosted_functions(experiment: Experiment) -> StepFunctions:
    """The functions of a run's steps.

    Raises:
      ConfigError: a reward that cannot be made.
    """
    config, spec = experiment.config, experiment.policy.spec
    sample = sample_batch
    if config.algo.max_sampling_rounds > 1:
        sample = with_dynamic_sampling(sample, experiment, batch_shapes(experiment))
    sample = watched_rewards(sample, config)
    if keeps_logp(config):
        sample = with_column(sample, "old_logp_BR", make_rows(spec, config, policy_logp))
    if lookup(ALGORITHMS, config.algo.name, "algorithm").critic:
        sample = with_column(sample, "value_BR", make_rows(spec, config, critic_values))
    update = make_policy_update(spec, config)
    sample = begins_to_compile(sample, update, experiment)
    update = with_fetched_moments(update) if "optimizer" in config.train.offload else update
    return StepFunctions(
        params=functools.partial(decoding_policy, config=config),
        rollout=make_rollout(experiment),
        reward=make_scoring(experiment),
        advantages=make_targets(spec, config),
        update=waiting(update),
        sample=sample,
    )


def decoding_policy(state: TrainState, frozen: Frozen, config: Config) -> Any:
    """The parameters that the policy decodes with; a server is sent weights without adapters beside them."""
    if config.rollout.engine == "vllm" and config.lora.rank:
        return merging(config.lora, config.policy.dtype)(frozen.base, state.params)
    return forward_params(state.params, frozen.base, config.lora)


@functools.cache
def merging(lora: LoraConfig, dtype: str) -> Callable[[Any, Any], Any]:
    """`(frozen, adapters) -> parameters` without adapters, in a type; compiled."""

    def merge(frozen, adapters):
        return jax.tree.map(lambda x: x.astype(dtype), merge_adapters(frozen, adapters, lora))

    return jax.jit(merge)


# Rollout.


def run_sampling(experiment: Experiment) -> SamplingParams:
    """The run's sampling settings."""
    rollout = experiment.config.rollout
    return sampling_params(rollout.temperature, rollout.top_p, rollout.top_k, experiment.policy.tokenizer.eos_ids)


def make_rollout(experiment: Experiment) -> Callable[[Any, Drawn], Rollout]:
    """The compiled rollout, or that of a server; it raises Interrupted when a stop was requested while it decodes."""
    config, settings = experiment.config, experiment.config.rollout
    if settings.engine == "vllm":
        name = "pbrl_" + hashlib.sha256(str(experiment.work.root).encode()).hexdigest()[:12]
        server = VllmSampler(experiment.policy, config, experiment.mesh, name)
        return lambda params, drawn: server.rollout(params, drawn.prompts, drawn.key, stop_agreed)
    G, R = config.algo.num_generations, settings.max_completion_length
    generate = make_generate(
        sampling_spec(experiment.policy.spec, settings), G, R, settings.segment_length, settings.weights, settings.slots
    )
    sampling = run_sampling(experiment)
    return lambda params, drawn: generate(params, drawn.prompts, drawn.key, sampling, stop_agreed)


# Reward.


def reward_assets(experiment: Experiment) -> RewardAssets:
    """What the rewards of a run may need; of several hosts the first alone keeps files."""
    folder = str(experiment.work.root) if is_first() else ""
    return run_assets(experiment.config, experiment.encoder, experiment.token_table, experiment.policy, folder)


def make_scoring(experiment: Experiment) -> Callable[[Rollout, Drawn], Scored]:
    """Rewards on decoded text; each host decodes and scores the rows that it owns.

    Raises (when called):
      RewardError: a reward returned no scores.
    """
    config, mesh, G = experiment.config, experiment.mesh, experiment.config.algo.num_generations
    separate = scales_rewards_separately(config.algo)
    pairs = gated_as_one(config.reward, experiment.sampler.target).pairs
    assets = reward_assets(experiment)._replace(pairs=pairs)
    with own_devices(mesh):
        # Scaled apart, each function compares its own rows; summed, only rows of the same functions can be compared.
        reward = make_reward(config.reward, assets, 1 if separate else G)

    def score_own(drawn: Drawn, rows_P: np.ndarray, host: Rollout) -> HostRows:
        texts = completions(host, experiment.policy.tokenizer)
        prompts = [drawn.prompts_P[p] for p in rows_P for _ in range(G)]
        if not isinstance(drawn.pivots, PivotVectors):
            raise TypeError("Rewards on decoded text need the pivots' vectors on the host.")
        pivots = drawn.pivots.rows(np.repeat(rows_P, G))
        with own_devices(mesh):
            tokens_BR, lengths_B = np.asarray(host.tokens_BR), np.asarray(host.lengths_B)
            found = reward(RewardInputs(prompts, texts, tokens_BR, lengths_B, pivots, drawn.step))
            total, each = jax.device_get((found.total, found.each))
        found = found._replace(total=total, each=each, right_language_B=np.asarray(found.right_language_B))
        return HostRows(texts, host, found, separate_rewards(config, found, texts, drawn.step) if separate else None)

    def score(rollout: Rollout, drawn: Drawn) -> Scored:
        own_P, rows = owned_rows(mesh, len(drawn.prompts_P)), G * len(drawn.prompts_P)
        own_B = (own_P[:, None] * G + np.arange(G)).reshape(-1)
        host = own_rollout(rollout, own_B)
        found = on_all_hosts(lambda: score_own(drawn, own_P, host), own_B, rows, logged_rows(config, drawn, rows))
        batch = scored_batch(drawn.prompts, rollout, found, mesh)
        extra = curriculum_weights(config, drawn.step)
        return Scored(batch, found.rewards, drawn.prompts_P, drawn.cursor, found.rollout, found.texts_B, extra)

    return score


def watched_rewards(sample: Callable, config: Config) -> Callable:
    """Sampling that ends a run whose rewards go on failing, before anything is updated on them (RewardError)."""

    def call(functions: StepFunctions, state: TrainState | None, frozen: Frozen, drawn: Drawn) -> Scored:
        scored = sample(functions, state, frozen, drawn)
        failed = failed_in_a_row(config, drawn.failed, drawn.step + 1, scored.rewards.valid_B)
        return scored._replace(failed=failed)

    return call


def scored_batch(prompts: PromptBatch, rollout: Rollout, found: HostRows, mesh: Mesh) -> TrainBatch:
    """The rollout with its rewards, on the mesh."""
    total = found.rewards.total
    rows = len(total.valid_B)
    held_B = held_rows(mesh, rows)
    value_B = np.where(total.valid_B, total.value_B, 0.0).astype(np.float32)
    columns = [value_B, np.asarray(total.valid_B), found.rewards_BF]
    return TrainBatch(prompts, rollout, *rows_on_mesh([None if x is None else x[held_B] for x in columns], mesh, rows))


def separate_rewards(config: Config, combined: Combined, completions: Sequence[str], step: int = 0) -> np.ndarray:
    """The rewards of every function with a weight, [B, F], gated as their sum is; NaN where one could not score."""
    empty_B = np.array([not text.strip() for text in completions])
    right_B = np.asarray(combined.right_language_B)
    verdict = Verdict(right_B.astype(np.float32), right_B)
    columns = []
    for weight, (name, scores) in zip(config.reward.reward_weights, combined.each.items(), strict=True):
        if weight:
            sign, signed = np.sign(weight), is_signed(name, weight)
            value_B = sign * gated(config.reward, sign * scores.value_B, verdict, empty_B, step, signed)
            columns.append(np.where(scores.valid_B, value_B, np.nan))
    return np.stack(columns, axis=1).astype(np.float32)


def curriculum_weights(config: Config, step: int) -> dict[str, float]:
    """The weights of the reward functions as metrics, where a curriculum moves them."""
    if not config.reward.final_weights:
        return {}
    weights = zip(config.reward.functions, weights_at(config.reward, step), strict=True)
    return {f"rewards/{name}/weight": weight for name, weight in weights}


# Advantages and update.


def waiting(update: Callable) -> Callable:
    """The update, waited for, so that its time can be told."""

    def call(*args):
        return jax.block_until_ready(update(*args))

    return call


def begins_to_compile(sample: Callable, update: Any, experiment: Experiment) -> Callable:
    """Sampling that first has the update compiled beside it, on one accelerator: where the arrays of a batch will lie
    on several is seen when they are made, and on a CPU the rollout itself needs the processor."""
    config, mesh, begun = experiment.config, experiment.mesh, list[bool]()
    if mesh.size > 1 or platform() == "cpu" or config.train.offload:
        return sample

    def call(functions: StepFunctions, state: TrainState | None, frozen: Frozen, drawn: Drawn) -> Scored:
        if not begun and state is not None and in_background():
            batch = cycle_batch_shapes(experiment)
            reference = batch.rollout.logp_BR if reference_first(config) else None
            targets = jax.eval_shape(functools.partial(advantage_targets, config=config), state, batch, reference)
            update.prepare((state, frozen, batch, targets), (None,))
            begun.append(True)
        return sample(functions, state, frozen, drawn)

    return call


def with_column(sample: Callable, field: str, program: Callable) -> Callable:
    """Sampling that ends with a column of the batch, `field`, that the trainer computes before any update."""

    def call(functions: StepFunctions, state: TrainState, frozen: Frozen, drawn: Drawn) -> Scored:
        scored = sample(functions, state, frozen, drawn)
        with drawn.timer.phase("update"):
            column_BR = program(state, frozen, scored.batch)
        return scored._replace(batch=dataclasses.replace(scored.batch, **{field: column_BR}))

    return call


def with_fetched_moments(update: Callable) -> Callable:
    """The update of a state whose moments are in the host's memory between updates."""

    def call(state: TrainState, *args):
        moments = state.opt_state
        state, metrics = update(dataclasses.replace(state, opt_state=fetched(moments)), *args)
        return dataclasses.replace(state, opt_state=sent_back(state.opt_state, moments)), metrics

    return call


def batch_shapes(experiment: Experiment) -> TrainBatch:
    """Shapes and shardings of a TrainBatch as it is sampled, without a critic's values."""
    config = experiment.config
    P, T = config.train.prompts_per_step, config.rollout.max_prompt_length
    B, R = P * config.algo.num_generations, config.rollout.max_completion_length
    sharding = batch_sharding(experiment.mesh)
    separate = scales_rewards_separately(config.algo)

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return TrainBatch(
        PromptBatch(array(jnp.int32, P, T), array(jnp.int32, P), array(jnp.int32, P)),
        Rollout(array(jnp.int32, B, R), array(jnp.int32, B), array(jnp.float32, B, R), array(jnp.bool_, B)),
        array(jnp.float32, B),
        array(jnp.bool_, B),
        array(jnp.float32, B, sum(map(bool, config.reward.reward_weights))) if separate else None,
    )


def cycle_batch_shapes(experiment: Experiment) -> TrainBatch:
    """Shapes and shardings of the batch in a checkpoint taken inside a cycle of several updates."""
    shapes, config = batch_shapes(experiment), experiment.config
    if keeps_logp(config):
        shapes = dataclasses.replace(shapes, old_logp_BR=shapes.rollout.logp_BR)
    if lookup(ALGORITHMS, config.algo.name, "algorithm").critic:
        shapes = dataclasses.replace(shapes, value_BR=shapes.rollout.logp_BR)
    return shapes
