"""The compiled programs of an update: in one piece, or in the parts that a step with a host between them calls."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.advantages import group_metrics
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import lookup
from pbrl_jax.core.masking import masked_mean
from pbrl_jax.core.records import TrainBatch, TrainState
from pbrl_jax.core.trees import take_groups
from pbrl_jax.mesh.agree import host_array
from pbrl_jax.mesh.sharding import constrain
from pbrl_jax.models.packing import choose_bucket, packed_buckets
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.train.optimizer import make_critic_optimizer, make_optimizer, make_schedule
from pbrl_jax.train.trained import Frozen, forward_params
from pbrl_jax.train.update import (
    Optimizer,
    Targets,
    UpdateContext,
    advantage_targets,
    by_microbatch,
    in_parts,
    row_outputs,
    update_parameters,
)

#: Folded into the seed for the order of minibatches.
ORDER = 0x6D62


def run_optimizer(config: Config) -> Optimizer:
    """The optimizers of a run."""
    has_critic = lookup(ALGORITHMS, config.algo.name, "algorithm").critic
    critic = make_critic_optimizer(config) if has_critic else None
    return Optimizer(make_optimizer(config.optim), make_schedule(config.optim), critic)


def update_context(spec: DecoderSpec, config: Config, bucket: int = 0) -> UpdateContext:
    """What is static in the updates of a run."""
    return UpdateContext(spec, config, run_optimizer(config), bucket)


def minibatches(config: Config) -> int:
    """Minibatches of a rollout batch."""
    return config.train.prompts_per_step // (config.algo.minibatch_prompts or config.train.prompts_per_step)


def updates_per_rollout(config: Config) -> int:
    """Optimizer steps on each rollout batch."""
    return config.algo.num_iterations * minibatches(config)


def update_minibatch(state: TrainState, frozen: Frozen, batch: TrainBatch, targets: Targets, context: UpdateContext):
    """update_parameters on the minibatch whose turn it is; on the whole batch where there is one.

    Passes and their minibatches follow from the number of the optimizer step, so that a run resumes in the middle: the
    order of a pass is a permutation from (seed, number of the pass).
    """
    config, groups = context.config, batch.prompts.lengths_P.shape[0]
    metrics, size = batch_metrics(batch, targets.adv, config), config.algo.minibatch_prompts
    if 0 < size < groups:
        count = groups // size
        key = jax.random.fold_in(jax.random.key(config.train.seed), ORDER)
        order = jax.random.permutation(jax.random.fold_in(key, state.step // count), groups)
        index = jax.lax.dynamic_slice(order, (state.step % count * size,), (size,))
        batch, targets = on_rows(take_groups((batch, targets), index, groups))
    state, more = update_parameters(state, frozen, batch, targets, context=context)
    return state, metrics | more


def batch_metrics(batch: TrainBatch, adv, config: Config) -> dict[str, jax.Array]:
    """Statistics of rewards, lengths and advantages; rows without a valid reward are left out.

    Those of rewards are NaN where no row has one.
    """
    G, R = config.algo.num_generations, config.rollout.max_completion_length
    rollout, valid_B = batch.rollout, batch.valid_B
    lengths = rollout.lengths_B.astype(jnp.float32)
    rewards = group_metrics(batch.reward_B.reshape(-1, G), valid_B.reshape(-1, G))
    rewards["advantages/std"] = jnp.sqrt(masked_mean(jnp.square(adv), valid_B if adv.ndim == 1 else batch.sampled_BR))
    return {name: jnp.where(valid_B.any(), value, jnp.nan) for name, value in rewards.items()} | {
        "reward/invalid_share": (~valid_B).astype(jnp.float32).mean(),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": rollout.truncated_B.astype(jnp.float32).mean(),
        "completions/fill": lengths.mean() / R,
    }


def on_rows(tree: Any) -> Any:
    """Arrays laid out by their leading axis, as a batch is."""
    return jax.tree.map(lambda x: constrain(x, "batch", *["none"] * (x.ndim - 1)), tree)


def update_step(state: TrainState, ref_params, batch: TrainBatch, base=None, *, spec: DecoderSpec, config: Config,
                bucket: int = 0) -> tuple[TrainState, dict[str, jax.Array]]:  # fmt: skip
    """Advantages, gradient and optimizer step as one traceable function; arguments as of `make_update`."""
    context = update_context(spec, config, bucket)
    frozen = Frozen(ref_params if config.algo.beta > 0 else None, base)
    targets = advantage_targets(state, frozen, batch, context=context)
    return update_minibatch(state, frozen, batch, targets, context)


def make_update(spec: DecoderSpec, config: Config) -> jax.stages.Wrapped:
    """The compiled update `(state, ref_params, batch, base=None, bucket=0) -> (state, metrics)`; `state` is donated.

    Args:
      spec: the policy's.
      config: the run's; static.

    The returned function compiles once per `bucket`. `ref_params`, the parameters of the reference policy, is None
    when `algo.beta` is 0; `base`, the frozen weights that adapters are trained beside, is None without `lora.rank`.
    """
    step = functools.partial(update_step, spec=spec, config=config)
    return jax.jit(step, static_argnames="bucket", donate_argnums=0)


def make_values(spec: DecoderSpec, config: Config) -> jax.stages.Wrapped:
    """Compiled `(state, frozen, batch, bucket=0) -> value_BR`: a critic's values of a rollout batch."""

    def values(state: TrainState, frozen: Frozen, batch: TrainBatch, bucket: int = 0) -> jax.Array:
        parts, part = in_parts(batch, update_context(spec, config, bucket))
        params, head = forward_params(state.params, frozen.base, config.lora), state.critic["params"]
        value_BR = by_microbatch(lambda piece: row_outputs(params, head, piece, part, False)[2], parts, part)
        return jnp.where(batch.sampled_BR, value_BR, 0.0)

    return jax.jit(values, static_argnames="bucket")


