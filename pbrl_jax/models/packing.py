"""Responses of a group packed into streams, so that the cost of an update follows the tokens produced.

A bucket is the shape that a group's responses are packed into: `streams` streams of `length` slots. Which row goes to
which stream is first fit by decreasing length; within a stream rows keep their order.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pbrl_jax.core.records import PromptBatch, Rollout
from pbrl_jax.models.logprobs import OutputOptions, ResponseStreams, response_outputs, unpacked_streams
from pbrl_jax.models.specs import DecoderSpec


class Bucket(NamedTuple):
    """The streams that the responses to one prompt are packed into."""

    streams: int
    length: int

    @property
    def slots(self) -> int:
        """Response slots of a group."""
        return self.streams * self.length


class SlotCost(NamedTuple):
    """What a response slot costs in one layer, in operations: matrix products, and each key that it attends to."""

    products: float
    key: float
    prompt_length: int

    def of(self, bucket: Bucket) -> float:
        """The cost of a group's response slots: every slot attends to the prompt and to its own stream."""
        return bucket.slots * (self.products + self.key * (self.prompt_length + bucket.length))


def slot_cost(spec: DecoderSpec, prompt_length: int) -> SlotCost:
    """The cost of slots of a policy; its output matrix is divided over the layers."""
    heads, D = 2 * spec.heads + 2 * spec.kv_heads, spec.width
    ffn = spec.ffn * (spec.experts_per_token if spec.experts else 1)
    products = heads * spec.head_dim * D + 3 * D * ffn + D * spec.vocab_size / spec.layers
    return SlotCost(2.0 * products, 4.0 * spec.heads * spec.head_dim, prompt_length)


#: The smallest bucket is this share of G * R slots.
SMALLEST_SHARE = 1 / 16
#: How much more than its share of slots a bucket may cost, for longer streams, which leave fewer slots empty.
STREAM_COST = 1.1


def packed_buckets(samples: int, max_length: int, cost: SlotCost, ratio: float = 2**-0.5) -> tuple[Bucket, ...]:
    """Buckets of groups of `samples` rows, by rising cost; the last one is unpacked, one stream per row.

    Each has about `ratio` of the slots of the next one, in as few streams as attention allows: a stream twice as long
    costs twice the keys a slot. None costs as much as unpacked.
    """
    unpacked, found = Bucket(samples, max_length), list[Bucket]()
    slots = ratio * unpacked.slots
    while slots >= SMALLEST_SHARE * unpacked.slots * 0.99:
        for streams in range(1, max(2, samples)):
            bucket = Bucket(streams, 8 * int(np.ceil(slots / streams / 8)))
            if streams > 1 and bucket.length < max_length:
                break
            share = bucket.slots / unpacked.slots
            if cost.of(bucket) < min(1.0, STREAM_COST * share) * cost.of(unpacked):
                found.append(bucket)
                break
        slots *= ratio
    return (*sorted(set(found), key=cost.of), unpacked)


def fits(lengths_XG: np.ndarray, bucket: Bucket) -> np.ndarray:
    """Whether each group's rows fit the bucket, [X]; on the host."""
    lengths_XG = np.asarray(lengths_XG)
    X, G = lengths_XG.shape
    if bucket.streams >= G:
        return np.asarray((lengths_XG <= bucket.length).all(axis=1))
    filled_XS, inside_X = np.zeros((X, bucket.streams), int), np.ones(X, bool)
    for length_X in -np.sort(-lengths_XG, axis=1).T:
        room_XS = filled_XS + length_X[:, None] <= bucket.length
        inside_X &= room_XS.any(axis=1)
        filled_XS[np.arange(X), room_XS.argmax(axis=1)] += length_X
    return inside_X


