"""Experts on a mesh of eight virtual devices: rows over data and fsdp, matrices over fsdp and tensor."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import largest_difference, tiny_params

from pbrl_jax import MeshConfig
from pbrl_jax.mesh.sharding import batch_sharding, make_mesh, tree_shardings
from pbrl_jax.models.decoder import decoder_axes, hidden_states
from pbrl_jax.models.layouts import Causal
from pbrl_jax.models.specs import TINY_FAMILIES

pytestmark = pytest.mark.serial

SPEC = dataclasses.replace(TINY_FAMILIES["tiny_qwen3_moe"], dtype="float64")
ROWS, LENGTH = 8, 24


def loss(params, tokens):
    valid = jnp.ones(tokens.shape, bool)
    positions = jnp.broadcast_to(jnp.arange(LENGTH)[None], tokens.shape)
    hidden, _ = hidden_states(params, SPEC, tokens, positions, Causal(valid))
    return jnp.sin(hidden).sum(), hidden


def test_experts_on_a_mesh():
    """The same states and gradients as on one device, and no device ever holds all rows of a product."""
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, found {jax.device_count()}: PBRL_TEST_DEVICES=8 python -m pytest -m serial")
    with jax.enable_x64(True):
        params = tiny_params(SPEC, dtype=np.float64)
        tokens = jnp.asarray(np.random.default_rng(0).integers(1, SPEC.vocab_size, (ROWS, LENGTH)))
        gradient = functools.partial(jax.grad, has_aux=True)
        expected = jax.jit(gradient(loss))(params, tokens)
        mesh = make_mesh(MeshConfig(2, 2, 2))
        shardings = tree_shardings(params, decoder_axes(SPEC), mesh)
        placed = jax.device_put(params, shardings), jax.device_put(tokens, batch_sharding(mesh))
        with jax.set_mesh(mesh):
            # A function of its own: the cache of a traced one does not look at the mesh.
            program = jax.jit(gradient(lambda *inputs: loss(*inputs))).lower(*placed).compile()
            made = program(*placed)
        assert largest_difference(made, expected) < 1e-9
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[0])) > 1
    # A block holds about as many rows as an expert gets on average, and each expert may leave one unfilled.
    choices = ROWS * LENGTH * SPEC.experts_per_token
    slots = {int(found) for found in re.findall(rf"f64\[(\d+),{SPEC.width}\]", program.as_text())}
    assert slots and max(slots) <= choices // 4 + SPEC.experts * 128 and choices not in slots