def make_logprobs(spec: DecoderSpec, config: Config) -> jax.stages.Wrapped:
    """Compiled `(state, frozen, batch, bucket=0) -> logp_BR`: the trainer's log-probs of a rollout batch."""

    def logprobs(state: TrainState, frozen: Frozen, batch: TrainBatch, bucket: int = 0) -> jax.Array:
        parts, part = in_parts(batch, update_context(spec, config, bucket))
        params = forward_params(state.params, frozen.base, config.lora)
        return by_microbatch(lambda piece: row_outputs(params, None, piece, part, False)[0], parts, part)

    return jax.jit(logprobs, static_argnames="bucket")


def make_advantages(spec: DecoderSpec, config: Config) -> jax.stages.Wrapped:
    """Compiled `(state, frozen, batch, bucket=0) -> Targets`."""

    def advantages(state: TrainState, frozen: Frozen, batch: TrainBatch, bucket: int = 0) -> Targets:
        return advantage_targets(state, frozen, batch, context=update_context(spec, config, bucket))

    return jax.jit(advantages, static_argnames="bucket")


def make_parameter_update(spec: DecoderSpec, config: Config) -> jax.stages.Wrapped:
    """Compiled `(state, frozen, batch, targets, bucket=0) -> (state, metrics)`; the state is donated."""

    def update(state: TrainState, frozen: Frozen, batch: TrainBatch, targets: Targets, bucket: int = 0):
        return update_minibatch(state, frozen, batch, targets, update_context(spec, config, bucket))

    return jax.jit(update, static_argnames="bucket", donate_argnums=0)


def packed(program: jax.stages.Wrapped, config: Config) -> Callable:
    """`program(*args)`, args[2] a TrainBatch, on the packed stream length that the batch's responses need."""
    ahead = compiled_ahead(program, config)
    return lambda *args: ahead(*args, bucket=packed_bucket(config, args[2]))


def packed_bucket(config: Config, batch: TrainBatch) -> int:
    """The packed stream length of a batch; 0 where packing is off or saves nothing."""
    if not config.train.packed:
        return 0
    lengths = host_array(batch.rollout.lengths_B)
    samples = config.train.microbatch_samples or config.algo.num_generations
    return choose_bucket(lengths, samples, config.rollout.max_completion_length)


def compiled_ahead(program: jax.stages.Wrapped, config: Config) -> Callable:
    """`program(*args, bucket=n)`, compiled at its first call for every stream length that a later batch may need, so
    that no step of a long run waits for a compiler."""
    if config.lora.quantization in ("int4", "nf4"):
        return program  # a compiled program refuses the layout that 4-bit arrays have outside of it (jax 0.10)
    sizes: tuple[int, ...] = (0,)
    if config.train.packed:
        samples = config.train.microbatch_samples or config.algo.num_generations
        sizes += packed_buckets(samples, config.rollout.max_completion_length)
    compiled: dict[int, Callable] = {}

    def call(*args, bucket: int):
        if not compiled:
            lowered = [program.lower(*args, bucket=size) for size in sizes]
            with ThreadPoolExecutor(len(sizes)) as pool:
                compiled.update(zip(sizes, pool.map(lambda one: one.compile(), lowered), strict=True))
        return compiled[bucket](*args)

    return call
