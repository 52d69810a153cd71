"""Sums over microbatches cross the data axis once, after the last, on a mesh of eight virtual devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax import MeshConfig
from pbrl_jax.core.trees import sum_microbatches
from pbrl_jax.mesh.microbatches import data_sums
from pbrl_jax.mesh.sharding import batch_sharding, make_mesh
from pbrl_jax.plan.hlo import group_size
from pbrl_jax.plan.hlo_text import parse_module

pytestmark = pytest.mark.serial


def reduced(text: str) -> tuple[set[int], set[int]]:
    """Devices of the all-reduces within loops, and of those outside."""
    computations, entry = parse_module(text)
    sizes = {
        name: {group_size(line.attributes) for line in lines.values() if line.opcode == "all-reduce"}
        for name, lines in computations.items()
    }
    return set().union(*(found for name, found in sizes.items() if name != entry)), sizes[entry]


def test_gradients_cross_the_data_axis_once():
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, found {jax.device_count()}: PBRL_TEST_DEVICES=8 python -m pytest -m serial")
    mesh, rng = make_mesh(MeshConfig(4, 2, 1)), np.random.default_rng(0)
    weights, rows = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(48, 6)).astype(np.float32)
    squares = jax.value_and_grad(lambda weights, rows: jnp.square(jnp.tanh(rows @ weights)).sum())

    def plain(weights, rows):
        return sum_microbatches(lambda piece: squares(weights, piece), rows, 48, 16)

    with jax.set_mesh(mesh):
        placed = jax.device_put(rows, batch_sharding(mesh))
        sums = jax.jit(lambda weights, rows: data_sums(squares, weights, rows, 48, 16))
        apart, left = (one.lower(weights, placed).compile() for one in (sums, jax.jit(plain)))
        found = apart(weights, placed)
    expected = squares(weights, rows)
    assert abs(found[0] - expected[0]) < 1e-4 and np.abs(found[1] - expected[1]).max() < 1e-4
    assert max(reduced(left.as_text())[0]) == 8, "left to the compiler, every microbatch is summed over all devices"
    assert reduced(apart.as_text())[0] <= {2} and 4 in reduced(apart.as_text())[1]
