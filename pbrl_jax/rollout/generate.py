"""Sampling responses as one pure function, which can be traced into a larger program: the prompt once per group, then
one compiled loop over tokens. With a host between segments of tokens, `rollout.refill` does the same in less time.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.config.tree import AlgoConfig, RolloutConfig
from pbrl_jax.core.records import PromptBatch, Rollout, SamplingParams, pytree
from pbrl_jax.mesh.sharding import constrain
from pbrl_jax.models.decoder import hidden_states, layer_inputs, logits_of, unstack_layers
from pbrl_jax.models.layouts import Causal
from pbrl_jax.models.slots import SharedStep, SlotCache, empty_slots
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.sampling import is_eos, row_keys, sample

#: The cache of the responses, which attention reads whole at every token, grows in doubling windows from this size.
FIRST_WINDOW = 128


@pytree
class DecodeState:
    """The decoding loop's whole state, per row: what was sampled, where each row stands, and its own cache."""

    slot: Int[Array, ""]
    tokens_BR: Int[Array, "B R"]
    logp_BR: Float[Array, "B R"]
    last_B: Int[Array, "B"]
    lengths_B: Int[Array, "B"]
    done_B: Bool[Array, "B"]
    position_B: Int[Array, "B"]
    keys_B: Any
    own: SlotCache
    prompt: SlotCache
    prompt_lengths_P: Int[Array, "P"]


def windows(max_length: int) -> tuple[int, ...]:
    """Doubling window sizes up to max_length: 128, 256, ..., max_length."""
    sizes = []
    size = FIRST_WINDOW
    while size < max_length:
        sizes.append(size)
        size *= 2
    return (*sizes, max_length)


def on_mesh(cache: SlotCache) -> SlotCache:
    """A cache laid out as its rows and heads are; left to itself the compiler keeps it whole on every device."""
    return jax.tree.map(lambda part: constrain(part, "batch", "kv_heads", "none", "none"), cache)


def prefill(params, prompts: PromptBatch, keys_B, sampling: SamplingParams, *, spec: DecoderSpec, samples: int,
            max_length: int) -> DecodeState:  # fmt: skip
    """Run each prompt once, cache its keys, and sample the first token of each of its `samples` rows."""
    P, T = prompts.tokens_PT.shape
    B = P * samples
    positions = jnp.arange(T)[None]
    valid_PT = positions < prompts.lengths_P[:, None]
    empty = on_mesh(empty_slots(spec, P, T))
    hidden, cache = hidden_states(
        params, spec, prompts.tokens_PT, jnp.broadcast_to(positions, (P, T)), Causal(valid_PT), empty
    )
    last = jnp.take_along_axis(hidden, (prompts.lengths_P - 1)[:, None, None], axis=1)[:, 0]
    logits_BV = jnp.repeat(logits_of(params, spec, last), samples, axis=0)
    token_B, logp_B = sample(logits_BV, keys_B, 0, sampling)
    zeros_BR = constrain(jnp.zeros((B, max_length), jnp.int32), "batch", "none")
    return DecodeState(
        slot=jnp.int32(0),
        tokens_BR=zeros_BR.at[:, 0].set(token_B),
        logp_BR=zeros_BR.astype(logp_B.dtype).at[:, 0].set(logp_B),
        last_B=token_B,
        lengths_B=jnp.ones(B, jnp.int32),
        done_B=is_eos(token_B, sampling),
        position_B=jnp.repeat(prompts.lengths_P, samples, axis=0).astype(jnp.int32),
        keys_B=keys_B,
        own=on_mesh(empty_slots(spec, B, windows(max_length)[0])),
        prompt=on_mesh(cache),
        prompt_lengths_P=prompts.lengths_P,
    )


def grow(state: DecodeState, window: int) -> DecodeState:
    """The state with room for `window` tokens a response in its cache; traceable."""
    return replace(state, own=on_mesh(state.own.grown(window)))


def decode(params, state: DecodeState, sampling: SamplingParams, stop, *, spec: DecoderSpec) -> DecodeState:
    """Sample on until slot `stop`, until the cache is full, or until every row is done.

    Args:
      params: from `decoding_params`; others are taken apart at every call.
      stop: last slot to fill (slot s holds the s-th sampled token, from 0).
    """
    last_slot = jnp.minimum(stop, state.own.positions - 1)
    tables = layer_inputs(jnp.arange(state.prompt.positions + state.own.positions)[None], spec)

    def body(state: DecodeState) -> DecodeState:
        layout, place_B1 = SharedStep(state.prompt, state.prompt_lengths_P, state.slot), state.position_B[:, None]
        hidden, own = hidden_states(params, spec, state.last_B[:, None], place_B1, layout, state.own, tables)
        slot = state.slot + 1
        token_B, logp_B = sample(logits_of(params, spec, hidden[:, 0]), state.keys_B, slot, sampling)
        token_B = jnp.where(state.done_B, 0, token_B)
        logp_B = jnp.where(state.done_B, 0.0, logp_B)
        return DecodeState(
            slot=slot,
            tokens_BR=jax.lax.dynamic_update_slice(state.tokens_BR, token_B[:, None], (0, slot)),
            logp_BR=jax.lax.dynamic_update_slice(state.logp_BR, logp_B[:, None], (0, slot)),
            last_B=token_B,
            lengths_B=state.lengths_B + (~state.done_B).astype(jnp.int32),
            done_B=state.done_B | is_eos(token_B, sampling),
            position_B=state.position_B + 1,
            keys_B=state.keys_B,
            own=own,
            prompt=state.prompt,
            prompt_lengths_P=state.prompt_lengths_P,
        )

    return jax.lax.while_loop(lambda s: (s.slot < last_slot) & ~s.done_B.all(), body, state)


def finish(state: DecodeState) -> Rollout:
    """The rollout of a decoded state."""
    return Rollout(state.tokens_BR, state.lengths_B, state.logp_BR, ~state.done_B)


def generate_samples(params, prompts: PromptBatch, key, sampling: SamplingParams, *, spec: DecoderSpec, samples: int,
                     max_length: int) -> Rollout:  # fmt: skip
    """`samples` responses of at most `max_length` tokens to each prompt, as one traceable function."""
    keys_B, params = row_keys(key, prompts.row_ids_P, samples), unstack_layers(params)
    state = prefill(params, prompts, keys_B, sampling, spec=spec, samples=samples, max_length=max_length)
    for window in windows(max_length):
        state = decode(params, grow(state, window), sampling, window - 1, spec=spec)
    return finish(state)


def generate(policy_params, prompts: PromptBatch, key, sampling: SamplingParams, *, spec: DecoderSpec,
             config: RolloutConfig, algo: AlgoConfig = AlgoConfig()) -> Rollout:  # fmt: skip
    """`algo.num_generations` responses to each prompt.

    Args:
      policy_params: the decoder's parameters.
      prompts: P right-padded prompts.
      key: the rollout's key; rows derive theirs from it, the prompt's id and the sample's number.
      sampling: settings as arrays (see sampling_params).
      spec, config, algo: static.
    """
    return generate_samples(
        policy_params, prompts, key, sampling,
        spec=spec, samples=algo.num_generations, max_length=config.max_completion_length,
    )  # fmt: skip
