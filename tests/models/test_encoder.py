"""The encoder's own parts; its token states are compared with transformers' in test_oracle_models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import match_rules
from pbrl_jax.models.encoder import TextEncoder, encode, encoder_axes, init_encoder
from pbrl_jax.models.pooling import last_pooling, mean_pooling, pool, unit_vectors
from pbrl_jax.models.specs import ENCODERS, tiny_encoder

SPEC = tiny_encoder(vocab_size=31, width=8, heads=2, ffn=12, max_positions=16, projection=5)
TOKENS = jnp.array([[3, 9, 27, 4, 4], [8, 1, 30, 2, 7]])
MASK = jnp.array([[True, True, True, False, False], [True] * 5])


@pytest.fixture(scope="module")
def params():
    return jax.jit(functools.partial(init_encoder, spec=SPEC))(jax.random.key(1))


@pytest.fixture(scope="module")
def encoded():
    return jax.jit(functools.partial(encode, spec=SPEC))


def test_encode_by_hand(params, encoded):
    """Mean of the real tokens' states, linear map, unit length."""
    hidden = np.asarray(jax.jit(lambda p: TextEncoder(SPEC).apply({"params": p}, TOKENS, MASK))(params), np.float64)
    pooled = np.stack([hidden[0, :3].mean(axis=0), hidden[1].mean(axis=0)])
    projected = pooled @ np.asarray(params["projection"]["kernel"]) + np.asarray(params["projection"]["bias"])
    expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoded(params, TOKENS, MASK), expected, atol=1e-6)
    assert expected.shape == (2, 5) and abs(expected[0] @ expected[1]) < 0.999


def test_padding_is_not_read(params, encoded):
    garbage = TOKENS.at[0, 3:].set(jnp.array([22, 13]))
    assert encoded(params, garbage, MASK).tolist() == encoded(params, TOKENS, MASK).tolist()
    seen = MASK.at[0, 3].set(True)
    assert jnp.abs(encoded(params, garbage, seen) - encoded(params, TOKENS, seen)).max() > 1e-3


def test_a_row_without_tokens_stays_finite(params, encoded):
    nothing = MASK.at[0].set(False)
    vectors = encoded(params, TOKENS, nothing)
    assert jnp.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[1], encoded(params, TOKENS, MASK)[1], atol=1e-6)


def test_bfloat16_gives_float32_unit_vectors(params):
    half = tiny_encoder(**{**SPEC.__dict__, "dtype": "bfloat16"})
    vectors = jax.jit(functools.partial(encode, spec=half))(params, TOKENS, MASK)
    assert vectors.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("preset", [*ENCODERS, "without projection"])
def test_every_parameter_has_its_axes(preset):
    spec = ENCODERS.get(preset, tiny_encoder(projection=0))
    shapes = jax.eval_shape(functools.partial(init_encoder, spec=spec), jax.random.key(0))
    axes = match_rules(shapes, encoder_axes(spec))
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, names: leaf.ndim == len(names), shapes, axes)))


def test_pooling_by_hand():
    """Row 0 has two real tokens in the middle, row 1 has none."""
    hidden = jnp.array([[[9.0], [1.0], [3.0], [7.0]], [[2.0], [2.0], [2.0], [2.0]]])
    mask = jnp.array([[False, True, True, False], [False] * 4])
    assert mean_pooling(hidden, mask).tolist() == [[2.0], [0.0]]
    assert pool("cls", hidden, mask)[0].tolist() == [1.0]
    assert last_pooling(hidden, mask)[0].tolist() == [3.0]
    assert mean_pooling(hidden.astype(jnp.bfloat16), mask).dtype == jnp.float32


def test_unit_vectors():
    assert unit_vectors(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [
        pytest.approx([0.6, 0.8], abs=1e-6),
        [0.0, 0.0],
    ]
    assert jnp.isfinite(jax.grad(lambda x: unit_vectors(x).sum())(jnp.zeros((1, 3)))).all()


def test_unknown_pooling_is_named():
    with pytest.raises(ConfigError, match="pooling 'maen'.*'mean'"):
        pool("maen", jnp.ones((1, 2, 3)), jnp.ones((1, 2), bool))
