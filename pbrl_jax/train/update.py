"""The policy update as one compiled program.

Advantages, policy log-probs at response positions, reference log-probs when beta > 0, the objective, exact sums over
microbatches, clip, AdamW, and the check that nothing infinite enters the state: one `jax.jit`, the state donated.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.advantages import ScoredGroups, flat_groups
from pbrl_jax.algos.advantages import reward_metrics as group_metrics
from pbrl_jax.algos.correction import sampler_weights
from pbrl_jax.algos.grpo import policy_loss
from pbrl_jax.algos.ppo import value_loss
from pbrl_jax.algos.returns import adapted_beta, kl_penalty
from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.errors import lookup
from pbrl_jax.core.masking import masked_mean
from pbrl_jax.core.records import TrainBatch, TrainState
from pbrl_jax.core.trees import all_finite, select
from pbrl_jax.mesh.offload import as_before, on_device
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.logprobs import response_outputs, unpacked_streams
from pbrl_jax.rollout.packing import pack_streams, unpack
from pbrl_jax.train.adapters import whole
from pbrl_jax.train.critic import update_critic
from pbrl_jax.train.optimizer import make_optimizer, make_schedule


def row_logprobs(params, batch: TrainBatch, config: Config, spec: DecoderSpec, bucket: int, entropy: bool):
    """Log-probs and entropies of all rows, [B, R]; packed into streams of `bucket` slots when that is not 0."""
    return row_outputs(params, None, batch, config, spec, bucket, entropy)[:2]


def row_outputs(params, value_head, batch: TrainBatch, config: Config, spec: DecoderSpec, bucket: int, entropy: bool):
    """Log-probs, entropies and values of all rows, [B, R]; None for what is not asked for.

    Entropies carry a gradient where the bonus needs it.
    """
    G = config.algo.num_generations
    rollout = batch.rollout
    B, R = rollout.tokens_BR.shape
    if bucket:
        streams = pack_streams(rollout.tokens_BR, rollout.lengths_B, G, bucket)
    else:
        streams = unpacked_streams(rollout.tokens_BR, rollout.lengths_B, G)
    temperature = config.rollout.temperature if config.rollout.temperature > 0 else 1.0
    outputs = response_outputs(
        params, batch.prompts, streams, temperature,
        spec=spec, chunk=config.train.logprob_chunk, packed=bool(bucket), entropy=entropy,
        entropy_gradient=config.algo.entropy_coef != 0, value_head=value_head,
    )  # fmt: skip

    def rows(x):
        if x is None:
            return None
        return unpack(x, rollout.lengths_B, G, R) if bucket else x.reshape(B, R)

    return tuple(rows(x) for x in outputs)


def sampled_mask(batch: TrainBatch) -> jax.Array:
    """Sampled tokens of valid rows, [B, R]."""
    R = batch.rollout.tokens_BR.shape[1]
    return (jnp.arange(R)[None] < batch.rollout.lengths_B[:, None]) & batch.valid_B[:, None]


def loss_mask(batch: TrainBatch, config: Config) -> jax.Array:
    """Tokens that enter the loss, [B, R]: sampled ones of valid rows that no setting leaves out."""
    algo, mask_BR = config.algo, sampled_mask(batch)
    if algo.mask_truncated_completions:
        mask_BR = mask_BR & ~batch.rollout.truncated_B[:, None]
    if algo.mask_zero_std_groups:
        G = algo.num_generations
        flat_P = flat_groups(batch.reward_B.reshape(-1, G), batch.valid_B.reshape(-1, G))
        mask_BR = mask_BR & ~jnp.repeat(flat_P, G)[:, None]
    return mask_BR


def split_microbatches(tree: Any, groups: int, count: int) -> Any:
    """Leading axis [groups * k, ...] -> [count, groups / count * k, ...].

    Each microbatch takes every count-th group, so that it lies on all devices that hold rows.
    """

    def split(x):
        per_group = x.shape[0] // groups
        x = x.reshape(groups // count, count, per_group, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0).reshape(count, groups // count * per_group, *x.shape[3:])

    return jax.tree.map(split, tree)


def in_parts(batch: TrainBatch, config: Config) -> tuple[TrainBatch, Config]:
    """The batch with its groups taken apart into groups of train.microbatch_samples rows, and the config of those.

    Rows stay where they are; a prompt is repeated for each of its parts, so its share of the forward pass is computed
    once per part. Advantages, which compare whole groups, are made before.
    """
    samples, part = config.algo.num_generations, config.train.microbatch_samples
    if not part or part == samples:
        return batch, config
    prompts = jax.tree.map(lambda x: jnp.repeat(x, samples // part, axis=0), batch.prompts)
    return dataclasses.replace(batch, prompts=prompts), with_values(config, algo={"num_generations": part})


def by_microbatch(of: Callable, batch: TrainBatch, config: Config) -> jax.Array:
    """`of(batch)`, an array [B, R], microbatch by microbatch."""
    groups = batch.prompts.tokens_PT.shape[0]
    size = config.train.microbatch_prompts or groups
    if size >= groups:
        return of(batch)
    count = groups // size
    pieces = jax.lax.map(of, split_microbatches(batch, groups, count))
    rows = pieces.reshape(count, size, -1, pieces.shape[-1])
    return jnp.moveaxis(rows, 0, 1).reshape(batch.rollout.tokens_BR.shape)


def reference_logprobs(ref_params, batch: TrainBatch, *, config: Config, spec, bucket) -> jax.Array:
    """Log-probs of all rows under the reference, [B, R]: for a KL inside the reward."""
    return by_microbatch(lambda piece: row_logprobs(ref_params, piece, config, spec, bucket, False)[0], batch, config)


def policy_outputs(model, frozen, batch: TrainBatch, config: Config, spec, bucket, entropy: bool):
    """(log-probs, entropies, values) of `model`: what is trained of a policy, or (that, a value head's parameters)."""
    if isinstance(model, tuple):
        return row_outputs(whole(model[0], frozen, config.lora), model[1], batch, config, spec, bucket, entropy)
    return *row_logprobs(whole(model, frozen, config.lora), batch, config, spec, bucket, entropy), None


def critic_sums(value_BR, return_BR, batch: TrainBatch, mask_BR, count, config: Config):
    """(sum, metric pairs) of the value loss, to be divided by the policy's count, which is its own too."""
    value_sum, _, pairs = value_loss(
        value_BR, batch.value_BR, return_BR, mask_BR, cliprange_value=config.algo.cliprange_value,
        loss_type=config.algo.loss_type, max_completion_length=config.rollout.max_completion_length,
    )  # fmt: skip
    tokens = mask_BR.sum()
    means = {"critic/value_mean": value_BR, "critic/return_mean": return_BR}
    pairs = {f"critic/{name}": pair for name, pair in pairs.items()}
    pairs |= {name: (jnp.where(mask_BR, jax.lax.stop_gradient(x), 0.0).sum(), tokens) for name, x in means.items()}
    return value_sum, pairs | {"critic/value_loss": (jax.lax.stop_gradient(value_sum), count)}


def microbatch_sums(model, ref_params, beta, batch: TrainBatch, adv, mask_BR, ref_logp_BR, return_BR, *, config, spec,
                    bucket, entropy, frozen=None):  # fmt: skip
    """(loss sum, (count, metric pairs, largest gap)) of one microbatch.

    `ref_logp_BR` is made here where it is None; with `return_BR`, `model` has a value head, and its loss is added.
    """
    algo = config.algo
    logp_BR, spread_BR, value_BR = policy_outputs(
        model, frozen, batch, config, spec, bucket, entropy or algo.entropy_coef != 0
    )
    if ref_params is not None and ref_logp_BR is None:
        ref_logp_BR = jax.lax.stop_gradient(row_logprobs(ref_params, batch, config, spec, bucket, False)[0])
    sampler_BR = batch.rollout.logp_BR
    old_BR, extra = sampler_BR, {}
    if algo.importance_sampling_mode != "off":
        old_BR = jax.lax.stop_gradient(logp_BR)
        extra["weight_BR"] = sampler_weights(
            old_BR, sampler_BR, mask_BR, mode=algo.importance_sampling_mode,
            clip_min=algo.importance_sampling_clip_min, clip_max=algo.importance_sampling_clip_max,
        )  # fmt: skip
    if algo.entropy_coef != 0:
        extra["entropy_BR"] = spread_BR
    loss_sum, count, pairs = policy_loss(
        logp_BR, old_BR, adv, mask_BR, config=algo, ref_logp_BR=ref_logp_BR,
        max_completion_length=config.rollout.max_completion_length, beta=beta, **extra,
    )  # fmt: skip
    if return_BR is not None:
        value_sum, value_pairs = critic_sums(value_BR, return_BR, batch, mask_BR, count, config)
        loss_sum, pairs = loss_sum + algo.vf_coef * value_sum, pairs | value_pairs
    tokens = mask_BR.sum()
    gap_BR = jnp.where(mask_BR, jnp.abs(jax.lax.stop_gradient(logp_BR) - sampler_BR), 0.0)
    pairs = dict(pairs, **{"sampling/logp_difference/mean": (gap_BR.sum(), tokens)})
    if "weight_BR" in extra:
        pairs["sampling/importance_sampling_ratio/mean"] = (extra["weight_BR"].sum(), tokens)
    if entropy:
        pairs["entropy"] = (jnp.where(mask_BR, jax.lax.stop_gradient(spread_BR), 0.0).sum(), tokens)
    return loss_sum, (count, pairs, gap_BR.max())


def gradient_sums(model, ref_params, batch, adv, mask_BR, *, config: Config, spec, bucket, entropy,
                  ref_logp_BR=None, return_BR=None, beta=None, frozen=None):  # fmt: skip
    """Loss, gradient and metrics, summed exactly over microbatches and divided once."""
    sums = functools.partial(microbatch_sums, config=config, spec=spec, bucket=bucket, entropy=entropy, frozen=frozen)
    value_and_grad = jax.value_and_grad(sums, has_aux=True)
    groups = batch.prompts.tokens_PT.shape[0]
    size = config.train.microbatch_prompts or groups
    rows = (batch, adv, mask_BR, ref_logp_BR, return_BR)
    if size >= groups:
        (loss_sum, (count, pairs, gap)), grads = value_and_grad(model, ref_params, beta, *rows)
    else:
        pieces = split_microbatches(rows, groups, groups // size)
        shapes = jax.eval_shape(value_and_grad, model, ref_params, beta, *jax.tree.map(lambda x: x[0], pieces))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(carry, piece):
            new = value_and_grad(model, ref_params, beta, *piece)
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


def reward_metrics(batch: TrainBatch, adv, config: Config) -> dict[str, jax.Array]:
    """Statistics of rewards, lengths and advantages; rows without a valid reward are left out."""
    G, R = config.algo.num_generations, config.rollout.max_completion_length
    rollout, valid_B = batch.rollout, batch.valid_B
    reward_PG, valid_PG = batch.reward_B.reshape(-1, G), valid_B.reshape(-1, G)
    lengths = rollout.lengths_B.astype(jnp.float32)
    return group_metrics(reward_PG, valid_PG) | {
        "reward/invalid_share": (~valid_B).astype(jnp.float32).mean(),
        "advantages/std": jnp.sqrt(masked_mean(jnp.square(adv), valid_B if adv.ndim == 1 else sampled_mask(batch))),
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
    before = on_device(state.opt_state)
    updates, opt_state = optimizer.update(grads, before, state.params)
    params = optax.apply_updates(state.params, updates)
    new_state = TrainState(
        params=select(finite, params, state.params),
        opt_state=as_before(select(finite, opt_state, before), state.opt_state),
        step=state.step + 1,
        skipped=state.skipped + (~finite).astype(jnp.int32),
        beta=state.beta,
        critic=state.critic,
    )
    metrics = {
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(schedule(state.step - state.skipped), jnp.float32),
        "skipped_updates": new_state.skipped,
    }
    return new_state, metrics


def batch_advantages(batch: TrainBatch, mask_BR, penalty_BR, config: Config) -> tuple[jax.Array, jax.Array | None]:
    """(advantages of rows [B] or tokens [B, R], a critic's targets or None), by the algorithm."""
    G, rewards, weights = config.algo.num_generations, None, None
    if batch.rewards_BF is not None:
        rewards = batch.rewards_BF.reshape(-1, G, batch.rewards_BF.shape[1])
        weights = jnp.asarray([weight for weight in config.reward.reward_weights if weight], rewards.dtype)
    reward_PG, valid_PG = batch.reward_B.reshape(-1, G), batch.valid_B.reshape(-1, G)
    groups = ScoredGroups(reward_PG, valid_PG, mask_BR, penalty_BR, rewards, weights)
    return lookup(ALGORITHMS, config.algo.name, "algorithm").estimate(groups, batch.value_BR, config=config.algo)


def update_step(state: TrainState, ref_params, batch: TrainBatch, *, spec: DecoderSpec, config: Config,
                bucket: int = 0) -> tuple[TrainState, dict[str, jax.Array]]:  # fmt: skip
    """The update as a traceable function; `bucket` is 0 or a packed stream length (see rollout.packing)."""
    algo = config.algo
    frozen, ref_params = ref_params if config.lora.rank else None, ref_params if algo.beta > 0 else None
    beta = algo.beta if state.beta is None else state.beta
    mask_BR = loss_mask(batch, config)
    parts, part_config = in_parts(batch, config)
    ref_logp_BR = penalty_BR = None
    if ref_params is not None and (algo.kl_in == "reward" or "reference" in config.train.offload):
        # An offloaded reference is on the device before there are gradients, and no longer.
        ref_logp_BR = reference_logprobs(on_device(ref_params), parts, config=part_config, spec=spec, bucket=bucket)
        ref_params = None
    if ref_logp_BR is not None and algo.kl_in == "reward":
        penalty_BR = kl_penalty(
            batch.rollout.logp_BR, ref_logp_BR, sampled_mask(batch), beta=beta, estimator=algo.kl_estimator
        )
    model = state.params if state.critic is None else (state.params, state.critic["params"])
    adv, return_BR = batch_advantages(batch, mask_BR, penalty_BR, config)
    grads, metrics = gradient_sums(
        model, ref_params, parts, adv, mask_BR, config=part_config, spec=spec, bucket=bucket,
        entropy=config.log.entropy, ref_logp_BR=ref_logp_BR, return_BR=return_BR, beta=state.beta, frozen=frozen,
    )  # fmt: skip
    new_state, optimizer_metrics = apply_update(state, grads if state.critic is None else grads[0], config)
    if state.critic is not None:
        frozen = state.step < algo.value_pretrain_steps
        new_state = dataclasses.replace(
            new_state,
            params=select(frozen, state.params, new_state.params),
            opt_state=as_before(
                select(frozen, on_device(state.opt_state), on_device(new_state.opt_state)), state.opt_state
            ),
            critic=update_critic(state.critic, grads[1], config),
        )
    metrics = metrics | reward_metrics(batch, adv, config) | optimizer_metrics
    if state.beta is not None:
        metrics["beta"] = state.beta
        if algo.kl_target is not None:
            new_state = dataclasses.replace(new_state, beta=next_beta(state.beta, metrics["kl"], batch, config))
    return new_state, metrics


def next_beta(beta, kl, batch: TrainBatch, config: Config) -> jax.Array:
    """The KL weight of the next step where `algo.kl_target` steers it."""
    algo = config.algo
    responses = batch.valid_B.shape[0]
    return adapted_beta(beta, kl, target=algo.kl_target, horizon=algo.kl_horizon, responses=responses)


def make_values(spec: DecoderSpec, config: Config) -> Callable:
    """Compiled `(params, critic, batch, bucket=0) -> value_BR`: what a critic says of the states of a rollout batch."""

    def values(params, critic, batch: TrainBatch, bucket: int = 0) -> jax.Array:
        parts, part_config = in_parts(batch, config)

        def of(piece):
            return row_outputs(params, critic["params"], piece, part_config, spec, bucket, False)[2]

        return jnp.where(sampled_mask(batch), by_microbatch(of, parts, part_config), 0.0)

    return jax.jit(values, static_argnames="bucket")


def make_update(spec: DecoderSpec, config: Config) -> Callable:
    """The compiled update `(state, ref_params, batch, bucket=0) -> (state, metrics)`; `state` is donated.

    Args:
      spec: the policy's.
      config: the run's; static.

    The returned function compiles once per `bucket`. `ref_params`, the start policy's parameters, is None when
    `algo.beta` and `lora.rank` are 0.
    """
    step = functools.partial(update_step, spec=spec, config=config)
    return jax.jit(step, static_argnames="bucket", donate_argnums=0)
