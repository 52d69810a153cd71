"""The programs of a rollout over a fixed number of slots: prefill of the next prompts, rows into slots, a segment of
tokens, results out of slots, and fewer slots for the last rows. `rollout.refill` decides what runs when.

Rows stay on their device: each of the D devices that hold different rows has S / D slots for the rows of its own
prompts, and numbers of slots, rows and prompts are those on the device.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.records import PromptBatch, Rollout, SamplingParams, pytree
from pbrl_jax.mesh.once import jit_once
from pbrl_jax.mesh.sharding import constrain, on_each_device, partition_spec, row_shards
from pbrl_jax.models.decoder import hidden_states, logits_of
from pbrl_jax.models.layouts import Causal
from pbrl_jax.models.precision import wide_type
from pbrl_jax.models.slots import BLOCK, PromptPart, SlotCache, SlotStep, empty_slots, slot_positions
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.sampling import is_eos, row_keys, sample
from pbrl_jax.rollout.weights import decoding_params, decoding_spec

#: Longer prompts are run in parts of so many tokens.
PREFILL_TOKENS = 1024


@pytree
class Rows:
    """What is known of each slot's row: its number (-1: the slot is free), the tokens sampled so far, the length of its
    prompt, and whether an end of sequence was sampled."""

    row_S: Int[Array, "S"]
    tokens_SR: Int[Array, "S R"]
    logp_SR: Float[Array, "S R"]
    last_S: Int[Array, "S"]
    lengths_S: Int[Array, "S"]
    prompt_S: Int[Array, "S"]
    ended_S: Bool[Array, "S"]
    keys_S: Any

    @property
    def done_S(self) -> Bool[Array, "S"]:
        """Slots without a row that goes on."""
        return self.ended_S | (self.lengths_S >= self.tokens_SR.shape[1]) | (self.row_S < 0)


@pytree
class Slots:
    """The rows in the slots, and their keys and values."""

    rows: Rows
    cache: SlotCache


@pytree
class Staged:
    """Prompts that were run and whose rows wait for slots: keys and values of C prompts, and the first token of each of
    their C * G rows."""

    cache: SlotCache
    lengths_C: Int[Array, "C"]
    token_N: Int[Array, "N"]
    logp_N: Float[Array, "N"]
    ended_N: Bool[Array, "N"]
    keys_N: Any


class Admissions(NamedTuple):
    """Which rows go into which slots, [S, 3] of (slot, row, place among the staged rows), the first `count_D` of each
    device."""

    moves_S3: Any
    count_D: Any


class Until(NamedTuple):
    """When a segment ends: after `steps` tokens, with at most `total` rows going on, or at most `each` on every device.
    """

    steps: Any
    total: Any
    each: Any


def on_devices(function: Callable, *arguments):
    """`function` on each device's part of the arguments, which are sharded by their leading axis, or as caches are."""
    if jax.sharding.get_abstract_mesh().empty:
        return function(*arguments)
    found = jax.eval_shape(function, *arguments)
    specs = jax.tree.map(spec_of, (arguments, found))
    return on_each_device(function, *specs)(*arguments)


def spec_of(leaf) -> PartitionSpec:
    """How an array of this module lies on a mesh."""
    return partition_spec("batch", "kv_heads") if len(leaf.shape) == 4 else partition_spec("batch")


def laid_out(tree):
    """Arrays as `spec_of` says, inside a compiled program."""
    return jax.tree.map(lambda x: constrain(x, "batch", *(["kv_heads"] if x.ndim == 4 else [])), tree)


def empty(prompts: PromptBatch, keys_B, *, spec: DecoderSpec, rows: int, samples: int, max_length: int,
          prompt_length: int):  # fmt: skip
    """(free slots, `rows` on all devices together, for prompts of at most `prompt_length` tokens; a rollout of these
    prompts without a token)."""
    P = prompts.lengths_P.shape[0]
    none = jnp.zeros(rows, jnp.int32)
    cache = empty_slots(spec, rows, slot_positions(prompt_length + max_length))
    blank = jnp.zeros((rows, max_length), jnp.int32)
    logp = jnp.zeros(blank.shape, wide_type(spec.dtype))
    keys = jnp.broadcast_to(keys_B[:1], (rows,))
    slots = Slots(Rows(none - 1, blank, logp, none, none, none, none > 0, keys), cache)
    B = P * samples
    tokens_BR = jnp.zeros((B, max_length), jnp.int32)
    out = Rollout(tokens_BR, tokens_BR[:, 0], jnp.zeros(tokens_BR.shape, logp.dtype), jnp.ones(B, bool))
    return laid_out((slots, out))


