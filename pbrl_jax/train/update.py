"""The policy update: advantages, the gradient of the objective, one optimizer step.

Traceable functions, which `train.programs` compiles. A gradient that is not finite changes nothing (see train.finite).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.advantages import ScoredGroups
from pbrl_jax.algos.correction import correction_mode, sampler_weights
from pbrl_jax.algos.grpo import policy_loss
from pbrl_jax.algos.ppo import PpoConfig, value_loss
from pbrl_jax.algos.returns import adapted_beta, kl_penalty
from pbrl_jax.config.fields import settings_of
from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.errors import lookup
from pbrl_jax.core.records import STATE_FINITE, TrainBatch, TrainState, pytree
from pbrl_jax.core.trees import all_finite, select
from pbrl_jax.mesh.microbatches import data_sums, join_sums
from pbrl_jax.mesh.offload import as_before, on_device
from pbrl_jax.models.logprobs import OutputOptions
from pbrl_jax.models.packing import Bucket, rollout_outputs
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.train.trained import Frozen, Trained, forward_params, update_critic


class Optimizer(NamedTuple):
    """The policy's optimizer, its learning rate by the number of updates, and the optimizer of a critic's head."""

    policy: optax.GradientTransformation
    schedule: optax.Schedule
    critic: optax.GradientTransformation | None = None


class UpdateContext(NamedTuple):
    """What is static in an update. `bucket` is what each group is packed into (None: one stream per row); with `packed`
    (train.microbatches) the program chooses a bucket for each microbatch."""

    spec: DecoderSpec
    config: Config
    optimizer: Optimizer
    bucket: Bucket | None = None
    packed: Any = None


@pytree
class Targets:
    """What the gradient is taken for, made before it: advantages of rows [B] or tokens [B, R], the tokens in the loss,
    and where there are such, reference log-probs made ahead and the returns that a critic is trained towards."""

    adv: jax.Array
    mask_BR: jax.Array
    ref_logp_BR: jax.Array | None = None
    return_BR: jax.Array | None = None


def row_outputs(params, value_head, batch: TrainBatch, context: UpdateContext, entropy: bool):
    """Log-probs, entropies and values of all rows, [B, R]; None for what is not asked for.

    Entropies carry a gradient where the bonus needs it.
    """
    config = context.config
    options = OutputOptions(
        context.spec, config.train.logprob_chunk, config.rollout.temperature or 1.0, entropy=entropy,
        entropy_gradient=config.algo.entropy_coef != 0,
    )  # fmt: skip
    return rollout_outputs(params, value_head, batch.prompts, batch.rollout, context.bucket, options)


def loss_mask(batch: TrainBatch, config: Config) -> jax.Array:
    """Tokens that enter the loss, [B, R]: sampled ones of valid rows that no setting leaves out."""
    algo, mask_BR = config.algo, batch.sampled_BR
    if algo.mask_truncated_completions:
        mask_BR = mask_BR & ~batch.rollout.truncated_B[:, None]
    if algo.mask_zero_std_groups:
        flat_P = scored_groups(batch, mask_BR, None, config).flat_P
        mask_BR = mask_BR & ~jnp.repeat(flat_P, algo.num_generations)[:, None]
    return mask_BR


def in_parts(batch: TrainBatch, context: UpdateContext) -> tuple[TrainBatch, UpdateContext]:
    """The batch with its groups taken apart into groups of train.microbatch_samples rows, and the context of those.

    Rows stay where they are; a prompt is repeated for each of its parts, so its share of the forward pass is computed
    once per part. Advantages, which compare whole groups, are made before.
    """
    config = context.config
    samples, part = config.algo.num_generations, config.train.microbatch_samples
    if not part or part == samples:
        return batch, context
    prompts = jax.tree.map(lambda x: jnp.repeat(x, samples // part, axis=0), batch.prompts)
    part_config = with_values(config, algo={"num_generations": part})
    return dataclasses.replace(batch, prompts=prompts), context._replace(config=part_config)


def advantage_targets(state: TrainState, batch: TrainBatch, ref_logp_BR: jax.Array | None, config: Config) -> Targets:
    """Rewards to advantages, by the algorithm; traceable. `ref_logp_BR`: the reference's, where they are made first."""
    algo, mask_BR, penalty_BR = config.algo, loss_mask(batch, config), None
    if ref_logp_BR is not None and algo.kl_in == "reward":
        beta = algo.beta if state.beta is None else state.beta
        policy_BR = batch.rollout.logp_BR if batch.old_logp_BR is None else batch.old_logp_BR
        penalty_BR = kl_penalty(policy_BR, ref_logp_BR, batch.sampled_BR, beta=beta, estimator=algo.kl_estimator)
    adv, return_BR = estimate_advantages(batch, mask_BR, penalty_BR, config)
    return Targets(adv, mask_BR, ref_logp_BR, return_BR)


