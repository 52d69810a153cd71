"""REINFORCE++, its baseline form, OPO, GPG, GDPO and the floor of the spread: by hand, and with invalid rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax import AlgoConfig
from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.advantages import ScoredGroups, group_advantages, normalize_then_sum

REWARD = np.array([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]])
VALID = np.array([[True, True, True], [True, True, False]])
LENGTHS = np.array([1, 2, 3, 2, 1, 0])
MASK = np.arange(3) < LENGTHS[:, None]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


def advantages(name, reward=REWARD, valid=VALID, mask=MASK, penalty=None, **settings):
    penalty = None if penalty is None else jnp.asarray(penalty)
    groups = ScoredGroups(jnp.asarray(reward), jnp.asarray(valid), jnp.asarray(mask), penalty)
    return np.asarray(ALGORITHMS[name].estimate(groups, None, config=AlgoConfig(**settings))[0])


def whitened(values):
    values = np.asarray(values, float)
    return (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8)


def test_reinforce_plus_plus_by_hand():
    """Returns to go with gamma 1/2: (1), (1, 2), (1.5, 3, 6), (.25, .5), (.5); nothing of the invalid row."""
    found = advantages("reinforce_plus_plus", gamma=0.5)
    np.testing.assert_allclose(found[MASK], whitened([1, 1, 2, 1.5, 3, 6, 0.25, 0.5, 0.5]), rtol=1e-12)
    assert (found[~MASK] == 0).all()


def test_reinforce_plus_plus_takes_the_penalty_off_every_token():
    """On the third row 1 a token: rewards (-1, -1, 5), returns (3, 4, 5)."""
    penalty = np.where(np.arange(6)[:, None] == 2, 1.0, 0.0) * MASK
    found = advantages("reinforce_plus_plus", penalty=penalty)
    np.testing.assert_allclose(found[MASK], whitened([1, 2, 2, 3, 4, 5, 0.5, 0.5, 0.5]), rtol=1e-12)


def test_reinforce_plus_plus_baseline_by_hand():
    """Minus the group's mean: -2, -1, 3 and 0, 0, on every token."""
    found = advantages("reinforce_plus_plus_baseline")
    np.testing.assert_allclose(found[MASK], whitened([-2, -1, -1, 3, 3, 3, 0, 0, 0]), rtol=1e-12, atol=1e-15)


def test_reinforce_plus_plus_of_equal_rewards_is_zero():
    """In float32, where the mean of equal rewards is another number; for the baseline the groups may differ."""
    flat, levels = np.full((4, 3), 0.9, np.float32), np.repeat(np.float32([[0.1], [0.7], [0.3], [0.9]]), 3, axis=1)
    everything = {"valid": np.ones((4, 3), bool), "mask": np.ones((12, 3), bool)}
    for reward in (flat, levels):
        assert (advantages("reinforce_plus_plus_baseline", reward=reward, **everything) == 0).all()
    assert (advantages("reinforce_plus_plus", reward=flat, **everything) == 0).all()
    assert np.abs(advantages("reinforce_plus_plus", reward=levels, **everything)).max() > 0.5


def test_opo_by_hand():
    """Baseline (1 * 1 + 2 * 2 + 3 * 6) / (1 + 2 + 3) = 23 / 6."""
    np.testing.assert_allclose(advantages("opo"), [1 - 23 / 6, 2 - 23 / 6, 6 - 23 / 6, 0, 0, 0], rtol=1e-12)


def test_gpg_makes_up_for_groups_without_signal():
    """Five valid rows, three of them in the group with signal: deviations (-2, -1, 3) times 5 / 3."""
    np.testing.assert_allclose(advantages("gpg"), [-10 / 3, -5 / 3, 5, 0, 0, 0], rtol=1e-12)
    nothing = advantages("gpg", reward=np.ones((2, 3)))
    assert (nothing == 0).all()


