"""The hardware's attention kernels, as far as a CPU can show: Splash interpreted and lowered for TPU, cuDNN's call
through the implementation that jax.nn has for every backend."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from models.prefix_checks import batch, plain_logp, shared_logp, value_and_gradient, wide_spec
from tiny_policy import (
    largest_difference,
    quick_compiles,  # noqa: F401
    tiny_params,
)

from pbrl_jax import MeshConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.sharding import make_mesh, replicated
from pbrl_jax.models import fused_attention
from pbrl_jax.models.attention import Visibility, xla_attention
from pbrl_jax.models.decoder import causal_logits, hidden_states, init_decoder
from pbrl_jax.models.fused_attention import (
    FUSED,
    block_pairs,
    cudnn_attention,
    fused_causal,
    fused_kernel,
    splash_attention,
)
from pbrl_jax.models.layouts import Causal, Packed, Reach, SharedPrefix
from pbrl_jax.models.specs import TINY_FAMILIES
from pbrl_jax.plan.chips import parse_topology
from pbrl_jax.plan.holds import arrays_in_memory
from pbrl_jax.plan.programs import compile_ahead
from pbrl_jax.run.plan import tpu_devices

X, L, H, K, C = 2, 40, 4, 2, 8
LENGTHS = np.array([40, 23])
VALID = jnp.asarray(np.arange(L)[None] < LENGTHS[:, None])
KERNELS = {
    "cudnn": functools.partial(cudnn_attention, implementation="xla"),
    "splash": functools.partial(splash_attention, interpret=True),
}


def arrays(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(X, L, heads, C)), dtype) for heads in (H, K, K))


def portable(query, key, value, valid, window):
    position = jnp.broadcast_to(jnp.arange(L)[None], (X, L))
    return xla_attention(query, key, value, Visibility(valid, position, position, window=window))[0]


def value_and_gradients(kernel, window):
    """What a kernel makes at the valid tokens, and the gradients of a combination of it."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(X, L, H, C)), jnp.float32)

    def total(*inputs):
        out = jnp.where(VALID[..., None, None], kernel(*inputs, VALID, window), 0)
        return (weights * out).sum(), out

    return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays())


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("name", KERNELS)
def test_fused_equals_portable(name, window):
    """40 tokens are no whole Splash block, so that its padding is at work."""
    expected = value_and_gradients(portable, window)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 0.5
    assert largest_difference(value_and_gradients(KERNELS[name], window), expected) < 1e-5


def streams(packed: bool, window: int | None):
    """A shared prompt of 20 tokens, 13 in the second row, with two streams of 40, and the reach of its layers."""
    T, S, R = 20, 2, 40
    lengths, offset, segment = np.array([20, 13]), np.broadcast_to(np.arange(R), (X, S, R)), None
    if packed:  # three responses in a stream, the last with unused slots behind it
        sizes = np.array([[[5, 13, 9], [11, 7, 20]], [[1, 30, 9], [12, 13, 14]]])
        ends = sizes.cumsum(axis=-1)
        segment = np.minimum((ends[..., None, :] <= np.arange(R)[:, None]).sum(axis=-1), 2)
        offset = offset - np.take_along_axis(ends - sizes, segment, axis=-1)
    places = np.concatenate([np.tile(np.arange(T), (X, 1)), (lengths[:, None, None] + offset).reshape(X, -1)], axis=1)
    valid = jnp.asarray(np.arange(T) < lengths[:, None])
    layout = SharedPrefix(valid, None if segment is None else jnp.asarray(segment), S, 3 if packed else 1)
    return layout, None if window is None else Reach(window, True, jnp.asarray(places))


