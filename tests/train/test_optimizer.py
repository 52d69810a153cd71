"""Learning rates, clipping and weight decay by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_policy import tiny_params, tiny_spec

from pbrl_jax import MeshConfig, OptimConfig
from pbrl_jax.checkpoint import restore_latest, save_checkpoint
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import map_with_path
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.decoder import decoder_axes
from pbrl_jax.train.optimizer import decays, make_optimizer, make_schedule
from pbrl_jax.train.sft import gradient_step
from pbrl_jax.train.state import abstract_state, place_state


def rates(config: OptimConfig, steps) -> list[float]:
    schedule = make_schedule(config)
    return [float(schedule(step)) for step in steps]


def test_constant():
    assert rates(OptimConfig(learning_rate=0.5), [0, 7, 1000]) == [0.5, 0.5, 0.5]


def test_warm_up_starts_at_zero():
    config = OptimConfig(learning_rate=0.8, warmup_steps=4)
    np.testing.assert_allclose(rates(config, [0, 1, 2, 4, 5, 50]), [0, 0.2, 0.4, 0.8, 0.8, 0.8], rtol=1e-6)


def test_linear():
    """Two steps up to 1, then eight down to a quarter; past its end the schedule stays there."""
    config = OptimConfig(
        learning_rate=1.0, schedule="linear", warmup_steps=2, schedule_steps=10, min_learning_rate_share=0.25
    )
    found = rates(config, [0, 1, 2, 6, 10, 99])
    np.testing.assert_allclose(found, [0, 0.5, 1.0, 0.625, 0.25, 0.25], rtol=1e-6)


def test_cosine():
    """Half-way the cosine is the mean of peak and end, a third of the way it has lost a quarter of the range."""
    config = OptimConfig(learning_rate=2.0, schedule="cosine", schedule_steps=6, min_learning_rate_share=0.5)
    np.testing.assert_allclose(rates(config, [0, 2, 3, 6, 7]), [2.0, 1.75, 1.5, 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"schedule": "cosin"}, "'cosin'.*constant, linear, cosine"),
        ({"schedule": "linear"}, "schedule-steps"),
        ({"schedule": "cosine", "schedule_steps": 5, "warmup_steps": 5}, "5 and 5"),
    ],
)
def test_impossible_schedules_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(OptimConfig(**settings))


def one_update(config: OptimConfig, params, grads):
    optimizer = make_optimizer(config)
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    return optax.apply_updates(params, updates), state


def test_clip_and_adam_by_hand():
    """Gradient (3, 4) clipped to norm 1 is (0.6, 0.8); Adam's first step is lr * g / (|g| + eps)."""
    config = OptimConfig(learning_rate=0.1, max_grad_norm=1.0, eps=0.2)
    params, grads = {"kernel": jnp.array([1.0, 1.0])}, {"kernel": jnp.array([3.0, 4.0])}
    new, _ = one_update(config, params, grads)
    np.testing.assert_allclose(new["kernel"], [1 - 0.1 * 0.6 / 0.8, 1 - 0.1 * 0.8 / 1.0], rtol=1e-6)
    unclipped, _ = one_update(OptimConfig(learning_rate=0.1, max_grad_norm=0.0, eps=1.0), params, grads)
    np.testing.assert_allclose(unclipped["kernel"], [1 - 0.1 * 3 / 4, 1 - 0.1 * 4 / 5], rtol=1e-6)