def scored_groups(batch: TrainBatch, mask_BR, penalty_BR, config: Config) -> ScoredGroups:
    """The rewards of a batch by groups."""
    G, rewards, weights = config.algo.num_generations, None, None
    if batch.rewards_BF is not None:
        rewards = batch.rewards_BF.reshape(-1, G, batch.rewards_BF.shape[1])
        weights = jnp.asarray([weight for weight in config.reward.reward_weights if weight], rewards.dtype)
    reward_PG, valid_PG = batch.reward_B.reshape(-1, G), batch.valid_B.reshape(-1, G)
    return ScoredGroups(reward_PG, valid_PG, mask_BR, penalty_BR, rewards, weights)


def estimate_advantages(batch: TrainBatch, mask_BR, penalty_BR, config: Config) -> tuple[jax.Array, jax.Array | None]:
    """(advantages of rows [B] or tokens [B, R], a critic's targets or None), by the algorithm."""
    groups = scored_groups(batch, mask_BR, penalty_BR, config)
    return lookup(ALGORITHMS, config.algo.name, "algorithm").estimate(groups, batch.value_BR, config=config.algo)


def critic_sums(value_BR, batch: TrainBatch, targets: Targets, count, config: Config):
    """(sum, metric pairs) of the value loss, to be divided by the policy's count, which is its own too."""
    mask_BR, return_BR, old_BR = targets.mask_BR, targets.return_BR, batch.value_BR
    if return_BR is None or old_BR is None:
        raise ValueError("A critic's loss needs its values at sampling time and the returns.")
    value_sum, _, pairs = value_loss(
        value_BR, old_BR, return_BR, mask_BR, cliprange_value=settings_of(config.algo, PpoConfig).cliprange_value,
        loss_type=config.algo.loss_type, max_completion_length=config.rollout.max_completion_length,
    )  # fmt: skip
    tokens = mask_BR.sum()
    means = {"critic/value_mean": value_BR, "critic/return_mean": return_BR}
    pairs = {f"critic/{name}": pair for name, pair in pairs.items()}
    pairs |= {name: (jnp.where(mask_BR, jax.lax.stop_gradient(x), 0.0).sum(), tokens) for name, x in means.items()}
    return value_sum, pairs | {"critic/value_loss": (jax.lax.stop_gradient(value_sum), count)}


