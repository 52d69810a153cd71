"""The decoder: causality, cache, kernels, remat, precision, size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    full_rows,
    largest_difference,
    quick_compiles,  # noqa: F401
    tiny_params,
    tiny_prompts,
    tiny_rollout,
    tiny_spec,
)

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import match_rules
from pbrl_jax.models.decoder import (
    causal_logits,
    decoder_axes,
    hidden_states,
    init_decoder,
    logits_of,
    unstack_layers,
)
from pbrl_jax.models.layouts import Causal
from pbrl_jax.models.slots import SharedStep, empty_slots
from pbrl_jax.models.specs import DECODERS, TINY_FAMILIES, tiny_decoder

SPEC = tiny_spec()
L = 6
#: Six different tokens, the last of which is padding.
TOKENS = jnp.array([[11, 5, 42, 60, 2, 33]])
VALID = jnp.array([[True, True, True, True, True, False]])
POSITIONS = jnp.arange(L)[None]


def test_gradients_are_causal():
    """d state_t / d embedding of token j is exactly zero unless j <= t and j is valid, and not zero then.

    Padding reaches itself, through the residual, and nothing else.
    Untied embeddings, so that an embedding is reached as an input alone.
    """
    spec = tiny_spec(tied_embeddings=False)
    params = tiny_params(spec)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=(spec.width, 1)), jnp.float32)

    def states(embed):
        hidden, _ = hidden_states({**params, "embed": embed}, spec, TOKENS, POSITIONS, Causal(VALID))
        return (hidden[0] @ direction)[:, 0]

    jacobian = jax.jit(jax.jacrev(states))(params["embed"])
    reached = np.abs(jacobian[:, TOKENS[0]]).max(axis=-1)
    lower = np.tril(np.ones((L, L), bool)) & np.asarray(VALID)
    assert (reached[lower] > 1e-4).all()
    assert (reached[~lower & ~np.eye(L, dtype=bool)] == 0).all()


@pytest.mark.parametrize("family", ["tiny", *TINY_FAMILIES])
def test_cached_decode_equals_full_forward(family):
    """Ragged prompts, two responses each, teacher-forced through the cache one token at a time, in float64.

    Windows are 4: the last response tokens see some of their prompt, or none.
    """
    with jax.enable_x64(True):
        spec = dataclasses.replace(DECODERS[family], dtype="float64")
        params = tiny_params(spec, dtype=np.float64)
        prompts = tiny_prompts(spec, [5, 2, 4], 6)
        rollout = tiny_rollout(spec, [4] * 6, 4)
        tokens, mask, starts = full_rows(prompts, rollout)
        logits = np.asarray(jax.jit(causal_logits, static_argnums=1)(params, spec, tokens, mask))
        valid = jnp.arange(6)[None] < prompts.lengths_P[:, None]
        positions = jnp.broadcast_to(jnp.arange(6)[None], (3, 6))

        @jax.jit
        def prefill(params):
            hidden, cache = hidden_states(
                params, spec, prompts.tokens_PT, positions, Causal(valid), empty_slots(spec, 3, 6)
            )
            return logits_of(params, spec, hidden), cache

        @jax.jit
        def step(params, prompt_cache, own, token_B, slot):
            layout = SharedStep(prompt_cache, prompts.lengths_P, slot)
            position = jnp.asarray(starts)[:, None] + slot
            hidden, own = hidden_states(params, spec, token_B[:, None], position, layout, own)
            return logits_of(params, spec, hidden[:, 0]), own

        prompt_logits, prompt_cache = prefill(params)
        for b in range(6):
            np.testing.assert_allclose(prompt_logits[b // 2, : starts[b]], logits[b, : starts[b]], atol=1e-10)
        # Unwritten slots must not be seen.
        own = jax.tree.map(lambda x: jnp.full_like(x, 1e3), empty_slots(spec, 6, 4))
        for slot in range(4):
            made, own = step(params, prompt_cache, own, rollout.tokens_BR[:, slot], jnp.asarray(slot))
            np.testing.assert_allclose(made, logits[np.arange(6), starts + slot], atol=1e-10)
        assert np.abs(logits).max() > 1


@pytest.mark.parametrize("family", ["tiny", "tiny_mistral", "tiny_gemma3"])
def test_unstacked_layers_are_the_scanned_ones(family):
    """The same states from one tree per layer, with and without a cache, as from a scan."""
    spec = DECODERS[family]
    params = tiny_params(spec)

    @jax.jit
    def run(params, cache=None):
        return hidden_states(params, spec, TOKENS, POSITIONS, Causal(VALID), cache)[0]

    apart = unstack_layers(params)
    assert len(apart["layers"]) == spec.layers and apart["embed"] is params["embed"]
    assert unstack_layers(apart) is apart
    cache = empty_slots(spec, 1, L)
    for found in (run(apart), run(apart, cache), run(params, cache)):
        assert largest_difference(found, run(params)) < 1e-5


def gradient_of(spec):
    """Loss and gradient of a padded batch."""
    weights = jnp.asarray(np.random.default_rng(4).normal(size=(2, L, 1)), jnp.float32)
    tokens, valid = jnp.concatenate([TOKENS, TOKENS[:, ::-1]]), jnp.concatenate([VALID, VALID | True])

    def loss(params):
        hidden, _ = hidden_states(params, spec, tokens, jnp.concatenate([POSITIONS] * 2), Causal(valid))
        return jnp.where(valid[..., None], weights * jnp.sin(hidden), 0).sum()

    return jax.jit(jax.value_and_grad(loss))(tiny_params(spec))


def test_remat_and_kernel_change_nothing():
    plain = gradient_of(tiny_spec(remat="none", attention="xla"))
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[1])) > 1e-3
    for remat, attention in (("full", "auto"), ("dots", "chunked")):
        assert largest_difference(gradient_of(tiny_spec(remat=remat, attention=attention)), plain) < 2e-5


def test_remat_recomputes():
    """The policies differ in what the backward pass keeps: `full` saves the fewest arrays, `none` the most."""

    def saved(remat):
        spec = tiny_spec(remat=remat)
        hidden = lambda params: hidden_states(params, spec, TOKENS, POSITIONS, Causal(VALID))[0]  # noqa: E731
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(hidden, p)[1], shapes)))

    shapes = jax.eval_shape(functools.partial(init_decoder, spec=SPEC), jax.random.key(0))
    assert saved("full") < saved("dots") < saved("none")


def test_layers_are_initialised_apart():
    spec = tiny_spec(qkv_bias=True)
    params = jax.jit(functools.partial(init_decoder, spec=spec))(jax.random.key(3))
    for path, kernel in jax.tree_util.tree_leaves_with_path(params["layers"]):
        assert kernel.shape[0] == spec.layers and kernel.dtype == jnp.float32
        if "kernel" in str(path):
            assert jnp.abs(kernel[0] - kernel[1]).max() > 0.05
    fan_in = spec.heads * spec.head_dim
    assert float(params["layers"]["out"]["kernel"].std()) == pytest.approx(0.5 * fan_in**-0.5, rel=0.2)


def test_bfloat16_computes_in_half_and_gives_float32_logits():
    half = tiny_spec(dtype="bfloat16")
    params = tiny_params(half)

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, spec):
        hidden, cache = hidden_states(params, spec, TOKENS, POSITIONS, Causal(VALID), empty_slots(spec, 1, L))
        return hidden, cache, logits_of(params, spec, hidden)

    hidden, cache, logits = run(params, half)
    assert (hidden.dtype, cache.layers[0].key.dtype, logits.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    exact = run(params, SPEC)[2]
    gap = np.abs(logits - exact)[0, :5]
    assert 1e-4 < gap.max() < 0.15 and np.abs(exact).max() > 1


@pytest.mark.parametrize("field", ["remat", "attention"])
def test_unknown_switch_is_named(field):
    spec = tiny_spec(**{field: "non"})
    with pytest.raises(ConfigError, match="'non'.*Known: "):
        jax.eval_shape(functools.partial(init_decoder, spec=spec), jax.random.key(0))


@pytest.mark.parametrize("switch", ["qk_norm", "qkv_bias", "tied_embeddings"])
@pytest.mark.parametrize("on", [True, False])
def test_every_parameter_has_its_axes(switch, on):
    spec = tiny_spec(**{switch: on})
    shapes = jax.eval_shape(functools.partial(init_decoder, spec=spec), jax.random.key(0))
    axes = match_rules(shapes, decoder_axes(spec))
    ranks = jax.tree.map(lambda leaf, names: leaf.ndim == len(names), shapes, axes)
    assert all(jax.tree.leaves(ranks))


@pytest.mark.parametrize(
    "preset, released", [("llama31_8b", 8_030_261_248), ("qwen3_32b", 32_762_123_264), ("tiny", None)]
)
def test_presets_have_the_size_of_the_released_models(preset, released):
    """Parameter counts of the published checkpoints; the tiny one is counted by hand below."""
    shapes = jax.eval_shape(functools.partial(init_decoder, spec=DECODERS[preset]), jax.random.key(0))
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    attention = 32 * 8 * (4 + 2 + 2) + 4 * 8 * 32 + 2 * 8
    tiny = 256 * 32 + 2 * (attention + 3 * 32 * 64 + 2 * 32) + 32
    assert total == (released or tiny)
    assert tiny_decoder() == DECODERS["tiny"]