@pytest.mark.parametrize(
    "name, packed, window",
    [("splash", False, 30), ("splash", True, None), ("cudnn", False, None), ("cudnn", False, 30)],
)
def test_one_call_equals_the_merged_parts(monkeypatch, name, packed, window):
    """Responses against the keys of their prompt and their own: values, and gradients of all three. A window of 30
    reaches into prompts, and ends within them."""
    monkeypatch.setitem(FUSED, name, KERNELS[name])
    layout, reach = streams(packed, window)
    rng = np.random.default_rng(2)
    draw = [rng.normal(size=(X, 20 + 2 * 40, heads, C)) for heads in (H, K, K, H)]
    *inputs, weights = (jnp.asarray(one, jnp.float32) for one in draw)

    def made(attended):
        def total(*inputs):
            out = attended(*inputs)
            return (weights[:, 20:] * out).sum(), out

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*inputs)

    expected = made(lambda *inputs: layout._merged("xla", *inputs, reach))
    found = made(lambda *inputs: layout._fused(name, *inputs, reach))
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 1
    assert largest_difference(found[1], expected[1]) < 1e-6
    assert largest_difference(found[0], expected[0]) < 4e-6


def test_which_streams_take_a_fused_kernel():
    """cuDNN knows no segments; a window in a packed stream has no fused form."""
    cases = {
        ("splash", False, None): "splash", ("splash", True, None): "splash", ("splash", True, 4): None,
        ("cudnn", False, 4): "cudnn", ("cudnn", True, None): None, ("auto", False, None): None,
    }  # fmt: skip
    query, key = (np.zeros((X, 20 + 2 * 40, heads, C), np.float32) for heads in (H, K))
    for (kernel, packed, window), expected in cases.items():
        layout, reach = streams(packed, window)
        assert layout.fused_kernel(kernel, query, key, reach) == expected, (kernel, packed, window)


def test_auto_takes_the_kernel_of_the_platform(monkeypatch):
    """On a TPU Splash, where it takes the arrays: half precision, a block of queries."""

    def chosen(kernel="auto", queries=128, dtype=jnp.bfloat16):
        query, key = (jax.ShapeDtypeStruct((X, queries, heads, C), dtype) for heads in (H, K))
        return fused_kernel(kernel, query, key)

    assert chosen() is None and chosen("splash") == "splash" and chosen("chunked") is None
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert chosen() == "splash"
    assert chosen(queries=127) is None and chosen(dtype=jnp.float32) is None
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert chosen() is None, "without a mesh nobody says which device has which rows"


def test_pairs_that_splash_computes():
    """By the blocks of a mask written out."""
    for offset, window in ((0, None), (128, None), (128, 100), (128, 300)):
        query, key = np.arange(256)[:, None] + offset, np.arange(384)[None]
        seen = (key <= query) & (key > query - (window or 1000))
        blocks = seen.reshape(2, 128, 3, 128).any(axis=(1, 3))
        assert block_pairs(256, 384, (128, 128), offset, window) == blocks.sum() * 128 * 128


@pytest.mark.parametrize("window", [None, 5])
def test_splash_takes_packed_rows(monkeypatch, window):
    monkeypatch.setitem(FUSED, "splash", KERNELS["splash"])
    layout = Packed(jnp.asarray(np.repeat([[0, 1], [0, 0]], 20, axis=1)))
    reach = None if window is None else Reach(window, True, jnp.zeros((X, L), jnp.int32))
    attended = jax.jit(lambda kernel, *inputs: layout.attend(kernel, *inputs, None, 0, reach)[0], static_argnums=0)
    found, expected = (attended(kernel, *arrays()) for kernel in ("splash", "xla"))
    assert np.abs(found - expected).max() < 1e-6


def test_layers_of_both_kinds_choose_at_run_time(monkeypatch):
    monkeypatch.setitem(FUSED, "cudnn", KERNELS["cudnn"])
    run = jax.jit(lambda local: fused_causal("cudnn", *arrays(), VALID, 5, local))
    for local, window in ((True, 5), (False, None)):
        difference = np.abs(run(local) - portable(*arrays(), VALID, window))
        assert difference[np.asarray(VALID)].max() < 1e-5


def test_merged_parts_keep_their_gradients(monkeypatch):
    """A shared prompt with a fused kernel: the prompt by it, the merged parts by another, as plain rows have it."""
    monkeypatch.setitem(FUSED, "cudnn", KERNELS["cudnn"])
    with jax.enable_x64(True):
        spec = wide_spec("tiny_gemma3")
        params = tiny_params(spec, dtype=np.float64)
        prompts, rollout, mask = batch(spec)
        plain = value_and_gradient(params, plain_logp(spec, prompts, rollout), mask)
        fused = dataclasses.replace(spec, attention="cudnn")
        shared = value_and_gradient(params, shared_logp(fused, prompts, rollout, mask, False), mask)
    # jax.nn computes the softmax in float32.
    assert largest_difference(shared[0], plain[0]) < 1e-5
    assert largest_difference(shared[1], plain[1]) < 1e-4


