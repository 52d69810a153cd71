"""Supervised fine-tuning: cross-entropy on response tokens, the same forward pass and optimizer as the RL update."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from pbrl_jax.config.tree import LoraConfig, OptimConfig, SftConfig
from pbrl_jax.core.records import STATE_FINITE, PromptBatch, TrainState, pytree
from pbrl_jax.core.trees import all_finite, select
from pbrl_jax.mesh.microbatches import data_sums
from pbrl_jax.models.logprobs import response_logprobs, unpacked_streams
from pbrl_jax.models.lora import NO_ADAPTERS
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.train.optimizer import make_optimizer, make_schedule, stage_optimizer
from pbrl_jax.train.sft_packing import PackedRows, packed_logprobs
from pbrl_jax.train.trained import forward_params


@pytree
class SftBatch:
    """Prompts and their responses; `lengths_B` counts response tokens with the end of sequence."""

    prompts: PromptBatch
    tokens_BR: Int[Array, "B R"]
    lengths_B: Int[Array, "B"]


def sft_optimizer_config(config: SftConfig) -> OptimConfig:
    """Warm-up and cosine to zero over the stage's own length."""
    return stage_optimizer(
        config.steps, config.learning_rate, config.warmup_steps, optimizer=config.optimizer, weight_decay=0.01
    )


def sft_sums(params, batch: SftBatch | PackedRows, *, spec: DecoderSpec, chunk: int):
    """(negative log-prob of all response tokens, (their number, no further sums)); prompts carry no loss."""
    if isinstance(batch, PackedRows):
        logp, used = packed_logprobs(params, batch, spec=spec, chunk=chunk), batch.used_XM
    else:
        streams = unpacked_streams(batch.tokens_BR, batch.lengths_B, 1)
        logp, _ = response_logprobs(params, batch.prompts, streams, 1.0, spec=spec, chunk=chunk)
        used = streams.used_PSL
    return -jnp.where(used, logp, 0.0).sum(), (used.sum(), {})


def make_sft_step(
    spec: DecoderSpec, optim: OptimConfig, chunk: int, lora: LoraConfig = NO_ADAPTERS, microbatch: int = 0
) -> Callable:
    """The compiled step `(state, batch, frozen=None) -> (state, metrics)`; the state is donated.

    `frozen` are the weights that adapters stand beside, where `lora.rank` says that adapters are trained; `microbatch`
    is sft.microbatch_size.
    """
    optimizer, schedule = make_optimizer(optim), make_schedule(optim)

    def step(state: TrainState, batch: SftBatch | PackedRows, frozen=None):
        def sums(trained, rows):
            return sft_sums(forward_params(trained, frozen, lora), rows, spec=spec, chunk=chunk)

        grads, metrics = mean_gradient(sums, state.params, batch, len(jax.tree.leaves(batch)[0]), microbatch)
        state = gradient_step(state, grads, optimizer)
        return state, metrics | gradient_metrics(state, grads, schedule)

    return jax.jit(step, donate_argnums=0)


def mean_gradient(sums: Callable, trained, batch, groups: int, microbatch: int):
    """(gradient, metrics) of a mean over a batch: summed over microbatches and divided once.

    Args:
      sums: (trained, rows of the batch) -> (loss sum, (count, metric -> its sum)).
      groups: groups of rows in the batch.
      microbatch: groups whose gradients are computed at a time; 0: all.
    """
    one = jax.value_and_grad(sums, has_aux=True)
    (loss_sum, (count, more)), grads = data_sums(one, trained, batch, groups, microbatch)
    divisor = jnp.maximum(count, 1).astype(loss_sum.dtype)
    metrics = {name: value / divisor.astype(value.dtype) for name, value in ({"loss": loss_sum} | more).items()}
    return jax.tree.map(lambda g: g / divisor.astype(g.dtype), grads), metrics


def gradient_step(state: TrainState, grads, optimizer) -> TrainState:
    """One optimizer step; gradients that are not finite are skipped and counted."""
    finite = jnp.isfinite(optax.tree.norm(grads))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state.params, updates)
    return dataclasses.replace(
        state,
        params=select(finite, params, state.params),
        opt_state=select(finite, opt_state, state.opt_state),
        step=state.step + 1,
        skipped=state.skipped + (~finite).astype(jnp.int32),
    )


def gradient_metrics(state: TrainState, grads, schedule: optax.Schedule | None = None) -> dict[str, jax.Array]:
    """What is told of a `gradient_step`, of the state after it: `grad_norm`, `skipped_updates` of the whole stage,
    whether the state is finite, and with a schedule the update's `learning_rate` (0: it was skipped)."""
    norm, finite = optax.tree.norm(grads), all_finite((state.params, state.opt_state))
    metrics = {"grad_norm": norm, "skipped_updates": state.skipped, STATE_FINITE: finite}
    if schedule is None:
        return metrics
    rate = jnp.asarray(schedule(state.step - state.skipped - 1), jnp.float32)
    return metrics | {"learning_rate": jnp.where(jnp.isfinite(norm), rate, 0.0)}


def pool_counts(shares: Mapping[str, float], batch_size: int) -> dict[str, int]:
    """Rows of each pool in a batch, by largest remainder."""
    raw = {name: share * batch_size for name, share in shares.items()}
    counts = {name: int(value) for name, value in raw.items()}
    order = sorted(raw, key=lambda name: raw[name] - counts[name], reverse=True)
    for name in order[: batch_size - sum(counts.values())]:
        counts[name] += 1
    return counts


def mixed_rows(sizes: Mapping[str, int], counts: Mapping[str, int], seed: int, step: int) -> list[tuple[str, int]]:
    """(pool, row) of each row of batch `step`: every pool is walked in a new order each time it is used up."""
    rows = []
    for name, count in counts.items():
        for place in range(step * count, (step + 1) * count):
            epoch, index = divmod(place, sizes[name])
            rows.append((name, int(_order(sizes[name], seed, name, epoch)[index])))
    return rows


@functools.lru_cache(maxsize=64)
def _order(size: int, seed: int, name: str, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, *name.encode()]).permutation(size)


def pad_sft(prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], prompt_length: int,
            response_length: int) -> SftBatch:  # fmt: skip
    """Rows as arrays; each id list must fit its length."""

    def pad(rows, width):
        tokens = np.zeros((len(rows), width), np.int32)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row
        return jnp.asarray(tokens), jnp.asarray([len(row) for row in rows], jnp.int32)

    prompt_tokens, prompt_lengths = pad(prompt_ids, prompt_length)
    tokens, lengths = pad(response_ids, response_length)
    return SftBatch(PromptBatch(prompt_tokens, prompt_lengths, jnp.arange(len(prompt_ids))), tokens, lengths)
