"""The kernels of decoding, as far as a CPU can show: interpreted, compiled for TPU, lowered for GPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    largest_difference,
    quick_compiles,  # noqa: F401
)

from pbrl_jax.models import decode_attention as module
from pbrl_jax.models.attention import Kernel
from pbrl_jax.models.decode_attention import Form, decode_attention
from pbrl_jax.models.layouts import Reach
from pbrl_jax.models.slots import BLOCK, block_attention, empty_slots
from pbrl_jax.models.specs import tiny_decoder

X, K, C, L = 5, 2, 16, 384
#: Of each row the position of its new token: one of the first block, one that ended, the first and the last of a block.
LAST = np.array([130, 0, 383, 128, 255])


def filled(spec, rows=X):
    """A layer's cache whose entries behind a row's position are large, since they must not be read."""
    rng = np.random.default_rng(0)
    key, value = jnp.asarray(rng.normal(size=(2, rows, L, K, C)), jnp.float32)
    stale = (jnp.arange(L)[None] > jnp.asarray(LAST)[:, None])[..., None, None]
    return empty_slots(spec, rows, L).write(0, 0, *(jnp.where(stale, 1e3, x) for x in (key, value))).layers[0]


@pytest.mark.parametrize("kv_dtype", ["model", "int8"])
@pytest.mark.parametrize("heads, window, softcap", [(2, None, 0.0), (6, None, 2.0), (4, 100, 0.0), (4, 1, 0.0)])
@pytest.mark.parametrize("name", module.KERNELS)
def test_kernels_equal_the_portable_form(name, heads, window, softcap, kv_dtype):
    """With as many query heads as key heads and more, windows within a block and over two, and a soft cap."""
    spec = dataclasses.replace(tiny_decoder(), layers=1, heads=heads, kv_heads=K, head_dim=C, kv_dtype=kv_dtype)
    query = jnp.asarray(np.random.default_rng(1).normal(size=(X, 1, heads, C)), jnp.float32)
    cache, place, blocks = filled(spec), jnp.asarray(LAST, jnp.int32), jnp.int32(L // BLOCK)
    reach = None if window is None else Reach(window, True, place[:, None])
    expected = block_attention(Kernel("xla", softcap), query, cache, place[:, None], blocks, reach)
    found = jax.jit(functools.partial(decode_attention, name, form=Form(window, softcap, BLOCK), interpret=True))(
        query, jax.tree.leaves(cache), place, blocks
    )
    assert largest_difference(found, expected) < 2e-6 and float(jnp.abs(found).max()) < 5
