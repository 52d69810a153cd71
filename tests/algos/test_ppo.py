"""The critic's advantages and loss, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax.algos.advantages import ScoredGroups
from pbrl_jax.algos.ppo import PpoConfig, estimate, value_loss
from pbrl_jax.algos.returns import whiten

MASK = np.array([[True, True, True], [True, True, False]])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


def test_advantages_are_whitened_and_returns_are_not():
    """gamma 1, lambda 1: the return of every token is the reward, less the penalties still to come."""
    value = np.array([[0.5, 1.0, -1.0], [0.25, 0.75, 0.0]])
    penalty = np.array([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    for garbage in (1e3, np.nan):
        groups = ScoredGroups(
            jnp.asarray([[2.0], [1.0]]), jnp.ones((2, 1), bool), jnp.asarray(MASK),
            jnp.asarray(np.where(MASK, penalty, garbage)),
        )  # fmt: skip
        values = jnp.asarray(np.where(MASK, value, garbage))
        adv, returns = estimate(groups, values, config=PpoConfig(gamma=1.0, lam=1.0))
        np.testing.assert_allclose(returns, [[1.5, 1.5, 2.0], [1.0, 1.0, 0.0]], rtol=1e-12)
        raw = jnp.asarray([[1.0, 0.5, 3.0], [0.75, 0.25, 0.0]])
        np.testing.assert_allclose(adv, whiten(raw, jnp.asarray(MASK)), rtol=1e-12)


def test_the_value_is_held_near_the_old_one():
    """Targets 1; old values 0; clip 0.2. Value 0.5 is held at 0.2: the larger error 0.64 / 2, no gradient. Value -0.5
    is held at -0.2, but 2.25 / 2 is larger. Value 0.1 is inside. Masked tokens hold anything."""
    value = jnp.asarray([[0.5, -0.5, 0.1], [1.0, np.nan, np.inf]])
    mask = jnp.asarray([[True, True, True], [True, False, False]])
    old, target = jnp.zeros((2, 3)), jnp.ones((2, 3))

    def loss(value, clip):
        total, count, metrics = value_loss(value, old, target, mask, cliprange_value=clip)
        return total, (count, metrics)

    (total, (count, metrics)), grad = jax.value_and_grad(loss, has_aux=True)(value, 0.2)
    np.testing.assert_allclose(total, 0.5 * (0.64 + 2.25 + 0.81 + 0.64), rtol=1e-12)
    assert count == 4 and metrics["value_clip_ratio"] == (2, 4)
    np.testing.assert_allclose(grad, [[0.0, -1.5, -0.9], [0.0, 0.0, 0.0]], rtol=1e-12)
    (free, _), grad = jax.value_and_grad(loss, has_aux=True)(value, None)
    np.testing.assert_allclose(free, 0.5 * (0.25 + 2.25 + 0.81 + 0.0), rtol=1e-12)
    np.testing.assert_allclose(grad[0], [-0.5, -1.5, -0.9], rtol=1e-12)
