"""Splash on a mesh of eight virtual devices, interpreted: each device has its own rows and heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import largest_difference

from pbrl_jax import MeshConfig
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.fused_attention import splash_attention

pytestmark = pytest.mark.serial

X, L, H, K, C = 4, 12, 4, 2, 8


def test_splash_on_a_mesh():
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, found {jax.device_count()}: PBRL_TEST_DEVICES=8 python -m pytest -m serial")
    rng = np.random.default_rng(0)
    inputs = tuple(jnp.asarray(rng.normal(size=(X, L, heads, C)), jnp.float32) for heads in (H, K, K))
    valid = jnp.asarray(np.arange(L)[None] < np.array([[12], [5], [9], [1]]))
    weights = jnp.asarray(rng.normal(size=(X, L, H, C)), jnp.float32)

    def total(*inputs):
        out = jnp.where(valid[..., None, None], splash_attention(*inputs, valid, 4, interpret=True), 0)
        return (weights * out).sum(), out

    gradient = functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    expected = jax.jit(gradient(total))(*inputs)
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
        # A function of its own: the cache of a traced one does not look at the mesh.
        made = jax.jit(gradient(lambda *inputs: total(*inputs)))(*inputs)
        assert len(made[1].sharding.device_set) == 8
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 0.5
    assert largest_difference(made, expected) < 1e-5