def microbatch_sums(trained: Trained, frozen: Frozen, beta, rows: tuple[TrainBatch, Targets], context: UpdateContext):
    """(loss sum, (count, metric pairs, largest gap)) of one microbatch."""
    (batch, targets), config, algo = rows, context.config, context.config.algo
    mask_BR, entropy = targets.mask_BR, config.log.entropy
    params = forward_params(trained.policy, frozen.base, config.lora)
    logp_BR, entropy_BR, value_BR = row_outputs(
        params, trained.value_head, batch, context, entropy or algo.entropy_coef != 0
    )
    ref_logp_BR = targets.ref_logp_BR
    if frozen.reference is not None and ref_logp_BR is None:
        ref_logp_BR = jax.lax.stop_gradient(row_outputs(frozen.reference, None, batch, context, False)[0])
    sampler_BR = batch.rollout.logp_BR
    old_BR = jax.lax.stop_gradient(logp_BR) if batch.old_logp_BR is None else batch.old_logp_BR
    old_BR = jnp.where(jnp.isfinite(sampler_BR), old_BR, jnp.nan)  # a rollout that went wrong is skipped and counted
    differs = context.spec.dtype != "float32" or config.rollout.differs or config.train.rollout_ahead > 0
    extra, mode = dict[str, Any](), correction_mode(algo.importance_sampling_mode, differs)
    if mode != "off":
        extra["weight_BR"] = sampler_weights(
            old_BR, sampler_BR, mask_BR, mode=mode,
            clip_min=algo.importance_sampling_clip_min, clip_max=algo.importance_sampling_clip_max,
        )  # fmt: skip
    if algo.entropy_coef != 0:
        extra["entropy_BR"] = entropy_BR
    loss_sum, count, pairs = policy_loss(
        logp_BR, old_BR, targets.adv, mask_BR, config=algo, ref_logp_BR=ref_logp_BR,
        max_completion_length=config.rollout.max_completion_length, beta=beta, **extra,
    )  # fmt: skip
    if targets.return_BR is not None:
        value_sum, value_pairs = critic_sums(value_BR, batch, targets, count, config)
        loss_sum, pairs = loss_sum + settings_of(algo, PpoConfig).vf_coef * value_sum, pairs | value_pairs
    tokens = mask_BR.sum()
    gap_BR = jnp.where(mask_BR, jnp.abs(old_BR - sampler_BR), 0.0)
    pairs = dict(pairs, **{"sampling/logp_difference/mean": (gap_BR.sum(), tokens)})
    if "weight_BR" in extra:
        pairs["sampling/importance_sampling_ratio/mean"] = (extra["weight_BR"].sum(), tokens)
    if entropy:
        pairs["entropy"] = (jnp.where(mask_BR, jax.lax.stop_gradient(entropy_BR), 0.0).sum(), tokens)
    return loss_sum, (count, pairs, gap_BR.max())


#: `microbatch_sums` and the gradient of the loss sum.
rows_gradient = jax.value_and_grad(microbatch_sums, has_aux=True)


def add_sums(total, new):
    """The sums of two parts of a batch, each as of `rows_gradient`."""
    (old_sum, (old_count, old_pairs, old_gap)), old_grads = total
    (new_sum, (new_count, new_pairs, new_gap)), new_grads = new
    sums = (old_sum, old_count, old_pairs, old_grads), (new_sum, new_count, new_pairs, new_grads)
    loss_sum, count, pairs, grads = jax.tree.map(jnp.add, *sums)
    return (loss_sum, (count, pairs, jnp.maximum(old_gap, new_gap))), grads


def gradient_sums(trained: Trained, frozen: Frozen, beta, rows: tuple[TrainBatch, Targets], context: UpdateContext):
    """Gradient and metrics, summed exactly over microbatches and divided once."""

    def sums(rows, context):
        return rows_gradient(trained, frozen, beta, rows, context=context)

    if context.packed is not None:
        return mean_gradient(context.packed.sums(sums, rows, context, add_sums))
    groups, size = rows[0].prompts.tokens_PT.shape[0], context.config.train.microbatch_prompts

    def piece(fixed, rows):
        return rows_gradient(*fixed, rows, context=context)

    return mean_gradient(data_sums(piece, (trained, frozen, beta), rows, groups, size, add_sums, join_sums))


def mean_gradient(sums) -> tuple[Any, dict[str, jax.Array]]:
    """(gradient, metrics) of the sums of a whole batch, divided once."""
    (loss_sum, (count, pairs, gap)), grads = sums
    divisor = jnp.maximum(count, 1).astype(loss_sum.dtype)
    metrics = {name: jnp.where(den > 0, num / jnp.maximum(den, 1), jnp.nan) for name, (num, den) in pairs.items()}
    metrics |= {"loss": loss_sum / divisor, "sampling/logp_difference/max": gap, "loss/count": count}
    return jax.tree.map(lambda g: g / divisor.astype(g.dtype), grads), metrics


