"""Responses of a group concatenated in one stream, so that the cost of an update follows the tokens produced."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pbrl_jax.core.records import PromptBatch, Rollout
from pbrl_jax.models.logprobs import OutputOptions, ResponseStreams, response_outputs, unpacked_streams

#: Packed stream lengths, as shares of G * R. A batch that needs more is updated unpacked.
BUCKET_SHARES = (0.125, 0.25, 0.5)


def packed_buckets(samples: int, max_length: int) -> tuple[int, ...]:
    """Stream lengths a packed update is compiled for; multiples of 8 that are at least one response long."""
    sizes = {int(np.ceil(samples * max_length * share / 8)) * 8 for share in BUCKET_SHARES}
    return tuple(sorted(size for size in sizes if max_length <= size < samples * max_length))


def choose_bucket(lengths_B: np.ndarray, samples: int, max_length: int) -> int:
    """The smallest bucket that holds every group's tokens, or 0: do not pack."""
    longest = int(np.asarray(lengths_B).reshape(-1, samples).sum(axis=1).max())
    return next((size for size in packed_buckets(samples, max_length) if size >= longest), 0)


def pack_streams(tokens_BR: Int[Array, "B R"], lengths_B: Int[Array, "B"], samples: int, bucket: int):
    """One stream of `bucket` slots per prompt that holds the group's responses one after another.

    Requires that every group's tokens fit the bucket (see choose_bucket).
    """
    R = tokens_BR.shape[1]
    lengths_PG = lengths_B.reshape(-1, samples)
    ends_PG = jnp.cumsum(lengths_PG, axis=1)
    slot_1L1 = jnp.arange(bucket)[None, :, None]
    row_PL = jnp.minimum((ends_PG[:, None, :] <= slot_1L1).sum(axis=-1), samples - 1)
    start_PL = jnp.take_along_axis(ends_PG - lengths_PG, row_PL, axis=1)
    offset_PL = jnp.clip(slot_1L1[..., 0] - start_PL, 0, R - 1)
    tokens_PL = jnp.take_along_axis(tokens_BR.reshape(-1, samples * R), row_PL * R + offset_PL, axis=1)
    used_PL = slot_1L1[..., 0] < ends_PG[:, -1:]
    return ResponseStreams(tokens_PL[:, None], row_PL[:, None], offset_PL[:, None], used_PL[:, None])


def unpack(values_PSL: Float[Array, "P S L"], lengths_B: Int[Array, "B"], samples: int, max_length: int):
    """Values of a packed stream as [B, R]; slots past a row's length hold 0."""
    P, _, L = values_PSL.shape
    lengths_PG = lengths_B.reshape(P, samples)
    start_PG = jnp.cumsum(lengths_PG, axis=1) - lengths_PG
    offset_11R = jnp.arange(max_length)[None, None]
    index_PGR = jnp.minimum(start_PG[..., None] + offset_11R, L - 1)
    taken = jnp.take_along_axis(values_PSL.reshape(P, L), index_PGR.reshape(P, samples * max_length), axis=1)
    inside = offset_11R < lengths_PG[..., None]
    return jnp.where(inside.reshape(P, -1), taken, 0.0).reshape(P * samples, max_length)


def rollout_outputs(params, value_head, prompts: PromptBatch, rollout: Rollout, bucket: int, options: OutputOptions):
    """Log-probs, entropies and values of the rows of a rollout, [B, R]; None for what is not asked for.

    Args:
      bucket: slots of a packed stream; 0: one stream per row.
    """
    B, R = rollout.tokens_BR.shape
    G = B // prompts.lengths_P.shape[0]
    if bucket:
        streams = pack_streams(rollout.tokens_BR, rollout.lengths_B, G, bucket)
    else:
        streams = unpacked_streams(rollout.tokens_BR, rollout.lengths_B, G)
    outputs = response_outputs(params, value_head, prompts, streams, options._replace(packed=G if bucket else 0))

    def rows(x):
        if x is None:
            return None
        return unpack(x, rollout.lengths_B, G, R) if bucket else x.reshape(B, R)

    return tuple(rows(x) for x in outputs)