def picked(prompts: PromptBatch, keys_B, start_D, *, count: int, samples: int):
    """(the next `count` prompts of each device from its own `start` on, the keys of their rows)."""

    def own(prompts, keys_B, start_D):
        P = prompts.lengths_P.shape[0]
        chosen = jnp.minimum(start_D[0] + jnp.arange(count), P - 1)
        rows = (chosen[:, None] * samples + jnp.arange(samples)[None]).reshape(-1)
        return jax.tree.map(lambda x: x[chosen], prompts), keys_B[rows]

    return on_devices(own, prompts, keys_B, start_D)


def start(params, prompts: PromptBatch, keys_N, sampling: SamplingParams, *, spec: DecoderSpec) -> Staged:
    """Run prompts and sample the first token of each of their rows."""
    C, T = prompts.tokens_PT.shape
    samples = keys_N.shape[0] // C
    size = min(T, PREFILL_TOKENS)
    parts = -(-T // size)
    cache = laid_out(empty_slots(spec, C, T if parts == 1 else slot_positions(parts * size)))
    tokens = jnp.pad(prompts.tokens_PT, ((0, 0), (0, parts * size - T)))
    last_C = prompts.lengths_P - 1

    def part(number, found):
        cache, last_CD = found
        begin = number * size
        place = jnp.broadcast_to(begin + jnp.arange(size)[None], (C, size))
        layout = Causal(place < prompts.lengths_P[:, None]) if parts == 1 else PromptPart(jnp.int32(begin))
        some = jax.lax.dynamic_slice_in_dim(tokens, begin, size, 1)
        hidden, cache = hidden_states(params, spec, some, place, layout, cache)
        inside = jnp.clip(last_C - begin, 0, size - 1)
        here = jnp.take_along_axis(hidden, inside[:, None, None], axis=1)[:, 0]
        return cache, jnp.where((last_C // size == number)[:, None], here, last_CD)

    found = cache, jnp.zeros((C, spec.width), spec.dtype)
    cache, last_CD = part(0, found) if parts == 1 else jax.lax.fori_loop(0, parts, part, found)
    logits_NV = jnp.repeat(logits_of(params, spec, last_CD), samples, axis=0)
    token_N, logp_N = sample(logits_NV, keys_N, 0, sampling)
    return laid_out(Staged(cache, prompts.lengths_P, token_N, logp_N, is_eos(token_N, sampling), keys_N))


def kept(old: Staged, new: Staged, fresh_D) -> Staged:
    """`new` on the devices that are `fresh`, `old` on the others."""
    return on_devices(lambda old, new, fresh: jax.tree.map(functools.partial(jnp.where, fresh[0]), new, old),
                      old, new, fresh_D)  # fmt: skip


def admit(slots: Slots, staged: Staged, moves: Admissions) -> Slots:
    """Rows into slots, one after another: their number differs from time to time and nothing else is copied."""

    def own(slots, staged, moves_S3, count_D):
        samples = staged.token_N.shape[0] // staged.lengths_C.shape[0]

        def put(number, slots: Slots) -> Slots:
            slot, row, place = (moves_S3[number, i] for i in range(3))
            prompt, rows = place // samples, slots.rows
            token, logp = staged.token_N[place], staged.logp_N[place]
            R = rows.tokens_SR.shape[1]

            def at(x, value):
                return x.at[slot].set(value)

            def copied(into, source):
                one = jax.lax.dynamic_slice_in_dim(source, prompt, 1, 0)
                one = one[tuple(slice(0, size) for size in (1, *into.shape[1:]))]
                return jax.lax.dynamic_update_slice(into, one, (slot, 0, 0, 0))

            return Slots(
                Rows(
                    row_S=at(rows.row_S, row),
                    tokens_SR=at(rows.tokens_SR, jnp.zeros(R, jnp.int32).at[0].set(token)),
                    logp_SR=at(rows.logp_SR, jnp.zeros(R, rows.logp_SR.dtype).at[0].set(logp)),
                    last_S=at(rows.last_S, token),
                    lengths_S=at(rows.lengths_S, 1),
                    prompt_S=at(rows.prompt_S, staged.lengths_C[prompt]),
                    ended_S=at(rows.ended_S, staged.ended_N[place]),
                    keys_S=at(rows.keys_S, staged.keys_N[place]),
                ),
                jax.tree.map(copied, slots.cache, staged.cache),
            )

        return jax.lax.fori_loop(0, count_D[0], put, slots)

    return on_devices(own, slots, staged, moves.moves_S3, moves.count_D)


def active_rows(rows: Rows) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Rows that go on: on all devices together, and the most on one device."""
    each_D = (~rows.done_S).reshape(row_shards(), -1).sum(axis=1)
    return each_D.sum(), each_D.max()


def segment(params, slots: Slots, sampling: SamplingParams, until: Until, *, spec: DecoderSpec) -> Slots:
    """Sample on, a token a turn for each row that goes on, until `until`."""
    R, positions = slots.rows.tokens_SR.shape[1], slots.cache.positions

    def goes_on(found) -> Bool[Array, ""]:
        step, slots = found
        total, each = active_rows(slots.rows)
        return (step < until.steps) & (total > until.total) & (each > until.each)

    def body(found):
        step, slots = found
        rows = slots.rows
        done_S = rows.done_S
        # What the slots of rows that are done hold is not read again.
        position_S = jnp.where(done_S, 0, jnp.clip(rows.prompt_S + rows.lengths_S - 1, 0, positions - 1))
        layout = SlotStep(position_S, position_S.max() // BLOCK + 1, spec.decode_attention)
        hidden, cache = hidden_states(params, spec, rows.last_S[:, None], position_S[:, None], layout, slots.cache)
        token_S, logp_S = sample(logits_of(params, spec, hidden[:, 0]), rows.keys_S, rows.lengths_S, sampling)
        here_SR = (jnp.arange(R)[None] == rows.lengths_S[:, None]) & ~done_S[:, None]
        rows = replace(
            rows,
            tokens_SR=jnp.where(here_SR, token_S[:, None], rows.tokens_SR),
            logp_SR=jnp.where(here_SR, logp_S[:, None].astype(rows.logp_SR.dtype), rows.logp_SR),
            last_S=jnp.where(done_S, rows.last_S, token_S),
            lengths_S=rows.lengths_S + (~done_S).astype(jnp.int32),
            ended_S=rows.ended_S | (is_eos(token_S, sampling) & ~done_S),
        )
        return step + 1, Slots(rows, cache)

    _, slots = jax.lax.while_loop(goes_on, body, (jnp.int32(0), slots))
    return laid_out(slots)


def retired(out: Rollout, rows: Rows) -> tuple[Rollout, Bool[Array, "S"]]:
    """(the rollout with what the slots hold, whether each slot's row is done, on every device)."""

    def own(out, rows):
        B = out.lengths_B.shape[0]
        at = jnp.where(rows.row_S < 0, B, rows.row_S)

        def put(x, value):
            return x.at[at].set(value, mode="drop")

        return Rollout(
            put(out.tokens_BR, rows.tokens_SR), put(out.lengths_B, rows.lengths_S),
            put(out.logp_BR, rows.logp_SR), put(out.truncated_B, ~rows.ended_S),
        )  # fmt: skip

    return on_devices(own, out, rows), constrain(rows.done_S, "none")


def narrowed(part, index_S):
    """The slots `index` of an array of slots, on each device."""
    return on_devices(lambda x, index: x[jnp.maximum(index, 0)], part, index_S)


def narrowed_rows(rows: Rows, index_S) -> Rows:
    """The rows of the slots `index`; -1 is a free slot."""
    rows = jax.tree.map(lambda part: narrowed(part, index_S), rows)
    return replace(rows, row_S=jnp.where(index_S < 0, -1, rows.row_S))


class SlotPrograms(NamedTuple):
    """The functions of this module, compiled for a policy; see `slot_programs`."""

    lay: Callable[..., Any]
    keys_of: Callable[..., Any]
    empty: Callable[..., tuple[Slots, Rollout]]
    picked: Callable[..., tuple[PromptBatch, Any]]
    start: Callable[..., Staged]
    kept: Callable[..., Staged]
    admit: Callable[..., Slots]
    segment: jax.stages.Wrapped
    retired: Callable[..., tuple[Rollout, jax.Array]]
    narrowed: Callable[..., Any]
    narrowed_rows: Callable[..., Rows]


@functools.lru_cache(maxsize=64)
def slot_programs(spec: DecoderSpec, samples: int, max_length: int, weights: str) -> SlotPrograms:
    """The programs of rollouts of `samples` responses a prompt of at most `max_length` tokens, once for a process."""
    run = decoding_spec(spec, weights)
    return SlotPrograms(
        lay=jax.jit(functools.partial(decoding_params, spec=spec, weights=weights)),
        keys_of=jit_once(functools.partial(row_keys, samples=samples)),
        empty=jax.jit(
            functools.partial(empty, spec=spec, samples=samples, max_length=max_length),
            static_argnames=("rows", "prompt_length"),
        ),
        picked=jax.jit(functools.partial(picked, samples=samples), static_argnames="count"),
        start=jax.jit(functools.partial(start, spec=run)),
        kept=jax.jit(kept, donate_argnums=0),
        admit=jax.jit(admit, donate_argnums=0),
        segment=jax.jit(functools.partial(segment, spec=run), donate_argnums=1),
        retired=jax.jit(retired, donate_argnums=0),
        narrowed=jax.jit(narrowed),
        narrowed_rows=jax.jit(narrowed_rows),
    )