def test_moments_use_both_decays():
    """After one step from zero the moments are (1 - b1) g and (1 - b2) g^2."""
    config = OptimConfig(b1=0.7, b2=0.96, max_grad_norm=0.0)
    _, state = one_update(config, {"kernel": jnp.zeros(1)}, {"kernel": jnp.array([2.0])})
    moments = optax.tree_utils.tree_get(state, "mu"), optax.tree_utils.tree_get(state, "nu")
    np.testing.assert_allclose([moment["kernel"][0] for moment in moments], [0.3 * 2, 0.04 * 4], rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_leaves_norms_and_biases(optimizer):
    """Without a gradient, matrices shrink by lr * decay and nothing else moves: not what Muon leaves to AdamW either,
    nor the two numbers of xIELU."""
    params = tiny_params(tiny_spec(qkv_bias=True, tied_embeddings=False, activation="xielu"))
    config = OptimConfig(optimizer=optimizer, learning_rate=0.5, weight_decay=0.2)
    new, _ = one_update(config, params, jax.tree.map(jnp.zeros_like, params))
    kept = []

    def check(path, before, after):
        if path.endswith(("scale", "bias", "alpha_p", "alpha_n")):
            kept.append(path)
            np.testing.assert_array_equal(after, before, err_msg=path)
        else:
            np.testing.assert_allclose(after, 0.9 * before, rtol=1e-6, err_msg=path)

    map_with_path(check, params, new)
    assert len(kept) == 5 + 3 + 2
    assert [path for path in ("embed", "lm_head", "layers/out/kernel", "final_norm/scale") if decays(path)] == [
        "embed",
        "lm_head",
        "layers/out/kernel",
    ]


MUON = OptimConfig(optimizer="muon", learning_rate=0.5, max_grad_norm=0.0)
MATRICES = {
    "query": (16, 16), "key": (16, 8), "value": (16, 8), "out": (16, 16), "gate": (16, 24), "up": (16, 24),
    "down": (24, 16),
}  # fmt: skip
"""Inputs and outputs of each matrix of a layer of the tiny decoder, heads and head size as one side."""


def random_gradients(params, seed=3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), params)


def test_muon_steps_are_orthogonal_and_of_adamws_size():
    """Each matrix of each layer moves by lr * 0.2 * sqrt(longer side) times a nearly orthogonal one, whatever the
    scale of its gradient; what is no matrix moves as under AdamW with Nesterov's first step."""
    params = tiny_params(tiny_spec(kv_heads=2))
    grads = random_gradients(params)
    new, _ = one_update(MUON, params, grads)
    scaled, _ = one_update(MUON, params, jax.tree.map(lambda g: 100 * g, grads))
    seen = []

    def check(path, before, after, other):
        move = np.asarray(after - before)
        np.testing.assert_allclose(other - before, move, rtol=2e-2, atol=1e-3, err_msg=path)
        name = path.split("/")[-2:][0]
        if name not in MATRICES:
            np.testing.assert_allclose(np.abs(move), np.abs(move).max(), rtol=1e-3, err_msg=path)
            return
        seen.append(name)
        for layer in move:
            matrix = layer.reshape(MATRICES[name])
            sizes = np.linalg.svd(matrix / (0.5 * 0.2 * max(matrix.shape) ** 0.5), compute_uv=False)
            assert 0.5 < sizes.min() and sizes.max() < 1.4, (path, sizes)

    map_with_path(check, params, new, scaled)
    assert sorted(seen) == sorted(MATRICES)


def test_muon_state_is_saved_and_restored(tmp_path):
    """A parameter has Muon's moment or AdamW's, never both; a checkpoint keeps them, and the next step is the same."""
    params, mesh = tiny_params(tiny_spec()), make_mesh(MeshConfig())
    optimizer, axes = make_optimizer(MUON), decoder_axes(tiny_spec())
    state = place_state(params, optimizer, axes, mesh)
    grads = random_gradients(params)
    state = jax.jit(gradient_step, static_argnums=2)(state, grads, optimizer)
    save_checkpoint(tmp_path, 1, state, {}, keep=1)
    back = restore_latest(tmp_path, abstract_state(place_state(params, optimizer, axes, mesh))).tree
    first, second = (jax.jit(gradient_step, static_argnums=2)(one, grads, optimizer) for one in (state, back))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), params, first.params)))
    moments = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert sum("'up'" in path for path in moments) == 1 and sum("'embed'" in path for path in moments) == 2