def test_gpg_makes_up_once_for_groups_that_left_the_loss():
    """The count of the loss is without them already."""
    np.testing.assert_allclose(advantages("gpg", mask_zero_std_groups=True), [-2, -1, 3, 0, 0, 0], rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "ppo"])
@pytest.mark.parametrize("garbage", [1e3, np.nan, np.inf])
def test_invalid_rows_leave_everything(name, garbage):
    clean = advantages(name)
    dirty = advantages(name, reward=np.where(VALID, REWARD, garbage))
    assert np.abs(clean).max() > 0.5
    np.testing.assert_array_equal(dirty, clean)


@pytest.mark.parametrize("name", ["grpo", "opo", "gpg", "reinforce_plus_plus_baseline"])
def test_a_penalty_is_taken_off_the_reward_of_its_row(name):
    penalty = np.random.default_rng(0).normal(size=MASK.shape) * MASK
    less = REWARD - penalty.sum(axis=1).reshape(REWARD.shape)
    found = advantages(name, penalty=penalty)
    assert np.abs(found - advantages(name)).max() > 0.1
    np.testing.assert_array_equal(found, advantages(name, reward=less))


def test_normalised_before_they_are_summed():
    """(1, 3) and (100, 0) become -+1 / sqrt 2 each, so a wide one no longer drowns a narrow one: with weights 2 and 1
    the first decides. Of the same width and weight the opposite orders cancel."""
    valid = jnp.ones((2, 2, 2), bool)
    same = jnp.asarray([[[1.0, 3.0], [5.0, 5.0]], [[2.0, 0.0], [7.0, 7.0]]])
    np.testing.assert_allclose(normalize_then_sum(same, valid, jnp.ones(2), epsilon=1e-4), 0, atol=1e-9)
    np.testing.assert_array_equal(normalize_then_sum(jnp.ones((2, 2, 2)), valid, jnp.ones(2), epsilon=0.0), 0)
    reward = jnp.asarray([[[1.0, 3.0], [5.0, 5.0]], [[100.0, 0.0], [7.0, 7.0]]])
    first = np.asarray(normalize_then_sum(reward, valid, jnp.asarray([2.0, 1.0]), epsilon=1e-9))
    # Sums (-1, 1, 0, 0) / sqrt 2: spread sqrt(1 / 3).
    np.testing.assert_allclose(first.ravel(), np.array([-1, 1, 0, 0]) * np.sqrt(1.5), rtol=1e-6)


def test_a_function_that_could_not_score_a_row_leaves_it_to_the_others():
    reward = jnp.asarray([[[1.0, 3.0, np.nan, 2.0]], [[np.nan, 0.0, np.nan, 1.0]]])
    found = np.asarray(normalize_then_sum(reward, ~jnp.isnan(reward), jnp.asarray([1.0, 1.0]), epsilon=1e-4))
    assert np.isfinite(found).all() and found[0, 2] == 0
    # First function -1, 1, 0 over its spread 1; second -, -a, a with a = sqrt(1 / 2); whitened together.
    a = 0.5 / (0.5**0.5 + 1e-4)
    parts = np.array([-1 / 1.0001, 1 / 1.0001 - a, a])
    np.testing.assert_allclose(found[0, [0, 1, 3]], (parts - parts.mean()) / (parts.std(ddof=1) + 1e-4), rtol=1e-9)


def test_the_floor_keeps_a_narrow_group_narrow_and_touches_no_wide_one():
    reward = jnp.asarray([[0.500, 0.501, 0.502], [0.0, 1.0, 2.0]])
    valid = jnp.ones((2, 3), bool)
    free, floored = (group_advantages(reward, valid, scale="group", epsilon=0.0, floor=f) for f in (0.0, 0.1))
    np.testing.assert_allclose(free[0], [-1, 0, 1], atol=1e-9)
    np.testing.assert_allclose(floored[0], [-0.01, 0, 0.01], atol=1e-12)
    np.testing.assert_array_equal(floored[1], free[1])
