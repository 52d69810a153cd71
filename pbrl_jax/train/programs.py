"""The compiled programs of an update: in one piece, or in the parts that a step with a host between them calls."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import lookup
from pbrl_jax.core.records import TrainBatch, TrainState
from pbrl_jax.mesh.agree import host_array
from pbrl_jax.models.packing import choose_bucket, packed_buckets
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.train.optimizer import make_critic_optimizer, make_optimizer, make_schedule
from pbrl_jax.train.trained import Frozen
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


def run_optimizer(config: Config) -> Optimizer:
    """The optimizers of a run."""
    has_critic = lookup(ALGORITHMS, config.algo.name, "algorithm").critic
    critic = make_critic_optimizer(config) if has_critic else None
    return Optimizer(make_optimizer(config.optim), make_schedule(config.optim), critic)


def update_context(spec: DecoderSpec, config: Config, bucket: int = 0) -> UpdateContext:
    """What is static in the updates of a run."""
    return UpdateContext(spec, config, run_optimizer(config), bucket)


def update_step(state: TrainState, ref_params, batch: TrainBatch, base=None, *, spec: DecoderSpec, config: Config,
                bucket: int = 0) -> tuple[TrainState, dict[str, jax.Array]]:  # fmt: skip
    """Advantages, gradient and optimizer step as one traceable function; arguments as of `make_update`."""
    context = update_context(spec, config, bucket)
    frozen = Frozen(ref_params if config.algo.beta > 0 else None, base)
    targets = advantage_targets(state, frozen, batch, context=context)
    return update_parameters(state, frozen, batch, targets, context=context)


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
    """Compiled `(params, critic, batch, bucket=0) -> value_BR`: a critic's values of a rollout batch."""

    def values(params, critic, batch: TrainBatch, bucket: int = 0) -> jax.Array:
        parts, part = in_parts(batch, update_context(spec, config, bucket))
        value_BR = by_microbatch(
            lambda piece: row_outputs(params, critic["params"], piece, part, False)[2], parts, part
        )
        return jnp.where(batch.sampled_BR, value_BR, 0.0)

    return jax.jit(values, static_argnames="bucket")


def make_advantages(spec: DecoderSpec, config: Config) -> jax.stages.Wrapped:
    """Compiled `(state, frozen, batch, bucket=0) -> Targets`."""

    def advantages(state: TrainState, frozen: Frozen, batch: TrainBatch, bucket: int = 0) -> Targets:
        return advantage_targets(state, frozen, batch, context=update_context(spec, config, bucket))

    return jax.jit(advantages, static_argnames="bucket")


def make_parameter_update(spec: DecoderSpec, config: Config) -> jax.stages.Wrapped:
    """Compiled `(state, frozen, batch, targets, bucket=0) -> (state, metrics)`; the state is donated."""

    def update(state: TrainState, frozen: Frozen, batch: TrainBatch, targets: Targets, bucket: int = 0):
        return update_parameters(state, frozen, batch, targets, context=update_context(spec, config, bucket))

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
