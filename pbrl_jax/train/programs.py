"""The compiled programs of an update: in one piece, or in the parts that a step with a host between them calls."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.advantages import group_metrics
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import lookup
from pbrl_jax.core.masking import masked_mean
from pbrl_jax.core.records import TrainBatch, TrainState
from pbrl_jax.core.trees import map_microbatches
from pbrl_jax.mesh.offload import on_device
from pbrl_jax.models.packing import Bucket
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.train.microbatches import groups_at
from pbrl_jax.train.optimizer import make_critic_optimizer, make_optimizer, make_schedule
from pbrl_jax.train.trained import Frozen, forward_params
from pbrl_jax.train.update import (
    Optimizer,
    Targets,
    UpdateContext,
    advantage_targets,
    apply_gradient,
    in_parts,
    mean_gradient,
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


def update_context(spec: DecoderSpec, config: Config, bucket: Bucket | None = None) -> UpdateContext:
    """What is static in the updates of a run."""
    return UpdateContext(spec, config, run_optimizer(config), bucket)


def minibatches(config: Config) -> int:
    """Minibatches of a rollout batch."""
    return config.train.prompts_per_step // (config.algo.minibatch_prompts or config.train.prompts_per_step)


def updates_per_rollout(config: Config) -> int:
    """Optimizer steps on each rollout batch."""
    return config.algo.num_iterations * minibatches(config)


def microbatch_size(config: Config) -> int:
    """Prompt groups, or parts of groups, whose gradients are computed at a time, at most."""
    return config.train.microbatch_prompts or config.algo.minibatch_prompts or config.train.prompts_per_step


def minibatch_index(step, groups: int, config: Config) -> jax.Array:
    """The groups of the minibatch whose turn it is at an optimizer step.

    Passes and their minibatches follow from the number of the step, so that a run resumes in the middle: the order of a
    pass is a permutation from (seed, number of the pass).
    """
    size = config.algo.minibatch_prompts
    count = groups // size
    key = jax.random.fold_in(jax.random.key(config.train.seed), ORDER)
    order = jax.random.permutation(jax.random.fold_in(key, step // count), groups)
    return jax.lax.dynamic_slice(order, (step % count * size,), (size,))


def minibatch_rows(state: TrainState, batch: TrainBatch, targets: Targets, config: Config):
    """(batch, targets) of the minibatch whose turn it is; the whole batch where there is one."""
    groups = batch.prompts.lengths_P.shape[0]
    if not 0 < config.algo.minibatch_prompts < groups:
        return batch, targets
    return groups_at((batch, targets), minibatch_index(state.step, groups, config), groups)


def update_minibatch(state: TrainState, frozen: Frozen, batch: TrainBatch, targets: Targets, context: UpdateContext):
    """update_parameters on the minibatch whose turn it is."""
    metrics = batch_metrics(batch, targets.adv, context.config)
    rows = minibatch_rows(state, batch, targets, context.config)
    state, more = update_parameters(state, frozen, *rows, context=context)
    return state, metrics | more


def apply_minibatch(state: TrainState, batch: TrainBatch, targets: Targets, sums, context: UpdateContext):
    """`update_minibatch` with the sums of the minibatch's gradient."""
    metrics = batch_metrics(batch, targets.adv, context.config)
    batch, targets = minibatch_rows(state, batch, targets, context.config)
    state, more = apply_gradient(state, batch, targets, mean_gradient(sums), context)
    return state, metrics | more


def by_microbatch(function: Callable, batch: TrainBatch, context: UpdateContext) -> jax.Array:
    """`function(batch, context)`, an array [B, R], microbatch by microbatch."""
    if context.packed is not None:
        return context.packed.rows(function, batch, context)
    groups, size = batch.prompts.lengths_P.shape[0], context.config.train.microbatch_prompts
    return map_microbatches(lambda piece: function(piece, context), batch, groups, size)


