"""Attention kernels against loops in NumPy, and against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import largest_difference

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.models.attention import (
    AUTO_CHUNK_PAIRS,
    Visibility,
    attend,
    chunked_attention,
    merge_attention,
    portable_attention,
    xla_attention,
)

X, Q, S, H, K, C = 2, 10, 7, 4, 2, 3


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((X, Q, H, C), (X, S, K, C), (X, S, K, C))
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def visibilities():
    """Every kind of condition, alone and together; each query sees at least one key."""
    rng = np.random.default_rng(1)
    valid = jnp.asarray(rng.random((X, S)) < 0.7).at[:, 0].set(True)
    query_position = jnp.asarray(rng.integers(0, S, (X, Q)))
    key_position = jnp.broadcast_to(jnp.arange(S)[None], (X, S))
    query_segment = jnp.asarray(rng.integers(0, 2, (X, Q)))
    key_segment = jnp.asarray(np.tile(np.array([0, 1, 0, 1, 1, 0, 1]), (X, 1)))
    return {
        "all": Visibility(),
        "valid": Visibility(valid),
        "causal": Visibility(None, query_position, key_position),
        "segment": Visibility(None, None, None, query_segment, key_segment),
        "window": Visibility(None, query_position, key_position, window=2),
        "every": Visibility(valid, query_position + 1, key_position, query_segment * 0, key_segment * 0),
    }


def visible(seen: Visibility, x: int, q: int, s: int) -> bool:
    return (
        (seen.key_valid_XS is None or bool(seen.key_valid_XS[x, s]))
        and (seen.query_position_XQ is None or int(seen.key_position_XS[x, s]) <= int(seen.query_position_XQ[x, q]))
        and (seen.window is None or int(seen.query_position_XQ[x, q]) - int(seen.key_position_XS[x, s]) < seen.window)
        and (seen.query_segment_XQ is None or int(seen.key_segment_XS[x, s]) == int(seen.query_segment_XQ[x, q]))
    )


def looped(query, key, value, seen):
    """Softmax attention one query and head at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    seen = Visibility(*(None if x is None else np.asarray(x) for x in seen))
    out, lse = np.zeros((X, Q, H, C)), np.zeros((X, Q, H))
    for x, q, h in np.ndindex(X, Q, H):
        kv_head = h // (H // K)
        keys = [s for s in range(S) if visible(seen, x, q, s)]
        scores = np.array([query[x, q, h] @ key[x, s, kv_head] / np.sqrt(C) for s in keys])
        lse[x, q, h] = np.log(np.exp(scores).sum())
        out[x, q, h] = np.exp(scores - lse[x, q, h]) @ value[x, keys, kv_head]
    return out, lse


@pytest.mark.parametrize("kind", visibilities())
@pytest.mark.parametrize("kernel", [xla_attention, functools.partial(chunked_attention, chunk=4)])
def test_kernel_equals_loops(kernel, kind):
    seen = visibilities()[kind]
    expected = looped(*arrays(), seen)
    assert largest_difference(jax.jit(kernel)(*arrays(), seen), expected) < 2e-6
    if kind != "all":
        assert largest_difference(expected, looped(*arrays(), Visibility())) > 0.1


@pytest.mark.parametrize("kind", ["all", "every"])
def test_chunked_gradients(kind):
    """Gradients of values and log-denominators; 10 queries in chunks of 4, so that the last chunk is padded."""
    seen = visibilities()[kind]
    rng = np.random.default_rng(2)
    weights = jnp.asarray(rng.normal(size=(X, Q, H, C + 1)), jnp.float32)

    def gradients(kernel):
        def total(*inputs):
            out, lse = kernel(*inputs, seen)
            return (weights[..., :C] * out).sum() + (weights[..., C] * lse).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*arrays())

    plain = gradients(xla_attention)
    assert all(jnp.abs(gradient).max() > 0.1 for gradient in plain)
    assert largest_difference(gradients(functools.partial(chunked_attention, chunk=4)), plain) < 2e-6


def test_merge_is_attention_over_the_union():
    """Two calls over keys 0..3 and 4..6, one of them with much larger scores, and one that sees nothing."""

    @jax.jit
    def parts(query, key, value):
        first = xla_attention(query, key[:, :4], value[:, :4], Visibility())
        second = xla_attention(query, key[:, 4:], value[:, 4:], Visibility())
        nothing = xla_attention(query, key[:, 4:], value[:, 4:], Visibility(jnp.zeros((X, 3), bool)))
        whole, _ = xla_attention(query, key, value, Visibility())
        return merge_attention(first, second), whole, merge_attention(first, nothing), first[0]

    query, key, value = arrays()
    merged, whole, with_nothing, first = parts(query, key.at[:, 4:].multiply(8.0), value)
    assert largest_difference(merged, whole) < 2e-6
    assert largest_difference(with_nothing, first) < 2e-6
    assert largest_difference(whole, first) > 0.1


def test_window_by_hand():
    """A window of 2 lets position 3 see 2 and 3; a traced window is the same as a number."""
    position = jnp.arange(5)[None]
    mask = Visibility(None, position, position, window=2).mask()
    assert mask[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    traced = jax.jit(lambda window: Visibility(None, position, position, window=window).mask())
    assert np.array_equal(traced(2), mask)


def test_query_that_sees_nothing_gives_numbers():
    nothing = Visibility(jnp.zeros((X, S), bool))
    grads = jax.jit(jax.grad(lambda *inputs: xla_attention(*inputs, nothing)[0].sum(), argnums=(0, 1, 2)))(*arrays())
    assert all(jnp.isfinite(gradient).all() for gradient in grads)


def test_half_precision_is_reduced_in_float32():
    half = tuple(x.astype(jnp.bfloat16) for x in arrays())
    out, lse = jax.jit(xla_attention)(*half, Visibility())
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    expected = looped(*(x.astype(jnp.float32) for x in half), Visibility())
    assert np.abs(lse - expected[1]).max() < 1e-5
    np.testing.assert_allclose(out.astype(jnp.float32), expected[0], atol=2e-2)


def test_portable_makes_no_large_array_of_scores():
    """Past the threshold the scores of all queries never exist together."""
    length = 2 * int(np.sqrt(AUTO_CHUNK_PAIRS))
    shape = jax.ShapeDtypeStruct((1, length, 1, 2), jnp.float32)

    def largest(kernel):
        text = str(jax.make_jaxpr(lambda q, k, v: kernel(q, k, v, Visibility()))(shape, shape, shape))
        return f"{length},{length}]" in text

    assert largest(xla_attention)
    assert not largest(portable_attention)


def test_unknown_kernel_is_named():
    with pytest.raises(ConfigError, match="attention kernel 'chunkd'.*'chunked'"):
        attend("chunkd", *arrays(), Visibility())
