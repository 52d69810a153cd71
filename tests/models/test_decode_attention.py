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
    tiny_params,
    tiny_prompts,
)

from pbrl_jax import Config, MeshConfig, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models import decode_attention as module
from pbrl_jax.models import slots
from pbrl_jax.models.attention import Kernel
from pbrl_jax.models.decode_attention import Form, decode_attention, decode_kernel, written_rows
from pbrl_jax.models.layouts import Reach
from pbrl_jax.models.slots import BLOCK, LayerCache, block_attention, empty_slots
from pbrl_jax.models.specs import tiny_decoder
from pbrl_jax.plan.chips import parse_topology
from pbrl_jax.plan.programs import compile_ahead, slot_shapes
from pbrl_jax.plan.shapes import tree_bytes
from pbrl_jax.rollout.refill import make_programs
from pbrl_jax.rollout.sampling import sampling_params
from pbrl_jax.rollout.slots import slot_programs
from pbrl_jax.run.plan import tpu_devices

X, K, C, L = 5, 2, 16, 384
#: Of each row the position of its new token: one of the first block, one that ended, the first and the last of a block.
LAST = np.array([130, 0, 383, 128, 255])


def filled(spec, rows=X):
    """A layer's cache whose entries behind a row's position are large, since they must not be read."""
    rng = np.random.default_rng(0)
    key, value = jnp.asarray(rng.normal(size=(2, rows, L, K, C)), jnp.float32)
    stale = (jnp.arange(L)[None] > jnp.asarray(LAST)[:, None])[..., None, None]
    return empty_slots(spec, rows, L).write(0, 0, *(jnp.where(stale, 1e3, x) for x in (key, value))).layers[0]


@pytest.mark.parametrize(
    "heads, window, softcap, kv_dtype",
    [(2, None, 0.0, "int8"), (6, None, 2.0, "model"), (4, 100, 0.0, "model"), (4, 1, 0.0, "int8")],
)
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


@pytest.mark.parametrize("kv_dtype", ["model", "int8"])
def test_new_entries_are_written_as_by_the_compiler(kv_dtype):
    spec = dataclasses.replace(tiny_decoder(), layers=1, kv_heads=K, head_dim=C, kv_dtype=kv_dtype, dtype="bfloat16")
    key, value = jnp.asarray(np.random.default_rng(2).normal(size=(2, X, 1, K, C)), jnp.bfloat16)
    cache, place = filled(spec), jnp.asarray(LAST, jnp.int32)
    expected = jax.vmap(LayerCache.written)(cache, place, cache.entries(key, value))
    found = written_rows(place, jax.tree.leaves(cache.entries(key, value)), jax.tree.leaves(cache), interpret=True)
    for one, other in zip(found, jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))


def test_choices(monkeypatch):
    """auto takes the TPU's kernel alone, and where it can run; pallas is refused elsewhere."""
    query, key = jnp.zeros((2, 1, 4, 128), jnp.bfloat16), jnp.zeros((2, 2, 128, 256), jnp.bfloat16)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert decode_kernel("auto", query, key) is None and decode_kernel("portable", query, key) is None
    with pytest.raises(ConfigError, match=r"is pallas, on 'cpu' with 2 rows.*--policy.decode-attention auto"):
        decode_kernel("pallas", query, key)
    for name, chosen in (("tpu", "tpu"), ("gpu", None)):
        monkeypatch.setattr(module, "platform", lambda name=name: name)
        assert decode_kernel("auto", query, key) == chosen and decode_kernel("pallas", query, key) == name
        assert decode_kernel("portable", query, key) is None
        assert decode_kernel("auto", query, key[..., :130]) is None, "positions in whole blocks"
        assert decode_kernel("auto", query[..., :64], key[:, :, :64]) is None, "whole vectors"
        with pytest.raises(ConfigError, match="is pallas"):
            decode_kernel("pallas", query[..., :8], key[:, :, :8])


def rollout():
    """Refilled slots, rows of several lengths, a local and a global layer, keys and values in eight bits."""
    spec = tiny_decoder(vocab_size=61, width=16, ffn=24, layer_pattern="lg", window=20, kv_dtype="int8")
    params, prompts = tiny_params(spec), tiny_prompts(spec, [130, 7, 60], 130)
    ends = sampling_params(1.0, 1.0, 0, (4, 9, 13, 21, 30, 33, 47, 58))
    return make_programs(spec, 2, 8, 4, slots=3).rollout(params, prompts, jax.random.key(0), ends)


@pytest.fixture(scope="module")
def portable():
    found = rollout()
    assert len(set(found.lengths_B.tolist())) > 2
    return found


@pytest.mark.parametrize("name", module.KERNELS)
def test_rollouts_by_the_kernels(name, portable, monkeypatch):
    used = []

    def interpreted(_name, *inputs):
        used.append(name)
        return decode_attention(name, *inputs, interpret=True)

    monkeypatch.setattr(slots, "decode_kernel", lambda *_: name)
    monkeypatch.setattr(slots, "decode_attention", interpreted)
    monkeypatch.setattr(slots, "written_rows", functools.partial(written_rows, interpret=True))
    slot_programs.cache_clear()
    found = rollout()
    slot_programs.cache_clear()
    assert used
    np.testing.assert_array_equal(found.tokens_BR, portable.tokens_BR)
    assert largest_difference(found.logp_BR, portable.logp_BR) < 1e-5


def test_lowered_for_a_gpu():
    """To the Triton kernel that XLA compiles on a GPU; no compiler for one is here."""
    bfloat16, int8 = jnp.bfloat16, jnp.int8
    shapes = [((4, 8, 4, 128), bfloat16), ((4,), jnp.int32), ((), jnp.int32), ((4, 8, 128, 2304), int8),
              ((4, 8, 2304, 128), int8), ((4, 8, 1, 2304), jnp.float32), ((4, 8, 1, 2304), jnp.float32)]  # fmt: skip
    run = jax.jit(functools.partial(module.gpu_attention, form=Form(1000, 0.0, BLOCK)))
    lowered = run.trace(*(jax.ShapeDtypeStruct(*one) for one in shapes)).lower(lowering_platforms=("cuda",))
    assert "triton" in lowered.as_text()


@pytest.mark.parametrize("kv_dtype", ["model", "int8"])
def test_the_tpu_compiler_takes_it_and_no_cache_is_copied(kv_dtype):
    """The loop over tokens, by `auto`, with the window of one layer and without one; needs the compiler alone."""
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install -e '.[tpu]'")
    spec = tiny_decoder(layer_pattern="lg", window=300, head_dim=128, dtype="bfloat16", kv_dtype=kv_dtype)
    config = with_values(
        Config(), algo={"num_generations": 8}, train={"prompts_per_step": 16},
        rollout={"max_prompt_length": 128, "max_completion_length": 1024},
    )  # fmt: skip
    mesh = make_mesh(MeshConfig(1, 1, 1), tpu_devices(parse_topology("v5p:2x2x1"))[:1])
    programs = slot_programs(spec, 8, 1024, "whole")
    at, _ = slot_shapes(config, spec, mesh, programs)
    loop = compile_ahead(mesh, programs.segment, at.params, at.slots, at.sampling, at.until)
    assert loop.text.count('custom_call_target="tpu_custom_call"') == 2 * spec.layers, "new entries, and attention"
    assert 0 < loop.memory.temporary < tree_bytes(at.slots.cache.layers[0]) / 4