def reference_first(config: Config) -> bool:
    """Whether the reference's log-probs are made before the gradient: for a KL inside the reward, or because the
    reference is in the host's memory and is to be on the device only while there are no gradients."""
    return config.algo.beta > 0 and (config.algo.kl_in == "reward" or "reference" in config.train.offload)


def keeps_logp(config: Config) -> bool:
    """Whether a rollout batch keeps the trainer's log-probs under the parameters that sampled: for several updates on
    it, or for a KL inside the reward where the sampler's are other ones."""
    differs = config.rollout.differs or config.train.rollout_ahead > 0
    return updates_per_rollout(config) > 1 or (differs and config.algo.beta > 0 and config.algo.kl_in == "reward")


def batch_targets(state: TrainState, frozen: Frozen, batch: TrainBatch, context: UpdateContext) -> Targets:
    """Advantages, and before them the reference's log-probs where they are made first; traceable."""
    ref_logp_BR = None
    if reference_first(context.config):
        parts, part = in_parts(batch, context)
        frozen = dataclasses.replace(frozen, reference=on_device(frozen.reference))
        ref_logp_BR = by_microbatch(functools.partial(reference_logp, None, frozen), parts, part)
    return advantage_targets(state, batch, ref_logp_BR, context.config)


def reference_logp(state: Any, frozen: Frozen, batch: TrainBatch, context: UpdateContext) -> jax.Array:
    """The reference's log-probs of rows, [B, R]."""
    return row_outputs(frozen.reference, None, batch, context, False)[0]


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


def update_step(state: TrainState, ref_params, batch: TrainBatch, base=None, *, spec: DecoderSpec, config: Config,
                bucket: Bucket | None = None) -> tuple[TrainState, dict[str, jax.Array]]:  # fmt: skip
    """Advantages, gradient and optimizer step as one traceable function; arguments as of `make_update`."""
    context = update_context(spec, config, bucket)
    frozen = Frozen(ref_params if config.algo.beta > 0 else None, base)
    targets = batch_targets(state, frozen, batch, context)
    return update_minibatch(state, frozen, batch, targets, context)


def make_update(spec: DecoderSpec, config: Config) -> jax.stages.Wrapped:
    """The compiled update `(state, ref_params, batch, base=None, bucket=None) -> (state, metrics)`; `state` is donated.

    Args:
      spec: the policy's.
      config: the run's; static.

    The returned function compiles once per `bucket`. `ref_params`, the parameters of the reference policy, is None
    when `algo.beta` is 0; `base`, the frozen weights that adapters are trained beside, is None without `lora.rank`.
    """
    step = functools.partial(update_step, spec=spec, config=config)
    return jax.jit(step, static_argnames="bucket", donate_argnums=0)


def make_logprobs(spec: DecoderSpec, config: Config) -> jax.stages.Wrapped:
    """Compiled `(state, frozen, batch) -> logp_BR`: the trainer's log-probs of a rollout batch, unpacked."""

    def logprobs(state: TrainState, frozen: Frozen, batch: TrainBatch) -> jax.Array:
        parts, part = in_parts(batch, update_context(spec, config))
        return by_microbatch(functools.partial(policy_logp, state, frozen), parts, part)

    return jax.jit(logprobs)


def policy_logp(state: TrainState, frozen: Frozen, batch: TrainBatch, context: UpdateContext) -> jax.Array:
    """The trainer's log-probs of rows, [B, R]."""
    return row_outputs(forward_params(state.params, frozen.base, context.config.lora), None, batch, context, False)[0]


def critic_values(state: TrainState, frozen: Frozen, batch: TrainBatch, context: UpdateContext) -> jax.Array:
    """A critic's values of rows, [B, R]."""
    params = forward_params(state.params, frozen.base, context.config.lora)
    value_BR = row_outputs(params, state.critic["params"], batch, context, False)[2]
    return jnp.where(batch.sampled_BR, value_BR, 0.0)
