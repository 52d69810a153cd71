"""Token rewards, GAE, whitening, the KL in the reward and an adaptive beta: by hand and against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax.algos.returns import (
    adapted_beta,
    generalised_advantages,
    kl_penalty,
    returns_to_go,
    token_rewards,
    whiten,
)

MASK = np.array([[True, True, True], [True, False, False], [False, False, False]])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


def spoiled(values, mask, garbage):
    return jnp.asarray(np.where(mask, values, garbage))


def test_the_reward_lies_on_the_last_token():
    found = token_rewards(jnp.asarray([2.0, 3.0, np.nan]), jnp.asarray(MASK))
    np.testing.assert_array_equal(found, [[0, 0, 2], [3, 0, 0], [0, 0, 0]])
    penalty = jnp.asarray([[0.5, 0.25, 1.0], [1.0, np.nan, 7.0], [9.0, 9.0, 9.0]])
    found = token_rewards(jnp.asarray([2.0, 3.0, np.nan]), jnp.asarray(MASK), penalty)
    np.testing.assert_array_equal(found, [[-0.5, -0.25, 1.0], [2.0, 0, 0], [0, 0, 0]])


def test_returns_to_go_by_hand():
    reward = jnp.asarray([[1.0, 2.0, 4.0], [8.0, 99.0, 99.0], [99.0] * 3])
    found = returns_to_go(reward, jnp.asarray(MASK), gamma=0.5)
    np.testing.assert_allclose(found, [[3.0, 4.0, 4.0], [8.0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("garbage", [1e3, -1e3, np.nan])
@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0)])
def test_gae_equals_the_sum_of_discounted_differences(gamma, lam, garbage):
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 4, 6))
    lengths = np.array([6, 4, 1, 0])
    mask = np.arange(6) < lengths[:, None]
    expected = np.zeros((4, 6))
    for b, length in enumerate(lengths):
        after = np.append(value[b, 1:length], 0.0)
        delta = reward[b, :length] + gamma * after - value[b, :length]
        for t in range(length):
            expected[b, t] = sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, length))
    found = generalised_advantages(
        spoiled(reward, mask, garbage), spoiled(value, mask, garbage), jnp.asarray(mask), gamma=gamma, lam=lam
    )
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_a_hole_in_the_mask_is_passed_over():
    reward, value = jnp.asarray([[1.0, 50.0, 2.0]]), jnp.asarray([[0.5, 60.0, 0.25]])
    found = generalised_advantages(reward, value, jnp.asarray([[True, False, True]]), gamma=0.5, lam=0.5)
    close = generalised_advantages(reward[:, ::2], value[:, ::2], jnp.ones((1, 2), bool), gamma=0.5, lam=0.5)
    np.testing.assert_allclose(found, [[close[0, 0], 0.0, close[0, 1]]])


def test_whitening_by_hand():
    # Mean 3 of 1, 2, 6: squared deviations 14; unbiased variance 7, biased 14 / 3.
    values, mask = jnp.asarray([[1.0, 2.0], [6.0, np.nan]]), jnp.asarray([[True, True], [True, False]])
    np.testing.assert_allclose(whiten(values, mask), [[-2 / 7**0.5, -1 / 7**0.5], [3 / 7**0.5, 0]], rtol=1e-8)
    biased = whiten(values, mask, ddof=0, epsilon=0.0)
    np.testing.assert_allclose(biased[1, 0], 3 / (14 / 3) ** 0.5, rtol=1e-14)
    same = whiten(jnp.full((1, 3), 0.1), jnp.ones((1, 3), bool))
    assert np.isfinite(same).all() and np.abs(same).max() < 1e-3


def test_equal_values_are_whitened_to_zero():
    """Exactly, whatever their size, also where they differ by a rounding; what is not finite stays so."""
    for kind, size in ((np.float32, 0.9), (np.float32, 1e4), (np.float64, 1e9)):
        values = np.full(7, size, kind)
        for last in (values[-1], np.nextafter(values[-1], kind(np.inf))):
            found = whiten(jnp.asarray(np.append(values[:-1], last)), jnp.ones(7, bool))
            np.testing.assert_array_equal(found, 0)
    apart = whiten(jnp.asarray([1e4, 1e4 + 0.1], jnp.float32), jnp.ones(2, bool))
    np.testing.assert_allclose(np.abs(apart), 0.5**0.5, rtol=1e-3)
    for wrong in (np.nan, np.inf):
        assert not np.isfinite(whiten(jnp.asarray([1.0, wrong]), jnp.ones(2, bool))).any()


# Three tokens: the expected policy gradient of a KL in the reward, against the exact gradients of the KLs.

LOGITS = np.array([0.3, -1.1, 0.9])
REFERENCE = np.log(np.array([0.2, 0.5, 0.3]))
P = np.exp(LOGITS) / np.exp(LOGITS).sum()
D = np.log(P) - REFERENCE


def gradient_of_mean(values):
    """d/dlogits of sum_i p_i * values_i, values held fixed: p * (values - their mean)."""
    return P * (values - (P * values).sum())


REVERSE_KL = gradient_of_mean(D)
FORWARD_KL = P - np.exp(REFERENCE)


@pytest.mark.parametrize(
    "estimator, expected",
    [("k1", REVERSE_KL), ("k2", gradient_of_mean(D**2 / 2)), ("k3", REVERSE_KL - FORWARD_KL)],
)
def test_the_gradient_of_a_kl_in_the_reward_is_what_is_said_of_it(estimator, expected):
    total = np.zeros(3)
    for token in range(3):

        def loss(logits, token=token):
            logp = jax.nn.log_softmax(logits)[token].reshape(1, 1)
            ref, mask = jnp.asarray(REFERENCE[token]).reshape(1, 1), jnp.ones((1, 1), bool)
            penalty = kl_penalty(logp, ref, mask, beta=0.5, estimator=estimator)
            reward = token_rewards(jnp.zeros(1), mask, penalty)
            return (-reward * logp).sum()

        total += P[token] * np.asarray(jax.grad(loss)(jnp.asarray(LOGITS)))
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(total, 0.5 * expected, atol=1e-14)


def test_the_exact_kl_gradients_are_those_of_finite_differences():
    def kls(logits):
        p = np.exp(logits) / np.exp(logits).sum()
        return np.array([(p * (np.log(p) - REFERENCE)).sum(), (np.exp(REFERENCE) * (REFERENCE - np.log(p))).sum()])

    numeric = np.stack([(kls(LOGITS + 1e-5 * e) - kls(LOGITS - 1e-5 * e)) / 2e-5 for e in np.eye(3)], axis=1)
    np.testing.assert_allclose([REVERSE_KL, FORWARD_KL], numeric, atol=1e-9)


@pytest.mark.parametrize("garbage", [1e3, -1e3, np.nan, np.inf])
def test_a_penalty_is_finite_and_zero_outside_the_mask(garbage):
    logp, ref = np.full((3, 3), -1.0), np.array([[-101.0, -1.0, 99.0]] * 3)
    for estimator in ("k1", "k2", "k3"):
        found = np.asarray(
            kl_penalty(
                spoiled(logp, MASK, garbage), spoiled(ref, MASK, -garbage), jnp.asarray(MASK), beta=0.1,
                estimator=estimator,
            )
        )  # fmt: skip
        assert np.isfinite(found).all() and found[0, 0] > 0 and found[0, 1] == 0
        assert (found[~MASK] == 0).all()


def test_beta_follows_the_kl_to_its_target():
    settings = {"target": 0.1, "horizon": 100, "responses": 50}
    beta = jnp.asarray(0.02)
    # Twice the target: clipped to +20 %, half the horizon: + 10 %. A tenth over: + 5 %. Non-finite: unchanged.
    for kl, expected in ((0.2, 0.022), (0.11, 0.021), (0.0, 0.018), (np.nan, 0.02), (np.inf, 0.02)):
        np.testing.assert_allclose(adapted_beta(beta, jnp.asarray(kl), **settings), expected, rtol=1e-12)
    # More responses than the horizon: never more than 20 %, and never below 0.
    np.testing.assert_allclose(adapted_beta(beta, jnp.asarray(0.0), target=0.1, horizon=100, responses=900), 0.016)
