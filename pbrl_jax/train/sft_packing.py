"""Supervised rows side by side in streams of fixed length, so that a step's cost follows its tokens."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from pbrl_jax.core.records import pytree
from pbrl_jax.models.decoder import hidden_states
from pbrl_jax.models.layouts import Packed
from pbrl_jax.models.logprobs import chunked_logprobs
from pbrl_jax.models.precision import widened
from pbrl_jax.models.specs import DecoderSpec

#: Streams of a batch come in multiples of it, so that few programs are compiled.
STREAM_STEP = 8
#: Response slots of a stream come in multiples of it.
SLOT_STEP = 16


@pytree
class PackedRows:
    """X streams of L tokens. `slot_XM` are the places of response tokens in their stream, where `used_XM`."""

    tokens_XL: Int[Array, "X L"]
    position_XL: Int[Array, "X L"]
    segment_XL: Int[Array, "X L"]
    slot_XM: Int[Array, "X M"]
    used_XM: Bool[Array, "X M"]


def assign_streams(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows of each stream: longest first, each into the first stream with room (first fit decreasing).

    No length may be above `size`.
    """
    streams: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((i for i, free in enumerate(room) if free >= lengths[row]), len(streams))
        if place == len(streams):
            streams.append([])
            room.append(size)
        streams[place].append(row)
        room[place] -= lengths[row]
    return streams


def pack_rows(prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], size: int, shards: int = 1,
              microbatch: int = 0) -> PackedRows:  # fmt: skip
    """Rows of (prompt, response) tokens in streams of `size` tokens; each must fit one.

    Their number is a multiple of `shards`, the devices that share them, and of `microbatch` where it is above it.
    """
    streams = assign_streams([len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)], size)
    step = microbatch if 0 < microbatch < len(streams) else math.lcm(STREAM_STEP, shards)
    X = -(-len(streams) // step) * step
    slots = max(sum(len(response_ids[row]) for row in rows) for rows in streams)
    M = min(-(-slots // SLOT_STEP) * SLOT_STEP, size)
    tokens, position, segment = (np.zeros((X, size), np.int32) for _ in range(3))
    slot, used = np.zeros((X, M), np.int32), np.zeros((X, M), bool)
    for x, rows in enumerate(streams):
        at = filled = 0
        for number, row in enumerate(rows, start=1):
            prompt, text = len(prompt_ids[row]), [*prompt_ids[row], *response_ids[row]]
            tokens[x, at : at + len(text)], segment[x, at : at + len(text)] = text, number
            position[x, at : at + len(text)] = np.arange(len(text))
            answer = len(text) - prompt
            slot[x, filled : filled + answer] = np.arange(at + prompt, at + len(text))
            used[x, filled : filled + answer] = True
            at, filled = at + len(text), filled + answer
    return PackedRows(*(jnp.asarray(x) for x in (tokens, position, segment, slot, used)))


def packed_logprobs(params, rows: PackedRows, *, spec: DecoderSpec, chunk: int):
    """Log-probs of all response slots, [X, M]; those that are not used hold finite numbers of no meaning.

    A prompt has at least one token, so the token before a response token lies in its own row.
    """
    hidden, _ = hidden_states(params, spec, rows.tokens_XL, rows.position_XL, Packed(rows.segment_XL))
    before_XM = jnp.maximum(rows.slot_XM - 1, 0)
    # Wide, since slots that are not used all point to one place, where their gradients are added.
    hidden_XMD = jnp.take_along_axis(widened(hidden), before_XM[..., None], axis=1).astype(hidden.dtype)
    tokens_XM = jnp.take_along_axis(rows.tokens_XL, rows.slot_XM, axis=1)
    return chunked_logprobs(params, spec, hidden_XMD, tokens_XM, 1.0, chunk)[0]
