"""Masked reductions against loops written by hand, with garbage under the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax.core.masking import (
    divide_or_zero,
    masked_count,
    masked_mean,
    masked_range,
    masked_std,
    masked_sum,
    masked_variance,
    where_valid,
)

GARBAGE = [np.nan, np.inf, -np.inf, 1e30]
X = np.array([[1.0, 2.0, 6.0], [-4.0, 0.0, 10.0]], np.float32)
MASK = np.array([[True, True, True], [True, False, True]])

#: Worked by hand: rows (1, 2, 6) and (-4, 10); all five have mean 3 and squared deviations 4 + 1 + 9 + 49 + 49 = 112.
ROWS = {
    masked_sum: [9.0, 6.0],
    masked_mean: [3.0, 3.0],
    masked_range: [5.0, 14.0],
    masked_variance: [14.0 / 3, 49.0],
    masked_std: [np.sqrt(14.0 / 3), 7.0],
}
ALL = {masked_sum: 15.0, masked_mean: 3.0, masked_range: 14.0, masked_variance: 22.4, masked_std: np.sqrt(22.4)}


def spoiled(garbage):
    return jnp.asarray(np.where(MASK, X, np.float32(garbage)))


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("reduce", ROWS)
def test_values_by_hand_whatever_lies_under_the_mask(reduce, garbage):
    x, mask = spoiled(garbage), jnp.asarray(MASK)
    np.testing.assert_allclose(reduce(x, mask, axis=1), ROWS[reduce], rtol=1e-6)
    np.testing.assert_allclose(reduce(x, mask, axis=1, keepdims=True), np.array(ROWS[reduce])[:, None], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(reduce)(x, mask), ALL[reduce], rtol=1e-6)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("reduce", [masked_sum, masked_mean, masked_variance, masked_std])
def test_gradients_are_those_of_the_valid_entries(reduce, garbage):
    grad = jax.grad(lambda x: reduce(x, jnp.asarray(MASK)))(spoiled(garbage))
    deviation = np.where(MASK, X - 3.0, 0.0)
    by_hand = {
        masked_sum: MASK * 1.0,
        masked_mean: MASK / 5.0,
        masked_variance: 2 * deviation / 5,
        masked_std: deviation / (5 * np.sqrt(22.4)),
    }[reduce]
    np.testing.assert_allclose(grad, by_hand, rtol=1e-5, atol=1e-7)


def test_ddof_divides_by_fewer_and_too_few_entries_give_zero():
    mask = jnp.asarray([[True, True, True], [True, False, False]])
    np.testing.assert_allclose(masked_variance(jnp.asarray(X), mask, axis=1, ddof=1), [7.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(masked_std(jnp.asarray(X), mask, axis=1, ddof=1), [np.sqrt(7.0), 0.0], rtol=1e-6)
    np.testing.assert_allclose(masked_variance(jnp.asarray(X), mask, axis=1, ddof=2), [14.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("reduce", ROWS)
def test_nothing_valid_is_zero_with_zero_gradient(reduce):
    x, mask = jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)
    np.testing.assert_array_equal(reduce(x, mask, axis=1), [0.0, 0.0])
    np.testing.assert_array_equal(jax.grad(lambda x: reduce(x, mask))(x), np.zeros((2, 3)))


def test_no_spread_has_zero_std_and_a_finite_gradient():
    x = jnp.full((1, 4), 3.0)
    value, grad = jax.value_and_grad(lambda x: masked_std(x, jnp.ones((1, 4), bool)))(x)
    assert value == 0
    np.testing.assert_array_equal(grad, np.zeros((1, 4)))


def test_variance_keeps_its_digits_on_a_large_mean():
    x = jnp.asarray([[10000.0, 10001.0, 10002.0]])
    np.testing.assert_allclose(masked_variance(x, jnp.ones((1, 3), bool), ddof=1), 1.0, rtol=1e-6)


def test_range_of_equal_numbers_is_exactly_zero_where_the_variance_need_not_be():
    x = jnp.full((1, 7), 0.1, jnp.float32)
    assert masked_range(x, jnp.ones((1, 7), bool)) == 0


def test_half_precision_is_reduced_in_float32_and_float64_stays():
    x = jnp.full((1, 1001), 1.0, jnp.bfloat16)
    total = masked_sum(x, jnp.ones(x.shape, bool))
    assert total.dtype == jnp.float32
    assert total == 1001  # bfloat16 has no 1001
    with jax.enable_x64(True):
        for reduce in ROWS:
            assert reduce(jnp.asarray(X, jnp.float64), jnp.asarray(MASK)).dtype == jnp.float64


def test_where_valid_count_and_division():
    mask = jnp.asarray(MASK)
    np.testing.assert_array_equal(where_valid(spoiled(np.nan), mask), np.where(MASK, X, 0))
    np.testing.assert_array_equal(masked_count(mask, axis=1), [3, 2])
    np.testing.assert_array_equal(divide_or_zero(jnp.asarray([6.0, 5.0]), jnp.asarray([4.0, 0.0])), [1.5, 0.0])
    grad = jax.grad(lambda total: divide_or_zero(total, jnp.asarray([4.0, 0.0])).sum())(jnp.asarray([6.0, 5.0]))
    np.testing.assert_array_equal(grad, [0.25, 0.0])
