"""Group advantages by hand and against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbrl_jax.algos.advantages import SCALES, group_advantages, group_metrics, zero_std_share
from pbrl_jax.core.errors import ConfigError

REWARD = np.array([[1.0, 2.0, 6.0], [0.5, 0.5, 9.0]], np.float32)
VALID = np.array([[True, True, True], [True, True, False]])


@pytest.fixture(autouse=True, scope="module")
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def loop(reward, valid, scale, epsilon, leave_one_out):
    """The definition, one row at a time."""
    out = np.zeros(reward.shape)
    everything = [r for r, v in zip(reward.ravel(), valid.ravel(), strict=True) if v]
    for p in range(reward.shape[0]):
        group = [reward[p, g] for g in range(reward.shape[1]) if valid[p, g]]
        if len(group) < 2 or max(group) - min(group) <= 1e-8:
            continue
        for g in range(reward.shape[1]):
            if not valid[p, g]:
                continue
            baseline = sum(group) / len(group)
            if leave_one_out:
                baseline = (sum(group) - reward[p, g]) / (len(group) - 1)
            spread = {"none": None, "group": group, "batch": everything}[scale]
            divisor = 1.0 if spread is None else np.std(spread, ddof=1) + epsilon
            out[p, g] = (reward[p, g] - baseline) / divisor
    return out


def advantages(reward, valid, **settings):
    return group_advantages(jnp.asarray(reward), jnp.asarray(valid), **settings)


def test_by_hand():
    # Group (1, 2, 6): mean 3, squared deviations 4 + 1 + 9 = 14, unbiased spread sqrt(7).
    root = np.sqrt(7.0)
    expected = np.array([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(advantages(REWARD, VALID, scale="none", epsilon=0.1), expected, rtol=1e-6)
    np.testing.assert_allclose(
        advantages(REWARD, VALID, scale="group", epsilon=0.1), expected / (root + 0.1), rtol=1e-6
    )
    # All valid rewards (1, 2, 6, 0.5, 0.5): mean 2, squared deviations 1 + 0 + 16 + 2.25 + 2.25 = 21.5, over 4.
    batch = np.sqrt(21.5 / 4)
    np.testing.assert_allclose(
        advantages(REWARD, VALID, scale="batch", epsilon=0.1), expected / (batch + 0.1), rtol=1e-6
    )


def test_leave_one_out_by_hand():
    # Baselines of (1, 2, 6): the others' means 4, 3.5, 1.5.
    found = advantages(REWARD, VALID, scale="none", epsilon=0.0, leave_one_out=True)
    np.testing.assert_allclose(found, [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_invalid_rows_leave_everything(scale, leave_one_out, garbage):
    reward = np.array([[1.0, garbage, 2.0, 6.0], [garbage, 0.0, 4.0, garbage]], np.float32)
    valid = np.array([[True, False, True, True], [False, True, True, False]])
    found = advantages(reward, valid, scale=scale, epsilon=1e-4, leave_one_out=leave_one_out)
    np.testing.assert_allclose(found, loop(reward, valid, scale, 1e-4, leave_one_out), rtol=2e-6, atol=1e-7)
    assert (np.asarray(found)[valid] != 0).all()
    assert (np.asarray(found)[~valid] == 0).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_fewer_than_two_valid_rows_give_zero(scale, leave_one_out):
    reward = np.array([[5.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 1.0, 2.0]], np.float32)
    valid = np.array([[True, False, False], [False, False, False], [True, True, True]])
    found = np.asarray(advantages(reward, valid, scale=scale, epsilon=1e-4, leave_one_out=leave_one_out))
    assert (found[:2] == 0).all()
    assert found[2, 0] < 0 < found[2, 2]
    alone = advantages(reward[:, :1], valid[:, :1], scale=scale, epsilon=1e-4, leave_one_out=leave_one_out)
    assert (np.asarray(alone) == 0).all()


def test_equal_rewards_are_exactly_zero_even_where_rounding_and_a_tiny_epsilon_would_blow_them_up():
    reward = np.full((1, 7), 0.1, np.float32)
    reward = np.concatenate([reward, np.arange(7, dtype=np.float32)[None]])
    found = np.asarray(advantages(reward, np.ones((2, 7), bool), scale="group", epsilon=0.0))
    assert (found[0] == 0).all()
    assert np.isfinite(found).all() and (found[1, 4:] > 0).all()


def test_a_reward_that_is_not_finite_but_marked_valid_does_not_pass_for_a_number():
    reward, valid = np.array([[1.0, np.inf, 2.0], [1.0, 2.0, 3.0]], np.float32), np.ones((2, 3), bool)
    found = np.asarray(advantages(reward, valid, scale="group", epsilon=1e-4))
    assert not np.isfinite(found[0]).any()
    assert np.isfinite(found[1]).all()


finite = st.floats(-5, 5, width=32).map(lambda x: round(x, 3))


@settings(max_examples=60, deadline=None)
@given(
    reward=st.lists(finite, min_size=12, max_size=12),
    valid=st.lists(st.booleans(), min_size=12, max_size=12),
    scale=st.sampled_from(sorted(SCALES)),
    leave_one_out=st.booleans(),
)
def test_any_batch_equals_the_loop(reward, valid, scale, leave_one_out):
    reward, valid = np.reshape(reward, (3, 4)), np.reshape(valid, (3, 4))
    with jax.enable_x64(True):
        found = advantages(reward, valid, scale=scale, epsilon=1e-4, leave_one_out=leave_one_out)
    np.testing.assert_allclose(found, loop(reward, valid, scale, 1e-4, leave_one_out), rtol=1e-9, atol=1e-9)


def test_metrics_by_hand():
    metrics = group_metrics(jnp.asarray(REWARD), jnp.asarray(VALID))
    assert metrics["reward"] == 2.0
    np.testing.assert_allclose(metrics["reward_std"], np.sqrt(21.5 / 4), rtol=1e-6)
    assert metrics["frac_reward_zero_std"] == 0.5


def test_zero_std_share_leaves_out_groups_that_cannot_be_compared():
    reward = np.array([[0.1] * 3, [0.1, 0.2, 0.3], [9.0] * 3, [9.0] * 3], np.float32)
    valid = np.array([[True] * 3, [True] * 3, [True, False, False], [False] * 3])
    assert zero_std_share(jnp.asarray(reward), jnp.asarray(valid)) == 0.5
    assert zero_std_share(jnp.asarray(reward[2:]), jnp.asarray(valid[2:])) == 0


def test_groups_of_one_response_are_without_signal():
    """They are never above their own mean, whatever they earn."""
    reward, valid = jnp.asarray([[1.0], [2.0], [3.0]]), jnp.asarray([[True], [True], [False]])
    assert zero_std_share(reward, valid) == 1.0
    assert group_metrics(reward, valid)["frac_reward_zero_std"] == 1.0


def test_unknown_scale_names_the_known_ones():
    with pytest.raises(ConfigError, match="'groups'.*Known: batch, group, none.*'group'"):
        advantages(REWARD, VALID, scale="groups", epsilon=1e-4)
