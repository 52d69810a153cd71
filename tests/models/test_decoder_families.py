"""What the families add to the plain decoder: windows, two kinds of layers, experts, Gemma's factors.

Prefix sharing and packing against a plain causal forward of each full row, in float64, with windows that are shorter
than prompt and response; experts against a loop over tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.prefix_checks import R, T, batch, plain_logp, shared_logp, value_and_gradient, wide_spec
from tiny_policy import (
    array_sizes,
    largest_difference,
    quick_compiles,  # noqa: F401
    tiny_params,
)

from pbrl_jax.models.decoder import embed_tokens, hidden_states, layer_roles
from pbrl_jax.models.grouped import group_items, grouped_dot
from pbrl_jax.models.layouts import Causal
from pbrl_jax.models.moe import RoutedMLP
from pbrl_jax.models.specs import TINY_FAMILIES, tiny_decoder

FAMILIES = {name: wide_spec(name) for name in ("tiny_mistral", "tiny_gemma3", "tiny_qwen3_moe")}
#: What Cohere 2 and Gemma 2 add: layers without RoPE, parallel blocks, caps.
FAMILIES["layers without positions, caps"] = tiny_decoder(
    dtype="float64", layer_pattern="ln", window=4, qk_norm=False, parallel=True, centered_norms=True,
    interleaved_rope=True, logit_scale=0.5, attention_softcap=2.0, logit_softcap=3.0,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefix_equals_plain_rows(family):
    """Values and gradients, unpacked and packed; the window is felt, for without it the numbers are others."""
    with jax.enable_x64(True):
        spec = FAMILIES[family]
        params = tiny_params(spec, dtype=np.float64)
        prompts, rollout, mask = batch(spec)
        plain = value_and_gradient(params, plain_logp(spec, prompts, rollout), mask)
        assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[1])) > 1e-3
        for packed in (False, True):
            shared = value_and_gradient(params, shared_logp(spec, prompts, rollout, mask, packed), mask)
            assert largest_difference(shared, plain) < 1e-10
        if spec.window:
            blind = jax.jit(plain_logp(dataclasses.replace(spec, window=T + R), prompts, rollout))(params)
            assert np.abs(np.where(mask, blind - plain[0], 0)).max() > 0.05


def test_window_bounds_what_a_state_depends_on():
    """One local layer of window 4: state t depends on tokens t-3 .. t and on no other."""
    spec = tiny_decoder(layers=1, layer_pattern="l", window=4, tied_embeddings=False)
    params = tiny_params(spec)
    length = 7
    tokens, positions = jnp.arange(1, 1 + length)[None], jnp.arange(length)[None]
    direction = jnp.asarray(np.random.default_rng(0).normal(size=(spec.width, 1)), jnp.float32)

    def states(embed):
        valid = jnp.ones((1, length), bool)
        hidden, _ = hidden_states({**params, "embed": embed}, spec, tokens, positions, Causal(valid))
        return (hidden[0] @ direction)[:, 0]

    reached = np.abs(jax.jit(jax.jacrev(states))(params["embed"])[:, tokens[0]]).max(axis=-1)
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    inside = (distance >= 0) & (distance < 4)
    assert (reached[inside] > 1e-4).all() and (reached[~inside] == 0).all()


def test_layers_of_one_kind_carry_no_roles():
    """Without two kinds of layers nothing but the layer's number is scanned, and no position is compared."""
    assert layer_roles(TINY_FAMILIES["tiny_qwen3"]).local is None
    assert layer_roles(TINY_FAMILIES["tiny_mistral"]).local is None
    assert layer_roles(TINY_FAMILIES["tiny_gemma3"]).local.tolist() == [True, True, False, True]


def test_gemma_embeddings_are_scaled_in_their_own_type():
    """The root of 2560 is 50.596; in bfloat16 it is 50.5."""
    spec = tiny_decoder(width=2560, scaled_embeddings=True)
    embed, tokens = jnp.ones((1, 2560)), jnp.zeros((1, 1), jnp.int32)
    np.testing.assert_allclose(embed_tokens(embed, spec, tokens), 2560**0.5, rtol=1e-6)
    half = embed_tokens(embed, dataclasses.replace(spec, dtype="bfloat16"), tokens)
    assert half.dtype == jnp.bfloat16 and (half == 50.5).all()