def place_rows(lengths_PG: Int[Array, "P G"], bucket: Bucket):
    """(stream and first slot of every row, [P, G] each; whether each group's rows fit, [P]); traceable."""
    P, G = lengths_PG.shape
    order_PG = jnp.argsort(-lengths_PG, axis=1, stable=True)
    sorted_PG = jnp.take_along_axis(lengths_PG, order_PG, axis=1)
    filled_PS, inside_P, streams = jnp.zeros((P, bucket.streams), jnp.int32), jnp.ones((P,), bool), []
    for g in range(G):
        room_PS = filled_PS + sorted_PG[:, g, None] <= bucket.length
        inside_P &= room_PS.any(axis=1)
        stream_P = jnp.argmax(room_PS, axis=1)
        filled_PS += jnp.where(jnp.arange(bucket.streams)[None] == stream_P[:, None], sorted_PG[:, g, None], 0)
        streams.append(stream_P)
    stream_PG = jnp.take_along_axis(jnp.stack(streams, axis=1), jnp.argsort(order_PG, axis=1), axis=1)
    beside_PGG = (stream_PG[:, :, None] == stream_PG[:, None, :]) & jnp.tril(jnp.ones((1, G, G), bool), -1)
    start_PG = jnp.where(beside_PGG, lengths_PG[:, None, :], 0).sum(axis=-1)
    return stream_PG, start_PG, inside_P


def pack_streams(tokens_BR: Int[Array, "B R"], lengths_B: Int[Array, "B"], samples: int, bucket: Bucket):
    """The streams of each prompt that hold the group's responses.

    Requires that every group's rows fit the bucket (see fits).
    """
    R = tokens_BR.shape[1]
    lengths_PG = lengths_B.reshape(-1, samples)
    P = lengths_PG.shape[0]
    stream_PG, start_PG, _ = place_rows(lengths_PG, bucket)
    first_PG = stream_PG * bucket.length + start_PG
    slot_1M1 = jnp.arange(bucket.slots)[None, :, None]
    holds_PMG = (first_PG[:, None] <= slot_1M1) & (slot_1M1 < (first_PG + lengths_PG)[:, None])
    row_PM, used_PM = jnp.argmax(holds_PMG, axis=-1), holds_PMG.any(axis=-1)
    first_PM = jnp.take_along_axis(first_PG, row_PM, axis=1)
    offset_PM = jnp.clip(slot_1M1[..., 0] - first_PM, 0, R - 1)
    tokens_PM = jnp.take_along_axis(tokens_BR.reshape(P, samples * R), row_PM * R + offset_PM, axis=1)
    parts = (tokens_PM, row_PM.astype(jnp.int32), offset_PM, used_PM)
    return ResponseStreams(*(x.reshape(P, bucket.streams, bucket.length) for x in parts))


def unpack(values_PSL: Float[Array, "P S L"], lengths_B: Int[Array, "B"], samples: int, max_length: int):
    """Values of packed streams as [B, R]; slots past a row's length hold 0."""
    P, S, L = values_PSL.shape
    lengths_PG = lengths_B.reshape(P, samples)
    stream_PG, start_PG, _ = place_rows(lengths_PG, Bucket(S, L))
    offset_11R = jnp.arange(max_length)[None, None]
    index_PGR = jnp.minimum((stream_PG * L + start_PG)[..., None] + offset_11R, S * L - 1)
    taken = jnp.take_along_axis(values_PSL.reshape(P, S * L), index_PGR.reshape(P, samples * max_length), axis=1)
    inside = offset_11R < lengths_PG[..., None]
    return jnp.where(inside.reshape(P, -1), taken, 0.0).reshape(P * samples, max_length)


def rollout_outputs(
    params, value_head, prompts: PromptBatch, rollout: Rollout, bucket: Bucket | None, options: OutputOptions
):
    """Log-probs, entropies and values of the rows of a rollout, [B, R]; None for what is not asked for.

    Args:
      bucket: the streams of a group; None, or as many streams as rows: one per row.
    """
    B, R = rollout.tokens_BR.shape
    G = B // prompts.lengths_P.shape[0]
    if packed := bucket is not None and bucket != (G, R):
        streams = pack_streams(rollout.tokens_BR, rollout.lengths_B, G, bucket)
    else:
        streams = unpacked_streams(rollout.tokens_BR, rollout.lengths_B, G)
    outputs = response_outputs(params, value_head, prompts, streams, options._replace(packed=G if packed else 0))

    def rows(x):
        if x is None:
            return None
        return unpack(x, rollout.lengths_B, G, R) if packed else x.reshape(B, R)

    return tuple(rows(x) for x in outputs)
