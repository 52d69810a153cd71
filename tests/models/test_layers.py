"""Norms and rotary positions by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import tiny_spec

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.models.encoder import LayerNorm
from pbrl_jax.models.layers import GatedMLP, Projection, RMSNorm, apply_rope, rope_frequencies, rope_tables
from pbrl_jax.models.specs import Llama3Scaling


@functools.partial(jax.jit, static_argnums=2)
def rotate(x, positions, spec):
    return apply_rope(x, rope_tables(positions, spec))


def test_rms_norm():
    """rms(3, 4, 0, 0) = 2.5; eps stands under the root, beside the mean square."""
    x = jnp.array([[3.0, 4.0, 0.0, 0.0]])
    scale = jnp.array([1.0, 10.0, 1.0, 1.0])
    normed = RMSNorm(0.0).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(normed, [[1.2, 16.0, 0, 0]], rtol=1e-6)
    normed = RMSNorm(2.75).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(normed, [[1.0, 40 / 3, 0, 0]], rtol=1e-6)


def test_rms_norm_with_offset():
    """The factor is 1 + scale, and starts as 1."""
    x = jnp.array([[3.0, 4.0, 0.0, 0.0]])
    norm = RMSNorm(0.0, offset=True)
    assert norm.init(jax.random.key(0), x)["params"]["scale"].tolist() == [0.0] * 4
    normed = norm.apply({"params": {"scale": jnp.array([0.0, 9.0, 0.0, 0.0])}}, x)
    np.testing.assert_allclose(normed, [[1.2, 16.0, 0, 0]], rtol=1e-6)


def test_layer_norm():
    """(1, 3): mean 2, variance 1, with eps 3 under the root divided by 2."""
    params = {"scale": jnp.array([2.0, 4.0]), "bias": jnp.array([0.5, 0.0])}
    np.testing.assert_allclose(LayerNorm(3.0).apply({"params": params}, jnp.array([[1.0, 3.0]])), [[-0.5, 2.0]])


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_norms_are_computed_in_float32(norm):
    """The square of 300 does not fit in float16."""
    x = jnp.array([[300.0, -300.0]], jnp.float16)
    normed, _ = norm(1e-6).init_with_output(0 * jnp.zeros(2, jnp.uint32), x)
    assert normed.dtype == jnp.float16
    np.testing.assert_allclose(normed, [[1.0, -1.0]], atol=1e-3)


def test_projection_of_two_axes():
    """[H=2, C=2] -> 1: the kernel meets heads and channels in their order; the bias is added once."""
    params = {"kernel": jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]]), "bias": jnp.array([5.0])}
    x = jnp.array([[[1.0, 10.0], [100.0, 1000.0]]])
    y = Projection((1,), in_axes=2, use_bias=True).apply({"params": params}, x)
    assert y.tolist() == [[1 + 20 + 300 + 4000 + 5]]


def test_rope_rotates_the_halves():
    """Position 1 of the fastest plane turns (a, b) by one radian; planes pair channel i with channel i + C/2."""
    spec = tiny_spec(head_dim=4, rope_theta=100.0)
    np.testing.assert_allclose(rope_frequencies(spec), [1.0, 0.1], rtol=1e-6)
    x = jnp.array([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4)
    turned = rotate(x, jnp.array([[1]]), spec).reshape(4)
    expected = [math.cos(1), -2 * math.sin(0.1), math.sin(1), 2 * math.cos(0.1)]
    np.testing.assert_allclose(turned, expected, rtol=1e-6)


def test_rope_scores_depend_on_distance_alone():
    spec = tiny_spec(head_dim=8)
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(q, k):
        turned = [np.asarray(rotate(x, jnp.array([[at]]), spec)) for x, at in ((query, q), (key, k))]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-2


def test_llama3_scaling():
    """The three branches as transformers writes them, at the values of Llama 3.1."""
    scaling = Llama3Scaling()
    spec = tiny_spec(head_dim=128, rope_theta=500_000.0)
    plain = 1 / 500_000.0 ** (np.arange(0, 128, 2) / 128)
    expected, branches = [], set()
    for frequency in plain:
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            branch, scaled = "kept", frequency
        elif wavelength > 8192 / 1:
            branch, scaled = "slowed", frequency / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            branch, scaled = "between", (1 - smooth) * frequency / 8 + smooth * frequency
        branches.add(branch)
        expected.append(scaled)
    assert branches == {"kept", "slowed", "between"}
    np.testing.assert_allclose(rope_frequencies(spec), plain, rtol=1e-5)
    scaled = rope_frequencies(tiny_spec(head_dim=128, rope_theta=500_000.0, rope_scaling=scaling))
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)


def test_linear_and_local_rope():
    """A factor slows every plane of global layers; local layers have their own base and no factor."""
    spec = tiny_spec(head_dim=4, rope_theta=100.0, rope_factor=4.0, local_rope_theta=10_000.0)
    np.testing.assert_allclose(rope_frequencies(spec), [0.25, 0.025], rtol=1e-6)
    np.testing.assert_allclose(rope_frequencies(spec, local=True), [1.0, 0.01], rtol=1e-6)
    one_base = tiny_spec(head_dim=4, rope_theta=100.0, rope_factor=4.0)
    np.testing.assert_allclose(rope_frequencies(one_base, local=True), [0.25, 0.025], rtol=1e-6)


def test_scale_of_queries_is_applied_before_rounding():
    """3 * 1.5 = 4.5 at position 0; in bfloat16 (8 bits) 1.0078125 * 1.2 is rounded once."""
    tables = rope_tables(jnp.array([[0]]), tiny_spec(head_dim=4))
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    np.testing.assert_allclose(apply_rope(x, tables, 1.5).reshape(4), [1.5, 3.0, 4.5, 6.0], rtol=1e-6)
    half = jnp.full((1, 1, 1, 4), 1.0078125, jnp.bfloat16)
    assert (apply_rope(half, tables, 1.2) == jnp.bfloat16(1.0078125 * 1.2)).all()


@pytest.mark.parametrize("activation, at_one", [("silu", 1 / (1 + math.exp(-1))), ("gelu_tanh", 0.841192)])
def test_gated_feed_forward(activation, at_one):
    """gate(1) = 1, up(1) = 2, down(y) = 3 y; gelu_tanh(1) = (1 + tanh(sqrt(2 / pi) * 1.044715)) / 2 = 0.841192."""
    params = {
        name: {"kernel": jnp.full((1, 1), weight)} for name, weight in (("gate", 1.0), ("up", 2.0), ("down", 3.0))
    }
    out = GatedMLP(1, activation).apply({"params": params}, jnp.ones((1, 1)))
    assert float(out[0, 0]) == pytest.approx(6 * at_one, rel=1e-5)


def test_unknown_activation_is_named():
    with pytest.raises(ConfigError, match="activation 'gelu'.*gelu_tanh"):
        GatedMLP(1, "gelu").init(jax.random.key(0), jnp.ones((1, 1)))


def test_rope_promotes_and_returns_the_type_of_its_input():
    tables = rope_tables(jnp.array([[3]]), tiny_spec(head_dim=4))
    assert tables[0].dtype == jnp.float32
    assert apply_rope(jnp.ones((1, 1, 1, 4), jnp.bfloat16), tables).dtype == jnp.bfloat16
