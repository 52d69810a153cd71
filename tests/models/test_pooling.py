"""Special tokens around a text, and the maps behind pooling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.models.encoder import encode, init_encoder
from pbrl_jax.models.pooling import add_special_ids, apply_dense, init_dense
from pbrl_jax.models.specs import DecoderEncoderSpec, DenseSpec, tiny_decoder, tiny_encoder

COMPILED = jax.jit(encode, static_argnames="spec")


@functools.cache
def params_of(spec):
    return jax.jit(init_encoder, static_argnums=1)(jax.random.key(0), spec)


TOKENS = jnp.array([[5, 6, 7], [8, 0, 0], [0, 0, 0]])
MASK = jnp.array([[True, True, True], [True, False, False], [False] * 3])


def test_special_ids_by_hand():
    """Behind the last real token, wherever that is; a row without any has them alone."""
    tokens, mask = add_special_ids(TOKENS, MASK, (1, 2), (3, 4))
    assert mask.sum(axis=1).tolist() == [7, 5, 4]
    assert [row[keep].tolist() for row, keep in zip(np.asarray(tokens), np.asarray(mask), strict=True)] == [
        [1, 2, 5, 6, 7, 3, 4], [1, 2, 8, 3, 4], [1, 2, 3, 4]
    ]  # fmt: skip
    assert mask[1].tolist() == [True] * 5 + [False] * 2 and tokens.shape == (3, 7)
    same = add_special_ids(TOKENS, MASK, (), ())
    assert same[0] is TOKENS and same[1] is MASK


def test_dense_by_hand():
    maps = (DenseSpec(2, "tanh"), DenseSpec(1, bias=False))
    params = {
        "dense_0": {"kernel": jnp.array([[1.0, 0.0], [2.0, -1.0]]), "bias": jnp.array([0.5, 0.0])},
        "dense_1": {"kernel": jnp.array([[3.0], [4.0]])},
    }
    expected = 3 * np.tanh(1 + 2 * 2 + 0.5) + 4 * np.tanh(-2.0)
    np.testing.assert_allclose(apply_dense(params, maps, jnp.array([[1.0, 2.0]])), [[expected]], rtol=1e-6)
    shapes = jax.tree.map(jnp.shape, init_dense(jax.random.key(0), maps, 2))
    assert shapes == jax.tree.map(jnp.shape, params)


def test_unknown_activation_is_named():
    with pytest.raises(ConfigError, match="activation 'tahn'.*'tanh'"):
        apply_dense({"dense_0": {"kernel": jnp.ones((2, 2))}}, (DenseSpec(2, "tahn", bias=False),), jnp.ones((1, 2)))


@pytest.mark.parametrize(
    "make",
    [
        lambda **ids: tiny_encoder(projection=0, pooling="cls", dense=(DenseSpec(6, "tanh"),), **ids),
        lambda **ids: DecoderEncoderSpec(tiny_decoder(), 64, **ids),
        lambda **ids: DecoderEncoderSpec(tiny_decoder(), 64, True, "mean", **ids),
    ],
)
def test_special_tokens_are_added_by_the_model(make):
    """The same vectors as of texts that already hold them, whatever padding follows."""
    bare, spec = make(), make(begin_ids=(1,), end_ids=(2, 3))
    params = params_of(spec)
    wrapped = jnp.array([[1, 5, 6, 7, 2, 3], [1, 8, 2, 3, 0, 0]])
    expected = COMPILED(params, wrapped, jnp.arange(6)[None] < jnp.array([[6], [4]]), spec=bare)
    found = COMPILED(params, TOKENS[:2], MASK[:2], spec=spec)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - COMPILED(params, TOKENS[:2], MASK[:2], spec=bare)).max() > 1e-3


def test_only_a_bidirectional_decoder_looks_ahead():
    tokens = jnp.array([[5, 6, 7], [5, 6, 9]])
    mask = jnp.ones((2, 3), bool)
    for both, changed in ((False, False), (True, True)):
        spec = DecoderEncoderSpec(tiny_decoder(), 64, both, "cls")
        vectors = COMPILED(params_of(spec), tokens, mask, spec=spec)
        assert bool(jnp.abs(vectors[0] - vectors[1]).max() > 1e-4) == changed


def test_a_window_reaches_as_far_ahead_as_back():
    """One local layer of window 2: the first token's state depends on the second, not on the third."""
    spec = DecoderEncoderSpec(tiny_decoder(layers=1, layer_pattern="l", window=2), 64, True, "cls")
    params = params_of(spec)
    tokens = jnp.array([[5, 6, 7], [5, 6, 9], [5, 9, 7]])
    first, third_changed, second_changed = COMPILED(params, tokens, jnp.ones((3, 3), bool), spec=spec)
    np.testing.assert_allclose(first, third_changed, atol=1e-6)
    assert jnp.abs(first - second_changed).max() > 1e-4
