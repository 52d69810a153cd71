"""The GRPO update as one compiled program.

Advantages, policy log-probs at response positions, reference log-probs when beta > 0, the clipped objective, exact
sums over microbatches, clip, AdamW, and the check that nothing infinite enters the state: one `jax.jit`, the state
donated.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.advantages import reward_metrics as group_metrics
from pbrl_jax.core.config import Config
from pbrl_jax.core.errors import lookup
from pbrl_jax.core.masking import masked_mean
from pbrl_jax.core.records import TrainBatch, TrainState
from pbrl_jax.core.trees import all_finite, select
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.logprobs import response_logprobs, unpacked_streams
from pbrl_jax.rollout.packing import pack_streams, unpack
from pbrl_jax.train.optimizer import make_optimizer, make_schedule


def row_logprobs(params, batch: TrainBatch, config: Config, spec: DecoderSpec, bucket: int, entropy: bool):
    """Log-probs and entropies of all rows, [B, R]; packed into streams of `bucket` slots when that is not 0."""
    G = config.algo.num_generations
    rollout = batch.rollout
    B, R = rollout.tokens_BR.shape
    if bucket:
        streams = pack_streams(rollout.tokens_BR, rollout.lengths_B, G, bucket)
    else:
        streams = unpacked_streams(rollout.tokens_BR, rollout.lengths_B, G)
    temperature = config.rollout.temperature if config.rollout.temperature > 0 else 1.0
    logp, spread = response_logprobs(
        params, batch.prompts, streams, temperature,
        spec=spec, chunk=config.train.logprob_chunk, packed=bool(bucket), entropy=entropy,
    )  # fmt: skip

    def rows(x):
        if x is None:
            return None
        return unpack(x, rollout.lengths_B, G, R) if bucket else x.reshape(B, R)

    return rows(logp), rows(spread)


def loss_mask(batch: TrainBatch, config: Config) -> jax.Array:
    """Tokens that enter the loss, [B, R]: sampled ones of valid rows."""
    rollout = batch.rollout
    R = rollout.tokens_BR.shape[1]
    row_B = batch.valid_B
    if config.algo.mask_truncated_completions:
        row_B = row_B & ~rollout.truncated_B
    return (jnp.arange(R)[None] < rollout.lengths_B[:, None]) & row_B[:, None]


def split_microbatches(tree: Any, groups: int, count: int) -> Any:
    """Leading axis [groups * k, ...] -> [count, groups / count * k, ...].

    Each microbatch takes every count-th group, so that it lies on all devices that hold rows.
    """

    def split(x):
        per_group = x.shape[0] // groups
        x = x.reshape(groups // count, count, per_group, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0).reshape(count, groups // count * per_group, *x.shape[3:])

    return jax.tree.map(split, tree)


def microbatch_sums(params, ref_params, batch: TrainBatch, adv_B, mask_BR, *, config, spec, bucket, entropy):
    """(loss sum, (count, metric pairs)) of one microbatch."""
    logp_BR, spread_BR = row_logprobs(params, batch, config, spec, bucket, entropy)
    ref_logp_BR = None
    if ref_params is not None:
        ref_logp_BR = jax.lax.stop_gradient(row_logprobs(ref_params, batch, config, spec, bucket, False)[0])
    old_BR = batch.rollout.logp_BR
    loss_sum, count, pairs = lookup(ALGORITHMS, config.algo.name, "algorithm").loss(
        logp_BR, old_BR, adv_B, mask_BR,
        config=config.algo, ref_logp_BR=ref_logp_BR, max_completion_length=config.rollout.max_completion_length,
    )  # fmt: skip
    tokens = mask_BR.sum()
    gap_BR = jnp.where(mask_BR, jnp.abs(jax.lax.stop_gradient(logp_BR) - old_BR), 0.0)
    pairs = dict(pairs, **{"sampling/logp_difference/mean": (gap_BR.sum(), tokens)})
    if entropy:
        pairs["entropy"] = (jnp.where(mask_BR, spread_BR, 0.0).sum(), tokens)
    return loss_sum, (count, pairs, gap_BR.max())


def gradient_sums(params, ref_params, batch, adv_B, mask_BR, *, config: Config, spec, bucket, entropy):
    """Loss, gradient and metrics, summed exactly over microbatches and divided once."""
    value_and_grad = jax.value_and_grad(
        functools.partial(microbatch_sums, config=config, spec=spec, bucket=bucket, entropy=entropy), has_aux=True
    )
    groups = batch.prompts.tokens_PT.shape[0]
    size = config.train.microbatch_prompts or groups
    if size >= groups:
        (loss_sum, (count, pairs, gap)), grads = value_and_grad(params, ref_params, batch, adv_B, mask_BR)
    else:
        pieces = split_microbatches((batch, adv_B, mask_BR), groups, groups // size)
        shapes = jax.eval_shape(value_and_grad, params, ref_params, *jax.tree.map(lambda x: x[0], pieces))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(carry, piece):
            new = value_and_grad(params, ref_params, *piece)
            total = jax.tree.map(jnp.add, carry, new)
            (old_sum, (old_count, old_pairs, old_gap)), _ = carry
            (_, (_, _, new_gap)), _ = new
            (loss_sum, (count, pairs, _)), grads = total
            return ((loss_sum, (count, pairs, jnp.maximum(old_gap, new_gap))), grads), None

        ((loss_sum, (count, pairs, gap)), grads), _ = jax.lax.scan(add, zeros, pieces)
    divisor = jnp.maximum(count, 1).astype(loss_sum.dtype)
    metrics = {name: num / jnp.maximum(den, 1) for name, (num, den) in pairs.items()}
    metrics |= {"loss": loss_sum / divisor, "sampling/logp_difference/max": gap}
    return jax.tree.map(lambda g: g / divisor.astype(g.dtype), grads), metrics


def reward_metrics(batch: TrainBatch, adv_B, config: Config) -> dict[str, jax.Array]:
    """Statistics of rewards, lengths and advantages; rows without a valid reward are left out."""
    G, R = config.algo.num_generations, config.rollout.max_completion_length
    rollout, valid_B = batch.rollout, batch.valid_B
    reward_PG, valid_PG = batch.reward_B.reshape(-1, G), valid_B.reshape(-1, G)
    lengths = rollout.lengths_B.astype(jnp.float32)
    return group_metrics(reward_PG, valid_PG) | {
        "reward/invalid_share": (~valid_B).astype(jnp.float32).mean(),
        "advantages/std": jnp.sqrt(masked_mean(jnp.square(adv_B), valid_B)),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": rollout.truncated_B.astype(jnp.float32).mean(),
        "completions/fill": lengths.mean() / R,
    }


def apply_update(state: TrainState, grads, config: Config) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step; a gradient that is not finite changes nothing but the two counters."""
    optimizer, schedule = make_optimizer(config.optim), make_schedule(config.optim)
    finite = all_finite(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new_state = TrainState(
        params=select(finite, params, state.params),
        opt_state=select(finite, opt_state, state.opt_state),
        step=state.step + 1,
        skipped=state.skipped + (~finite).astype(jnp.int32),
    )
    metrics = {
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(schedule(state.step - state.skipped), jnp.float32),
        "skipped_updates": new_state.skipped,
    }
    return new_state, metrics


def update_step(state: TrainState, ref_params, batch: TrainBatch, *, spec: DecoderSpec, config: Config,
                bucket: int = 0) -> tuple[TrainState, dict[str, jax.Array]]:  # fmt: skip
    """The update as a traceable function; `bucket` is 0 or a packed stream length (see rollout.packing)."""
    algo = config.algo
    G = algo.num_generations
    advantages = lookup(ALGORITHMS, algo.name, "algorithm").advantages
    adv_B = advantages(batch.reward_B.reshape(-1, G), batch.valid_B.reshape(-1, G), config=algo).reshape(-1)
    mask_BR = loss_mask(batch, config)
    grads, metrics = gradient_sums(
        state.params, ref_params if algo.beta > 0 else None, batch, adv_B, mask_BR,
        config=config, spec=spec, bucket=bucket, entropy=config.log.entropy,
    )  # fmt: skip
    new_state, optimizer_metrics = apply_update(state, grads, config)
    return new_state, metrics | reward_metrics(batch, adv_B, config) | optimizer_metrics


def make_update(spec: DecoderSpec, config: Config) -> Callable:
    """The compiled update `(state, ref_params, batch, bucket=0) -> (state, metrics)`; `state` is donated.

    Args:
      spec: the policy's.
      config: the run's; static.

    The returned function compiles once per `bucket`. `ref_params` is None when `algo.beta` is 0.
    """
    step = functools.partial(update_step, spec=spec, config=config)
    return jax.jit(step, static_argnames="bucket", donate_argnums=0)