@pytest.mark.parametrize("family", ["tiny_qwen3", "tiny_gemma3"])
def test_splash_lowers_for_tpu(monkeypatch, family):
    """A training step's forward and backward pass, with and without layers of both kinds, in Pallas's own calls."""
    monkeypatch.setattr(fused_attention, "require_backend", lambda kernel, backend: None)
    spec = dataclasses.replace(TINY_FAMILIES[family], attention="splash", dtype="bfloat16", head_dim=16)
    shapes = jax.eval_shape(functools.partial(init_decoder, spec=spec), jax.random.key(0))

    def loss(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(L)[None], (X, L))
        hidden, _ = hidden_states(params, spec, tokens, positions, Causal(VALID))
        return hidden.astype(jnp.float32).sum()

    tokens = jax.ShapeDtypeStruct((X, L), jnp.int32)
    program = export.export(jax.jit(jax.grad(loss)), platforms=["tpu"])(shapes, tokens)
    kinds = 2 if family == "tiny_gemma3" else 1
    assert program.mlir_module().count("tpu_custom_call") >= 3 * kinds


@pytest.mark.parametrize("name, needs", [("cudnn", "GPU"), ("splash", "TPU")])
def test_another_backend_is_a_clear_error(name, needs):
    spec = dataclasses.replace(TINY_FAMILIES["tiny_qwen3"], attention=name)
    with pytest.raises(ConfigError, match=f"'{name}' needs a {needs}; .*'cpu'.*--policy.attention auto"):
        jax.eval_shape(functools.partial(init_decoder, spec=spec), jax.random.key(0))


def test_cudnn_names_what_it_cannot_take(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ConfigError, match="found float32 and 8.*--policy.dtype bfloat16"):
        cudnn_attention(*arrays(), VALID, None)
    with pytest.raises(ConfigError, match="found bfloat16 and 4"):
        cudnn_attention(*(x[..., :4] for x in arrays(jnp.bfloat16)), VALID, None)


def test_looking_at_a_model_needs_no_hardware():
    """`causal_logits` takes padding on either side, and so never uses a fused kernel."""
    spec = TINY_FAMILIES["tiny_qwen3"]
    params, tokens = tiny_params(spec), jnp.arange(2 * 6).reshape(2, 6)
    mask = jnp.asarray(np.arange(6)[None] >= np.array([[0], [2]]))
    specs = [dataclasses.replace(spec, attention=kernel) for kernel in ("splash", "auto")]
    programs = [str(jax.make_jaxpr(causal_logits, static_argnums=1)(params, one, tokens, mask)) for one in specs]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("packed", [False, True])
def test_the_tpu_compiler_takes_it_and_no_scores_are_in_memory(packed):
    """Value and gradient, by `auto`, in the window of one layer and without one; needs the compiler alone."""
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install -e '.[tpu]'")
    T, S, R, wide = 128, 2, 256, 128
    mesh = make_mesh(MeshConfig(1, 1, 1), tpu_devices(parse_topology("v5p:2x2x1"))[:1])
    placed = functools.partial(jax.ShapeDtypeStruct, sharding=replicated(mesh))
    inputs = [placed((1, T + S * R, heads, wide), jnp.bfloat16) for heads in (H, K, K)]

    def total(query, key, value, valid, segment):
        layout = SharedPrefix(valid, segment if packed else None, S, 3 if packed else 1)
        places = jnp.arange(T + S * R)[None]
        reach = None if packed else Reach(64, True, places)
        return layout.attend("auto", query, key, value, None, 0, reach)[0].astype(jnp.float32).sum()

    program = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    text = compile_ahead(mesh, program, *inputs, placed((1, T), bool), placed((1, S, R), jnp.int32)).text
    assert text.count("splash_mha_dkv") and text.count("splash_mha_dq")
    large = [shape for _, shape, _ in arrays_in_memory(text) if sum(size in (R, T + R) for size in shape.sizes) > 1]
    assert not large
