"""Log-probs of responses: shared prefix, packing and chunks against a plain causal forward of each full row.

In float64, so that a leak between rows or segments cannot hide under a tolerance.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    array_sizes,
    full_rows,
    largest_difference,
    quick_compiles,  # noqa: F401
    tiny_params,
    tiny_prompts,
    tiny_rollout,
    tiny_spec,
)

from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.models.logprobs import chunk_positions, response_logprobs, unpacked_streams
from pbrl_jax.models.packing import Bucket, SlotCost, fits, pack_streams, packed_buckets, slot_cost, unpack

SPEC = tiny_spec(dtype="float64", tied_embeddings=False)
G, R, T = 3, 8, 5
TEMPERATURE = 0.7
#: Two prompts of different lengths; responses of one token, of all eight, and between.
PROMPT_LENGTHS, LENGTHS = (5, 3), (1, 8, 4, 2, 3, 1)
BUCKET = Bucket(1, 16)


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def inputs(double_precision):
    prompts, rollout = tiny_prompts(SPEC, PROMPT_LENGTHS, T), tiny_rollout(SPEC, LENGTHS, R)
    mask = jnp.arange(R)[None] < rollout.lengths_B[:, None]
    return tiny_params(SPEC, dtype=np.float64), prompts, rollout, mask


def weights():
    """What the gradient is taken of: a random weight on each log-prob."""
    return jnp.asarray(np.random.default_rng(5).normal(size=(len(LENGTHS), R)))


@pytest.fixture(scope="module")
def plain(inputs):
    """(log-probs, entropies, gradient) by one causal forward over [prompt, response] rows."""
    params, prompts, rollout, mask = inputs
    tokens, seen, starts = full_rows(prompts, rollout)
    before = np.minimum(starts[:, None] - 1 + np.arange(R)[None], T + R - 1)

    def total(params):
        logits = causal_logits(params, SPEC, tokens, seen)[np.arange(len(starts))[:, None], before] / TEMPERATURE
        every = jax.nn.log_softmax(logits)
        logp = jnp.take_along_axis(every, rollout.tokens_BR[..., None], axis=-1)[..., 0]
        entropy = -(jnp.exp(every) * every).sum(axis=-1)
        return jnp.where(mask, weights() * logp, 0).sum(), (logp, entropy)

    gradient, (logp, entropy) = jax.jit(jax.grad(total, has_aux=True))(params)
    return np.where(mask, logp, 0), np.where(mask, entropy, 0), gradient


@functools.cache
def program(chunk: int, bucket: Bucket | None = None, attention: str = "auto"):
    """The same three from the shared prefix, packed into `bucket` where there is one."""
    spec = tiny_spec(dtype="float64", tied_embeddings=False, attention=attention)
    pack = functools.partial(pack_streams, bucket=bucket) if bucket else unpacked_streams

    def run(params, prompts, rollout, mask):
        def rows(x):
            return unpack(x, rollout.lengths_B, G, R) if bucket else jnp.where(mask, x.reshape(mask.shape), 0)

        def total(params):
            logp, entropy = response_logprobs(
                params, prompts, pack(rollout.tokens_BR, rollout.lengths_B, G), TEMPERATURE,
                spec=spec, chunk=chunk, packed=G * bool(bucket), entropy=True,
            )  # fmt: skip
            return (weights() * rows(logp)).sum(), (rows(logp), rows(entropy))

        gradient, (logp, entropy) = jax.grad(total, has_aux=True)(params)
        return logp, entropy, gradient

    return jax.jit(run)


#: Chunks of 7 over two prompts leave a remainder.
PROGRAMS = {
    "shared_prefix": {"chunk": 1000},
    "chunks": {"chunk": 7, "attention": "chunked"},
    "packed": {"chunk": 10, "bucket": BUCKET},
    "two_streams": {"chunk": 10, "bucket": Bucket(2, 8)},
    "chosen": {"chunk": 0},
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_equals_plain_forward(inputs, plain, name):
    """Values, entropies and gradients."""
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[2])) > 1e-2
    assert np.abs(plain[0]).max() > 3 and np.abs(plain[1]).max() > 1
    assert largest_difference(program(**PROGRAMS[name])(*inputs), plain) < 1e-11


@pytest.mark.parametrize("name", ["shared_prefix", "packed", "two_streams"])
def test_garbage_in_unused_slots_changes_nothing(inputs, name):
    """Padding of prompts and responses is not read, in value or gradient."""
    params, prompts, rollout, mask = inputs
    real = np.arange(T)[None] < np.asarray(prompts.lengths_P)[:, None]
    other = dataclasses.replace(prompts, tokens_PT=jnp.where(real, prompts.tokens_PT, 1))
    garbage = dataclasses.replace(rollout, tokens_BR=jnp.where(mask, rollout.tokens_BR, 60))
    assert not np.array_equal(other.tokens_PT, prompts.tokens_PT)
    assert not np.array_equal(garbage.tokens_BR, rollout.tokens_BR)
    run = program(**PROGRAMS[name])
    assert largest_difference(run(params, other, garbage, mask), run(*inputs)) == 0


def test_packing_by_hand():
    """Lengths 2, 1 and 3 in a stream of eight slots."""
    tokens = jnp.array([[10, 11, 99], [20, 99, 99], [30, 31, 32]])
    lengths = jnp.array([2, 1, 3])
    streams = pack_streams(tokens, lengths, 3, Bucket(1, 8))
    assert streams.tokens_PSL[0, 0, :6].tolist() == [10, 11, 20, 30, 31, 32]
    assert streams.row_PSL[0, 0, :6].tolist() == [0, 0, 1, 2, 2, 2]
    assert streams.offset_PSL[0, 0, :6].tolist() == [0, 1, 0, 0, 1, 2]
    assert streams.used_PSL[0, 0].tolist() == [True] * 6 + [False] * 2
    back = unpack(jnp.where(streams.used_PSL, streams.tokens_PSL, 77).astype(jnp.float32), lengths, 3, 3)
    assert back.tolist() == [[10, 11, 0], [20, 0, 0], [30, 31, 32]]


def test_two_streams_by_hand():
    """Lengths 2, 5, 3 and 1 in two streams of six slots: 5 and 1, then 3 and 2, in the order of the rows."""
    tokens = jnp.array([[10, 11, 0, 0, 0], [20, 21, 22, 23, 24], [30, 31, 32, 0, 0], [40, 0, 0, 0, 0]])
    bucket, lengths = Bucket(2, 6), jnp.array([2, 5, 3, 1])
    assert fits(np.asarray(lengths)[None], bucket).tolist() == [True]
    assert fits(np.array([[4, 4, 2, 2], [4, 4, 4, 1]]), bucket).tolist() == [True, False]
    streams = pack_streams(tokens, lengths, 4, bucket)
    assert streams.tokens_PSL[0, 0].tolist() == [20, 21, 22, 23, 24, 40]
    assert streams.tokens_PSL[0, 1, :5].tolist() == [10, 11, 30, 31, 32]
    assert streams.row_PSL[0].tolist() == [[1, 1, 1, 1, 1, 3], [0, 0, 2, 2, 2, 0]]
    assert streams.used_PSL[0].tolist() == [[True] * 6, [True] * 5 + [False]]
    back = unpack(streams.tokens_PSL.astype(jnp.float32), lengths, 4, 5)
    assert back.tolist() == tokens.tolist()


def test_buckets_by_hand():
    """G * R = 64, products alone: an eighth (4 slots are a sixteenth: rounded up), a quarter and a half, in one stream.

    With attention alone, streams are no longer than rows, so that a stream of 32 slots costs as much as unpacked."""
    products = SlotCost(1.0, 0.0, 0)
    assert packed_buckets(8, 8, products, 0.5) == ((1, 8), (1, 16), (1, 32), (8, 8))
    assert packed_buckets(4, 16, products, 0.5) == ((1, 8), (1, 16), (1, 32), (4, 16))
    assert packed_buckets(1, 8, products, 0.5) == ((1, 8),)
    attention = SlotCost(0.0, 1.0, 0)
    assert packed_buckets(8, 8, attention, 0.5) == ((1, 8), (2, 8), (4, 8), (8, 8))
    assert slot_cost(SPEC, 10).prompt_length == 10


def test_a_full_bucket_packs():
    """A group whose tokens fill the stream to its last slot."""
    tokens, lengths = jnp.arange(12).reshape(2, 6), jnp.array([5, 3])
    streams = pack_streams(tokens, lengths, 2, Bucket(1, 8))
    assert streams.tokens_PSL[0, 0].tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert bool(streams.used_PSL.all())
    back = unpack(streams.tokens_PSL.astype(jnp.float32), lengths, 2, 6)
    assert back.tolist() == [[0, 1, 2, 3, 4, 0], [6, 7, 8, 0, 0, 0]]


def test_no_array_of_all_logits():
    """With 4096 tokens of vocabulary no array, residuals included, comes near B * R * V; a naive loss makes one."""
    spec = tiny_spec(vocab_size=4096)
    prompts, rollout = tiny_prompts(spec, [4] * 2, 4), tiny_rollout(spec, [32] * 8, 32)
    params = tiny_params(spec)
    whole = 8 * 32 * 4096

    def chunked(params):
        streams = unpacked_streams(rollout.tokens_BR, rollout.lengths_B, 4)
        logp, _ = response_logprobs(params, prompts, streams, 1.0, spec=spec, chunk=16, entropy=True)
        return logp.sum()

    def naive(params):
        tokens, seen, _ = full_rows(prompts, rollout)
        return jax.nn.log_softmax(causal_logits(params, spec, tokens, seen))[..., 3].sum()

    assert max(array_sizes(jax.grad(naive), params)) >= whole
    assert max(array_sizes(jax.grad(chunked), params)) <= 16 * 4096


@pytest.mark.parametrize(
    "chunk, vocabulary, row_shards, vocab_shards, positions",
    [
        (128, 128_256, 8, 1, 128),
        (0, 32_000, 1, 1, 1024),
        (0, 128_256, 8, 1, 8192),
        (0, 262_144, 1, 1, 512),
        (0, 262_144, 4, 2, 4096),
        (0, 10**9, 1, 1, 1),
    ],
)
def test_a_chunk_follows_the_shape(chunk, vocabulary, row_shards, vocab_shards, positions):
    """1024 positions a device, or what has half a GiB of float32 logits there; a number that is given stays."""
    assert chunk_positions(chunk, vocabulary, row_shards, vocab_shards) == positions
