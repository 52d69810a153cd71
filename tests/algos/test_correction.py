"""Weights between sampler and trainer, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax.algos.correction import MODES, sampler_weights
from pbrl_jax.core.errors import ConfigError

RATIO = np.array([[0.25, 1.0, 4.0], [2.0, 3.0, 1.0]])
SAMPLER = np.log(np.full((2, 3), 0.1))
TRAINER = SAMPLER + np.log(RATIO)
MASK = np.array([[True, True, True], [True, True, False]])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


def weights(mode, low, high, trainer=TRAINER, sampler=SAMPLER):
    return sampler_weights(
        jnp.asarray(trainer), jnp.asarray(sampler), jnp.asarray(MASK), mode=mode, clip_min=low, clip_max=high
    )


@pytest.mark.parametrize(
    "mode, low, high, expected",
    [
        ("token_truncate", None, 3.0, [[0.25, 1, 3], [2, 3, 0]]),
        ("token_truncate", 0.5, None, [[0.5, 1, 4], [2, 3, 0]]),
        ("token_mask", 0.5, 2.5, [[0, 1, 0], [2, 0, 0]]),
        ("token_mask", None, None, [[0.25, 1, 4], [2, 3, 0]]),
        ("sequence_truncate", None, 5.0, [[1, 1, 1], [5, 5, 0]]),
        ("sequence_mask", 0.5, 5.0, [[1, 1, 1], [0, 0, 0]]),
        ("sequence_mask", None, 7.0, [[1, 1, 1], [6, 6, 0]]),
    ],
)
def test_by_hand(mode, low, high, expected):
    np.testing.assert_allclose(weights(mode, low, high), expected, rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("garbage", [1e3, -1e3, np.nan, np.inf])
def test_garbage_and_extremes(mode, garbage):
    clean = weights(mode, 0.5, 5.0)
    dirty = weights(mode, 0.5, 5.0, np.where(MASK, TRAINER, garbage), np.where(MASK, SAMPLER, -garbage))
    np.testing.assert_array_equal(dirty, clean)
    far = weights(mode, 0.5, None, SAMPLER + 100.0)
    assert np.isfinite(far).all() and far[0, 0] > 1e8


def test_an_unknown_mode_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="'token_clip'.*Known: sequence_mask"):
        weights("token_clip", None, None)
