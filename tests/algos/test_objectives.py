"""Ratio, clip, KL estimates and aggregation, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax.algos.losses import LOSSES, aggregate
from pbrl_jax.algos.objectives import (
    KL_ESTIMATORS,
    clipped_surrogate,
    importance_ratio,
    kl_estimate,
)
from pbrl_jax.core.errors import ConfigError

LOGITS = np.array([0.3, -1.1, 0.9])
REFERENCE = np.log(np.array([0.2, 0.5, 0.3]))
LOSS = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
MASK = np.array([[True, True, True], [True, False, False]])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum())


def softmax_vjp(logits, cotangent):
    """d/dlogits of sum(cotangent * p), p = softmax(logits): p * (cotangent - mean of it under p)."""
    p = np.exp(log_softmax(logits))
    return p * (cotangent - (p * cotangent).sum())


def expected_loss_gradient(estimator, corrected=False):
    """Mean over all three tokens, weighted by their probability, of the gradient of the per-token loss."""
    p = np.exp(log_softmax(LOGITS))
    total = np.zeros(3)
    for token in range(3):

        def per_token(logits, token=token):
            logp = jax.nn.log_softmax(logits)[token]
            kl = kl_estimate(logp, jnp.asarray(REFERENCE[token]), estimator)
            return importance_ratio(logp, jax.lax.stop_gradient(logp)) * kl if corrected else kl

        total += p[token] * np.asarray(jax.grad(per_token)(jnp.asarray(LOGITS)))
    return total


# d KL(p || q) / dp_i = log p_i - log q_i + 1, whose constant the softmax takes out; d KL(q || p) / dlogits = p - q.
REVERSE_KL_GRADIENT = softmax_vjp(LOGITS, log_softmax(LOGITS) - REFERENCE)
FORWARD_KL_GRADIENT = np.exp(log_softmax(LOGITS)) - np.exp(REFERENCE)


def test_the_gradients_worked_by_hand_are_those_of_finite_differences():
    def reverse(logits):
        p = log_softmax(logits)
        return (np.exp(p) * (p - REFERENCE)).sum()

    def forward(logits):
        return (np.exp(REFERENCE) * (REFERENCE - log_softmax(logits))).sum()

    for function, gradient in ((reverse, REVERSE_KL_GRADIENT), (forward, FORWARD_KL_GRADIENT)):
        numeric = [(function(LOGITS + 1e-5 * e) - function(LOGITS - 1e-5 * e)) / 2e-5 for e in np.eye(3)]
        np.testing.assert_allclose(gradient, numeric, atol=1e-9)
        assert np.abs(gradient).max() > 0.1
    assert np.abs(REVERSE_KL_GRADIENT - FORWARD_KL_GRADIENT).max() > 0.1


def test_k1_in_the_loss_pulls_nowhere_although_its_value_is_the_kl():
    p = np.exp(log_softmax(LOGITS))
    values = kl_estimate(jnp.asarray(log_softmax(LOGITS)), jnp.asarray(REFERENCE), "k1")
    np.testing.assert_allclose((p * values).sum(), (p * (log_softmax(LOGITS) - REFERENCE)).sum(), rtol=1e-12)
    np.testing.assert_allclose(expected_loss_gradient("k1"), np.zeros(3), atol=1e-15)


def test_k2_in_the_loss_has_the_gradient_of_the_kl():
    np.testing.assert_allclose(expected_loss_gradient("k2"), REVERSE_KL_GRADIENT, atol=1e-14)


def test_k3_in_the_loss_has_the_gradient_of_the_forward_kl():
    np.testing.assert_allclose(expected_loss_gradient("k3"), FORWARD_KL_GRADIENT, atol=1e-14)


def test_times_the_ratio_k1_and_k3_have_the_gradient_of_the_kl():
    np.testing.assert_allclose(expected_loss_gradient("k1", corrected=True), REVERSE_KL_GRADIENT, atol=1e-14)
    np.testing.assert_allclose(expected_loss_gradient("k3", corrected=True), REVERSE_KL_GRADIENT, atol=1e-14)


def test_times_the_ratio_k2_has_the_gradient_of_its_own_mean():
    # Of sum_i p_i d_i^2 / 2: cotangent d_i^2 / 2 + d_i.
    d = log_softmax(LOGITS) - REFERENCE
    own = softmax_vjp(LOGITS, d**2 / 2 + d)
    np.testing.assert_allclose(expected_loss_gradient("k2", corrected=True), own, atol=1e-14)
    assert np.abs(own - REVERSE_KL_GRADIENT).max() > 0.01


def test_kl_values_by_hand():
    logp, ref = jnp.asarray(np.log([0.5, 0.2])), jnp.asarray(np.log([0.25, 0.4]))
    log2 = np.log(2)
    np.testing.assert_allclose(kl_estimate(logp, ref, "k1"), [log2, -log2], rtol=1e-14)
    np.testing.assert_allclose(kl_estimate(logp, ref, "k2"), [log2**2 / 2] * 2, rtol=1e-14)
    np.testing.assert_allclose(kl_estimate(logp, ref, "k3"), [0.5 - 1 + log2, 2 - 1 - log2], rtol=1e-14)


def test_k3_keeps_its_digits_between_close_policies():
    logp = jnp.asarray([-1.0], jnp.float32)
    ref = logp + jnp.float32(2**-12)
    np.testing.assert_allclose(kl_estimate(logp, ref, "k3"), [0.5 * 2**-24 * (1 + 2**-12 / 3)], rtol=1e-3)


def test_extreme_log_ratios_stay_finite_where_an_exp_is_taken():
    logp, ref = jnp.asarray([0.0, -500.0, -25.0]), jnp.asarray([-500.0, 0.0, 0.0])
    value, grad = jax.vmap(jax.value_and_grad(lambda a, b: kl_estimate(a, b, "k3")))(logp, ref)
    np.testing.assert_array_equal(value, [10.0, 10.0, 10.0])
    np.testing.assert_array_equal(grad, [0.0, 0.0, 0.0])
    np.testing.assert_allclose(importance_ratio(logp, ref), [np.exp(20), np.exp(-20), np.exp(-20)])
    np.testing.assert_allclose(kl_estimate(logp, ref, "k1"), [500.0, -500.0, -25.0])


def test_clip_by_hand_with_a_higher_upper_bound():
    ratio = jnp.asarray([0.7, 0.7, 1.25, 1.25, 1.4, 1.4, 1.0])
    adv = jnp.asarray([2.0, -2.0, 2.0, -2.0, 2.0, -2.0, 2.0])
    tokens = clipped_surrogate(ratio, adv, epsilon=0.2, epsilon_high=0.28)
    np.testing.assert_allclose(tokens.loss, [-1.4, 1.6, -2.5, 2.5, -2.56, 2.8, -2.0], rtol=1e-14)
    np.testing.assert_array_equal(tokens.low_clipped, [False, True, False, False, False, False, False])
    np.testing.assert_array_equal(tokens.high_clipped, [False, False, False, False, True, False, False])
    narrow = clipped_surrogate(ratio, adv, epsilon=0.2)
    np.testing.assert_allclose(narrow.loss, [-1.4, 1.6, -2.4, 2.5, -2.4, 2.8, -2.0], rtol=1e-14)
    grad = jax.grad(lambda r: clipped_surrogate(r, adv, epsilon=0.2, epsilon_high=0.28).loss.sum())(ratio)
    np.testing.assert_array_equal(grad, [-2.0, 0.0, -2.0, 2.0, 0.0, 2.0, -2.0])


def test_the_clip_is_ppos_minimum():
    ratio, adv = np.meshgrid(np.linspace(0.2, 2.0, 37), np.linspace(-2, 2, 9))
    tokens = clipped_surrogate(jnp.asarray(ratio), jnp.asarray(adv), epsilon=0.2, epsilon_high=0.3)
    np.testing.assert_allclose(tokens.loss, -np.minimum(ratio * adv, np.clip(ratio, 0.8, 1.3) * adv), atol=1e-14)


BY_HAND = {  # rows (1, 2, 3) and (10): R = 3, constant length 8
    "grpo": (2.0 + 10.0, 2),
    "bnpo": (16.0, 4),
    "dapo": (16.0, 4),
    "dr_grpo": (16.0, 2 * 8),
    "sapo": (2.0 + 10.0, 2),
    "cispo": (16.0, 4),
    "gpg": (16.0, 4),
}


def test_every_aggregation_is_worked_by_hand():
    assert set(BY_HAND) == set(LOSSES)


@pytest.mark.parametrize("loss_type", BY_HAND)
@pytest.mark.parametrize("garbage", [1e3, -1e3, np.nan, np.inf])
def test_aggregation_by_hand(loss_type, garbage):
    loss = jnp.asarray(np.where(MASK, LOSS, garbage))
    total, count = aggregate(loss, jnp.asarray(MASK), loss_type=loss_type, max_completion_length=8)
    assert (total, count) == BY_HAND[loss_type]


@pytest.mark.parametrize("loss_type", BY_HAND)
def test_a_masked_row_leaves_the_count_unless_it_is_asked_to_stay(loss_type):
    loss = jnp.asarray(np.concatenate([LOSS, np.full((1, 3), np.nan)]))
    mask = jnp.asarray(np.concatenate([MASK, np.zeros((1, 3), bool)]))
    settings = {"loss_type": loss_type, "max_completion_length": 8}
    assert aggregate(loss, mask, **settings) == BY_HAND[loss_type]
    total, count = aggregate(loss, mask, **settings, count_masked_rows=True)
    rows = {"grpo": 3, "dr_grpo": 24, "sapo": 3, "bnpo": 4, "dapo": 4, "cispo": 4, "gpg": 4}
    assert (total, count) == (BY_HAND[loss_type][0], rows[loss_type])


def test_nothing_at_all_counts_zero():
    for loss_type in LOSSES:
        found = aggregate(
            jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool), loss_type=loss_type, max_completion_length=8
        )
        assert found == (0, 0)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="'k4'.*Known: k1, k2, k3"):
        kl_estimate(jnp.zeros(1), jnp.zeros(1), "k4")
    with pytest.raises(ConfigError, match="'drgrpo'.*Did you mean 'dr_grpo'"):
        aggregate(jnp.asarray(LOSS), jnp.asarray(MASK), loss_type="drgrpo", max_completion_length=8)
    assert set(KL_ESTIMATORS) == {"k1", "k2", "k3"}