def experts_by_loop(params, x, count: int, normalized: bool) -> np.ndarray:
    """One token, one expert at a time, in float64."""
    router, gate, up, down = (np.asarray(params[n]["kernel"], np.float64) for n in ("router", "gate", "up", "down"))
    out = np.zeros(x.shape)
    for index in np.ndindex(*x.shape[:-1]):
        token = np.asarray(x[index], np.float64)
        logits = token @ router
        share = np.exp(logits - logits.max())
        share /= share.sum()
        chosen = np.argsort(-share)[:count]
        total = share[chosen].sum() if normalized else 1.0
        for expert in chosen:
            hidden = token @ gate[expert]
            hidden = hidden / (1 + np.exp(-hidden)) * (token @ up[expert])
            out[index] += share[expert] / total * (hidden @ down[expert])
    return out


def random_experts(normalized: bool = True):
    """A module of five experts, its parameters, and tokens of which none goes to the last expert."""
    rng = np.random.default_rng(0)
    module = RoutedMLP(ffn=6, experts=5, experts_per_token=2, normalized=normalized)
    x = jnp.asarray(rng.normal(size=(2, 7, 4)), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    x = x.at[..., 0].set(1.0)
    router = params["router"]["kernel"].at[0, 4].set(-100.0)
    return module, {**params, "router": {"kernel": router}}, x


@pytest.mark.parametrize("normalized", [True, False])
def test_experts_equal_a_loop(normalized):
    module, params, x = random_experts(normalized)
    out = jax.jit(module.apply)({"params": params}, x)
    expected = experts_by_loop(params, x, 2, normalized)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_gradients_of_experts():
    """Against finite differences in float64; the expert that nobody chose has none."""
    with jax.enable_x64(True):
        module, params, x = random_experts()
        params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, x))
        rng = np.random.default_rng(1)
        weights = jnp.asarray(rng.normal(size=x.shape))

        @jax.jit
        def total(params, x):
            return (weights * module.apply({"params": params}, x)).sum()

        gradient = jax.jit(jax.grad(total, argnums=(0, 1)))(params, x)
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), (params, x))
        ahead = jax.tree.map(lambda leaf, step: leaf + 1e-6 * step, (params, x), direction)
        behind = jax.tree.map(lambda leaf, step: leaf - 1e-6 * step, (params, x), direction)
        slope = (total(*ahead) - total(*behind)) / 2e-6
        along = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), gradient, direction)))
        assert abs(slope) > 0.1 and float(along) == pytest.approx(float(slope), rel=1e-6)
        assert float(jnp.abs(gradient[0]["gate"]["kernel"][4]).max()) == 0
        assert float(jnp.abs(gradient[0]["router"]["kernel"]).max()) > 1e-3


@pytest.mark.parametrize("tokens", [3, 200])
def test_work_follows_the_chosen_experts(tokens):
    """64 experts, two of them chosen: nothing comes near the array of every token for every expert."""
    module = RoutedMLP(ffn=32, experts=64, experts_per_token=2, normalized=True)
    x = jax.ShapeDtypeStruct((1, tokens, 16), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    assert 3 * max(array_sizes(module.apply, shapes, x)) < 64 * (2 * tokens) * 16


def test_groups_by_hand():
    """Items of groups 2, 0, 2, 2 in blocks of 8: block 0 holds item 1, block 1 items 0, 2 and 3."""
    groups = group_items(jnp.array([2, 0, 2, 2]), 3, blocks=True)
    assert groups.sizes.tolist() == [1, 0, 3]
    assert groups.group_of_block[:2].tolist() == [0, 2]
    assert groups.slot_of_item.tolist() == [8, 0, 9, 10]
    assert groups.item_of_slot[:12].tolist() == [1, 4, 4, 4, 4, 4, 4, 4, 0, 2, 3, 4]


@pytest.mark.parametrize("items, count", [(5, 40), (300, 3), (64, 64)])
def test_blocks_equal_the_native_product(items, count):
    """Values and gradients; fewer items than groups, groups of several blocks, and groups without items."""
    rng = np.random.default_rng(0)
    group = jnp.asarray(rng.integers(0, count, items) // 2)
    x, matrices, weights = (rng.normal(size=shape) for shape in ((items, 4), (count, 4, 5), (items, 5)))

    @functools.partial(jax.jit, static_argnums=2)
    def run(x, matrices, blocks):
        def total(x, matrices):
            groups = group_items(group, count, blocks)
            rows = x.at[groups.item_of_slot].get(mode="fill", fill_value=0)
            out = grouped_dot(rows, matrices, groups)[groups.slot_of_item]
            return (jnp.asarray(weights, x.dtype) * out).sum(), out

        return jax.grad(total, argnums=(0, 1), has_aux=True)(x, matrices)

    inputs = jnp.asarray(x, jnp.float32), jnp.asarray(matrices, jnp.float32)
    ours = run(*inputs, True)
    np.testing.assert_allclose(ours[1], np.einsum("md,mdf->mf", x, matrices[np.asarray(group)]), atol=1e-5)
    assert largest_difference(ours, run(*inputs, False)) < 1e-4
