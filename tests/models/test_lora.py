"""Adapters and quantised kernels: nothing changes at the start, merged and joined agree, every leaf has axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import largest_difference, quick_compiles, tiny_params, tiny_spec  # noqa: F401

from pbrl_jax import LoraConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import map_with_path, match_rules
from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.models.lora import adapter_axes, frozen_params, init_adapters, join_adapters, merge_adapters
from pbrl_jax.models.quantized import dequantized, quantized

SPEC = tiny_spec()
LORA = LoraConfig(rank=2, alpha=3.0)
TOKENS = jnp.arange(12).reshape(2, 6) + 3
#: Share of the largest logit that two orders of float32 sums may differ by; exports are compared with it too.
ROUNDED = 1e-5
#: Largest share of a kernel's largest weight that rounding may move a weight by: half a step of each type.
ROUNDING = {"int8": 0.5 / 127, "int4": 0.5 / 7, "nf4": 0.16}


@pytest.fixture(scope="module")
def logits():
    compiled = jax.jit(lambda params: causal_logits(params, SPEC, TOKENS, jnp.ones(TOKENS.shape, bool)))
    return lambda params: np.asarray(compiled(params), np.float64)


def adapters_of(params, lora=LORA, seed=0):
    """Adapters that all matter."""
    rng = np.random.default_rng(seed)
    fresh = init_adapters(jax.random.key(0), params, SPEC, lora)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), fresh)


def test_new_adapters_change_nothing(logits):
    params = tiny_params(SPEC)
    fresh = init_adapters(jax.random.key(0), params, SPEC, LORA)
    np.testing.assert_array_equal(logits(join_adapters(params, fresh, LORA)), logits(params))
    assert all(float(jnp.abs(part["lora_a"]).max()) > 0 for part in fresh["layers"]["mlp"].values())


def test_merged_computes_what_joined_computes(logits):
    params = tiny_params(SPEC)
    adapters = adapters_of(params)
    both, one = logits(join_adapters(params, adapters, LORA)), merge_adapters(params, adapters, LORA)
    assert jax.tree.structure(one) == jax.tree.structure(params)
    np.testing.assert_allclose(logits(one), both, atol=1e-5)
    assert np.abs(both - logits(params)).max() > 0.1


def test_a_merged_kernel_by_hand():
    """Layer 1 of the query: kernel + alpha / rank * sum over the rank."""
    params = tiny_params(SPEC)
    adapters = adapters_of(params)
    query = adapters["layers"]["query"]
    found = merge_adapters(params, adapters, LORA)["layers"]["query"]["kernel"][1]
    low, high = np.asarray(query["lora_a"])[1], np.asarray(query["lora_b"])[1]
    expected = np.asarray(params["layers"]["query"]["kernel"])[1] + 1.5 * np.einsum("dr,rhc->dhc", low, high)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("targets", [LORA.targets, ("query", "value"), ("out", "down")])
def test_every_adapter_has_axes_of_its_rank(targets):
    lora = LoraConfig(rank=2, targets=targets)
    adapters = adapters_of(tiny_params(SPEC), lora)
    axes = match_rules(adapters, adapter_axes(SPEC, lora))
    map_with_path(lambda path, leaf, names: len(names) == leaf.ndim or pytest.fail(path), adapters, axes)
    assert len(jax.tree.leaves(adapters)) == 2 * len(targets)


@pytest.mark.parametrize("kind", ROUNDING)
def test_a_quantised_kernel_is_near_its_original(kind):
    """Tiles of 4 inputs, so a weight is rounded by a share of the largest of its four."""
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 3, 4)), jnp.float32)
    found = quantized(kernel, 1, kind, 4)
    wide = np.asarray(dequantized(found))
    largest = np.abs(np.asarray(kernel)).reshape(2, 4, 4, 3, 4).max(axis=2, keepdims=True)
    error = np.abs(wide - np.asarray(kernel)).reshape(2, 4, 4, 3, 4) / largest
    assert 0.2 * ROUNDING[kind] < error.max() <= ROUNDING[kind] * (1 + 1e-3)


def test_quantised_forward_pass_and_merge(logits):
    """Both are those of the kernels made wide; embeddings and norms are left as they are."""
    params = tiny_params(SPEC)
    lora = LoraConfig(rank=2, quantization="nf4", tile_size=8)
    frozen, adapters = frozen_params(params, SPEC, lora), adapters_of(params, lora)
    assert frozen["embed"] is params["embed"] and frozen["layers"]["mlp"]["down"]["kernel"].qvalue.dtype == jnp.uint4
    both = logits(join_adapters(frozen, adapters, lora))
    one = merge_adapters(frozen, adapters, lora)
    np.testing.assert_allclose(logits(one), both, atol=ROUNDED * np.abs(both).max())
    assert jax.tree.structure(one) == jax.tree.structure(params) and np.abs(both - logits(params)).max() > 0.01
    assert largest_difference(frozen_params(params, SPEC, LORA), params) == 0


def test_experts_have_no_adapters():
    spec = tiny_spec(experts=4, experts_per_token=2)
    with pytest.raises(ConfigError, match="--lora.targets query key value out"):
        adapter_axes(spec, LORA)
    assert len(adapter_axes(spec, LoraConfig(rank=2, targets=("query", "out")))) == 4