def has_signal(state: TrainState, targets: Targets, config: Config) -> jax.Array:
    """Whether a batch can move anything: a token in the loss, and an advantage, a KL, an entropy bonus or a critic."""
    algo, counts = config.algo, targets.mask_BR.any()
    if algo.entropy_coef or state.critic is not None or (algo.beta > 0 and algo.kl_in == "loss"):
        return counts
    adv = targets.adv if targets.adv.ndim == 2 else targets.adv[:, None]
    return (targets.mask_BR & (adv != 0)).any()  # NaN is not 0


def optimizer_step(
    state: TrainState, grads, optimizer: Optimizer, counts: jax.Array | bool = True, held: jax.Array | bool = False
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step. A gradient that is not finite, or of a batch in which nothing `counts`, changes nothing but
    the counters; `held` parameters stay as they are."""
    norm, before = optax.tree.norm(grads), on_device(state.opt_state)
    moves = (finite := jnp.isfinite(norm)) & counts & ~jnp.asarray(held)
    updates, moments = optimizer.policy.update(grads, before, state.params)
    params = optax.apply_updates(state.params, updates)
    params, moments = select(moves, (params, moments), (state.params, before))
    new_state = dataclasses.replace(
        state, params=params, opt_state=as_before(moments, state.opt_state), step=state.step + 1,
        skipped=state.skipped + (~finite).astype(jnp.int32),
        empty=state.empty + (finite & ~jnp.asarray(counts)).astype(jnp.int32),
    )  # fmt: skip
    (_, updates_made), *_ = optax.tree_utils.tree_get_all_with_path(before, "count")
    metrics = {
        "grad_norm": norm,
        "learning_rate": jnp.where(moves, optimizer.schedule(updates_made), 0.0).astype(jnp.float32),
        "skipped_updates": new_state.skipped,
        STATE_FINITE: all_finite((params, moments)),
        "empty_updates": new_state.empty,
    }
    return new_state, metrics


def update_parameters(
    state: TrainState, frozen: Frozen, batch: TrainBatch, targets: Targets, *, context: UpdateContext
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Gradient and optimizer step towards the targets; traceable."""
    parts, part = in_parts(batch, context)
    found = gradient_sums(*gradient_of(state, frozen, targets), state.beta, (parts, targets), part)
    return apply_gradient(state, batch, targets, found, context)


def gradient_of(state: TrainState, frozen: Frozen, targets: Targets) -> tuple[Trained, Frozen]:
    """What the gradient is taken of, and what else it reads: no reference whose log-probs are there."""
    trained = Trained(state.params, None if state.critic is None else state.critic["params"])
    return trained, frozen if targets.ref_logp_BR is None else dataclasses.replace(frozen, reference=None)


def apply_gradient(state: TrainState, batch: TrainBatch, targets: Targets, found: tuple, context: UpdateContext):
    """The optimizer step of (gradient, metrics) of a batch; traceable. Where it is skipped, critic and beta stay, and
    beta while the critic is trained alone."""
    config, critic, held, (grads, metrics) = context.config, state.critic, jnp.bool_(False), found
    counts = has_signal(state, targets, config)
    moves = counts & jnp.isfinite(optax.tree.norm(grads.policy))
    if critic is not None:
        held = state.step < settings_of(config.algo, PpoConfig).value_pretrain_steps
        critic = select(moves, update_critic(critic, grads.value_head, context.optimizer.critic), critic)
    new_state, optimizer_metrics = optimizer_step(state, grads.policy, context.optimizer, counts, held)
    new_state, metrics = dataclasses.replace(new_state, critic=critic), metrics | optimizer_metrics
    if state.beta is not None:
        metrics["beta"] = state.beta
        if config.algo.kl_target is not None:
            beta = adapted_beta(
                state.beta, metrics["kl"], target=config.algo.kl_target, horizon=config.algo.kl_horizon,
                responses=batch.valid_B.shape[0],
            )  # fmt: skip
            new_state = dataclasses.replace(new_state, beta=select(moves & ~held, beta, state.beta))
    metrics[STATE_FINITE] &= all_finite((new_state.critic, new_state.beta))
    return new_state, metrics
