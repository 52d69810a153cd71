"""Learning rates, clipping and weight decay by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_policy import tiny_params, tiny_spec

from pbrl_jax.core.config import OptimConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import map_with_path
from pbrl_jax.train.optimizer import decays, make_optimizer, make_schedule


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


def test_weight_decay_leaves_norms_and_biases():
    """Without a gradient, matrices shrink by lr * decay and nothing else moves."""
    params = tiny_params(tiny_spec(qkv_bias=True, tied_embeddings=False))
    config = OptimConfig(learning_rate=0.5, weight_decay=0.2)
    new, _ = one_update(config, params, jax.tree.map(jnp.zeros_like, params))
    kept = []

    def check(path, before, after):
        if path.endswith(("scale", "bias")):
            kept.append(path)
            np.testing.assert_array_equal(after, before, err_msg=path)
        else:
            np.testing.assert_allclose(after, 0.9 * before, rtol=1e-6, err_msg=path)

    map_with_path(check, params, new)
    assert len(kept) == 5 + 3
    assert [path for path in ("embed", "lm_head", "layers/out/kernel", "final_norm/scale") if decays(path)] == [
        "embed",
        "lm_head",
        "layers/out/kernel",
    ]
