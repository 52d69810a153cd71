"""Sampling responses: the prompt once per group, then one compiled loop over tokens.

`generate` is a pure function and can be traced into a larger program. `Programs` are the same parts compiled apart
(prefill, and one decode program per window size), so that a host can look outside between segments of tokens.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.config.tree import AlgoConfig, RolloutConfig
from pbrl_jax.core.records import PromptBatch, Rollout, SamplingParams, pytree
from pbrl_jax.core.stopping import Interrupted
from pbrl_jax.mesh.sharding import constrain
from pbrl_jax.models.decoder import hidden_states, logits_of, unstack_layers
from pbrl_jax.models.layouts import Causal, DecodeStep, KVCache, empty_cache
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.sampling import is_eos, row_keys, sample
from pbrl_jax.rollout.weights import decoding_params, decoding_spec

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
    own: KVCache
    prompt: KVCache
    prompt_valid_PT: Bool[Array, "P T"]


def windows(max_length: int) -> tuple[int, ...]:
    """Doubling window sizes up to max_length: 128, 256, ..., max_length."""
    sizes = []
    size = FIRST_WINDOW
    while size < max_length:
        sizes.append(size)
        size *= 2
    return (*sizes, max_length)


def on_mesh(cache: KVCache) -> KVCache:
    """A cache laid out as its rows and heads are; left to itself the compiler keeps it whole on every device."""
    return jax.tree.map(lambda part: constrain(part, "batch", "kv_heads", "none", "none"), cache)


def prefill(params, prompts: PromptBatch, keys_B, sampling: SamplingParams, *, spec: DecoderSpec, samples: int,
            max_length: int) -> DecodeState:  # fmt: skip
    """Run each prompt once, cache its keys, and sample the first token of each of its `samples` rows."""
    P, T = prompts.tokens_PT.shape
    B = P * samples
    positions = jnp.arange(T)[None]
    valid_PT = positions < prompts.lengths_P[:, None]
    empty = on_mesh(empty_cache(spec, P, T))
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
        own=on_mesh(empty_cache(spec, B, windows(max_length)[0])),
        prompt=on_mesh(cache),
        prompt_valid_PT=valid_PT,
    )


def grow(state: DecodeState, window: int) -> DecodeState:
    """The state with room for `window` tokens a response in its cache; traceable."""
    return replace(state, own=on_mesh(state.own.grown(window)))


@functools.partial(jax.jit, static_argnames="window")
def grown_part(part, window: int):
    """One array of a cache with more room."""
    return on_mesh(KVCache((part,), ()).grown(window)).key[0]


def widen(state: DecodeState, window: int) -> DecodeState:
    """`grow` on arrays: layer by layer, each old array let go at once, so that no second cache is held."""

    def one(part):
        new = grown_part(part, window)
        part.delete()
        return new

    return replace(state, own=jax.tree.map(one, state.own))


def decode(params, state: DecodeState, sampling: SamplingParams, stop, *, spec: DecoderSpec) -> DecodeState:
    """Sample on until slot `stop`, until the cache is full, or until every row is done.

    Args:
      params: from `decoding_params`; others are taken apart at every call.
      stop: last slot to fill (slot s holds the s-th sampled token, from 0).
    """
    last_slot = jnp.minimum(stop, state.own.positions - 1)

    def body(state: DecodeState) -> DecodeState:
        layout = DecodeStep(state.prompt, state.prompt_valid_PT, state.slot)
        hidden, own = hidden_states(params, spec, state.last_B[:, None], state.position_B[:, None], layout, state.own)
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
            prompt_valid_PT=state.prompt_valid_PT,
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


class Programs(NamedTuple):
    """The compiled parts of a rollout, and the loop over them that every caller uses.

    `lay(params)` gives the parameters as decoding reads them, `keys_of(key, row_ids_P)` the keys of the rows,
    `start(laid, prompts, keys_B, sampling)` is prefill and `segment(laid, state, sampling, stop)` is decode, which
    reuses the state's memory.
    """

    max_length: int
    segment_length: int
    lay: Callable[..., Any]
    keys_of: Callable[..., Any]
    start: Callable[..., DecodeState]
    segment: Callable[..., DecodeState]

    def states(self, params, prompts: PromptBatch, key, sampling: SamplingParams) -> Iterator[DecodeState]:
        """The state after the first token, then after every segment, at full length. The next segment runs when the
        next state is asked for, and the arrays of the state before it are then gone.
        """
        params = self.lay(params)
        state = self.start(params, prompts, self.keys_of(key, prompts.row_ids_P), sampling)
        yield state
        filled = 0
        for window in windows(self.max_length):
            state = state if state.own.positions == window else widen(state, window)
            while filled < window - 1:
                filled = min(filled + self.segment_length, window - 1)
                state = self.segment(params, state, sampling, jnp.int32(filled))
                yield state

    def rollout(self, params, prompts: PromptBatch, key, sampling: SamplingParams, should_stop=None) -> Rollout:
        """The rollout. After each segment the host calls `should_stop()` and reads whether all rows are done.

        Raises:
          Interrupted: `should_stop()` is true.
        """
        states = self.states(params, prompts, key, sampling)
        state = next(states)
        for state in states:
            if should_stop is not None and should_stop():
                raise Interrupted
            if bool(state.done_B.all()):
                break
        return finish(state)


def make_programs(spec: DecoderSpec, samples: int, max_length: int, segment_length: int,
                  weights: str = "whole") -> Programs:  # fmt: skip
    """Programs for `samples` responses a prompt of at most `max_length` tokens, in segments of `segment_length`;
    `weights`: as `rollout.weights` of the config.

    Nothing is compiled after the first full-length rollout of a shape.
    """
    run = decoding_spec(spec, weights)
    return Programs(
        max_length,
        segment_length,
        jax.jit(functools.partial(decoding_params, spec=spec, weights=weights)),
        jax.jit(functools.partial(row_keys, samples=samples)),
        jax.jit(functools.partial(prefill, spec=run, samples=samples, max_length=max_length)),
        jax.jit(functools.partial(decode, spec=run), donate_argnums=1),
    )


def make_generate(spec: DecoderSpec, samples: int, max_length: int, segment_length: int,
                  weights: str = "whole") -> Callable[..., Rollout]:  # fmt: skip
    """`(params, prompts, key, sampling, should_stop=None) -> Rollout`: `Programs.rollout`, as training uses it."""
    return make_programs(spec, samples, max_length, segment_length, weights).rollout
