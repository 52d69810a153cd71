"""Intervals and tests against SciPy 1.17.1, whose values stand here as constants, and sample metrics by hand.

Where a comment gives a call, it is the SciPy call that gave the constant; `rng` is numpy.random.default_rng.
"""

import math

import numpy as np
import pytest

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.eval import statistics
from pbrl_jax.eval.statistics import (
    bootstrap_interval,
    majority_at_k,
    mcnemar_exact,
    mean_at_k,
    mean_interval,
    paired_test,
    pass_at_k,
)

FIRST = [1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0]
SECOND = [1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 0, 1, 1, 1, 1, 1]


def test_bootstrap_of_shares():
    # bootstrap(([1] * 13 + [0] * 7,), np.mean, n_resamples=10000, method="percentile", rng=rng(3))
    assert bootstrap_interval([1] * 13 + [0] * 7, seed=3) == (0.65, 0.45, 0.85)


def test_bootstrap_of_numbers_at_another_level():
    # bootstrap((values,), np.mean, n_resamples=999, method="percentile", confidence_level=0.9, rng=rng(11))
    interval = bootstrap_interval([0.5, 1.25, -3, 4, 2.2, 0.1, 7], seed=11, level=0.9, draws=999)
    assert interval == pytest.approx((1.7214285714285715, -0.11571428571428588, 3.414285714285714), abs=1e-12)


def test_the_blocks_of_a_large_bootstrap_are_one_stream(monkeypatch):
    whole = bootstrap_interval(FIRST, seed=5)
    monkeypatch.setattr(statistics, "_CHUNK", 16 * 77)
    assert bootstrap_interval(FIRST, seed=5) == whole
    assert bootstrap_interval(FIRST, seed=6, draws=50) != bootstrap_interval(FIRST, seed=7, draws=50)


def test_all_right_and_all_wrong_have_no_width():
    assert bootstrap_interval([1, 1, 1]) == (1, 1, 1) and bootstrap_interval([0]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("lost", "won", "p_value"),
    [  # binomtest(lost, lost + won, 0.5).pvalue
        (1, 8, 0.0390625),
        (8, 1, 0.0390625),
        (0, 5, 0.0625),
        (7, 19, 0.028959274291992188),
        (40, 62, 0.037066767438560584),
        (3, 3, 1.0),
        (0, 0, 1.0),
        (300, 420, 8.807756168615114e-06),
    ],
)
def test_mcnemar(lost, won, p_value):
    assert mcnemar_exact(lost, won) == pytest.approx(p_value, rel=1e-11)


def test_paired_test():
    """The interval: bootstrap((SECOND, FIRST), difference of means, paired=True, method="percentile", rng=rng(5),
    n_resamples=10000). McNemar: binomtest(1, 8, 0.5). The bootstrap's p-value counts the same resamples again.
    """
    found = paired_test(FIRST, SECOND, seed=5)
    assert (found.difference, found.low, found.high) == (0.375, 0.0625, 0.6875)
    assert (found.lost, found.won, found.p_mcnemar) == (1, 7, pytest.approx(0.0703125, rel=1e-11))
    differences = np.array(SECOND) - np.array(FIRST)
    drawn = np.random.default_rng(5).integers(0, 16, (10_000, 16))
    assert found.p_bootstrap == 2 * ((differences[drawn].sum(axis=1) <= 0).sum() + 1) / 10_001


def test_the_same_run_twice_differs_in_nothing():
    found = paired_test(FIRST, FIRST)
    assert found == (0, 0, 0, 1, 1, 0, 0)
    assert paired_test([0.5, 0.25], [0.25, 1.0]).p_mcnemar is None, "shares are no pairs of right and wrong"


def test_pairing_takes_out_what_both_runs_find_hard():
    """One more problem solved of 100 that vary widely: a pair's interval is far narrower than the difference of two."""
    first = [1] * 50 + [0] * 50
    second = [1] * 56 + [0] * 44
    paired, alone = paired_test(first, second), bootstrap_interval(second)
    assert paired.high - paired.low < 0.6 * (alone.high - alone.low)
    assert paired.low > 0 and paired.p_bootstrap < 0.02 and paired.p_mcnemar == 0.03125


def test_the_mean_over_languages_resamples_problems_not_answers():
    """The same problems in two languages, solved in both or in neither: as uncertain as one language."""
    one = bootstrap_interval(FIRST, seed=1)
    assert mean_interval([FIRST, FIRST], seed=1) == one
    apart = mean_interval([FIRST, [*FIRST, 0]], seed=1)
    assert apart.mean == pytest.approx((6 / 16 + 6 / 17) / 2)
    assert apart.high - apart.low < 0.85 * (one.high - one.low), "unlike lengths: languages are independent"


def test_pass_at_k_by_counting_subsets():
    """1 right of 4: two samples miss it in C(3, 2) of C(4, 2) = 3 of 6 choices."""
    table = [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert pass_at_k(table, 2) == pytest.approx([1 / 2, 0, 1, 5 / 6])
    assert pass_at_k(table, 1) == pytest.approx([1 / 4, 0, 3 / 4, 2 / 4])
    assert pass_at_k(table, 4) == pytest.approx([1, 0, 1, 1])
    wide = [[1] * 3 + [0] * 197]
    assert pass_at_k(wide, 100) == pytest.approx([1 - math.comb(197, 100) / math.comb(200, 100)], rel=1e-12)


def test_mean_and_majority_by_hand():
    correct = [[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
    answers = [[7, 3, 3, 7], [2, 5, 5, 2], [-1, -1, 4, -1]]
    assert mean_at_k(correct, 3) == pytest.approx([1 / 3, 2 / 3, 0])
    assert majority_at_k(answers, correct, 4).tolist() == [1, 0, 0], "of two most frequent answers the first one"
    assert majority_at_k(answers, correct, 3).tolist() == [0, 1, 0]
    assert majority_at_k([[-1, 8, -1]], [[False, True, False]], 3).tolist() == [1], "no answer is no vote"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), "expected at least one finite number"),
        (lambda: bootstrap_interval([1, math.nan]), "expected at least one finite number"),
        (lambda: bootstrap_interval([1], level=95), "expected a share between 0 and 1"),
        (lambda: paired_test([1, 0], [1]), "found 2 and 1"),
        (lambda: mean_interval([]), "found no language"),
        (lambda: mcnemar_exact(-1, 2), "found counts -1 and 2"),
        (lambda: pass_at_k([[1, 0]], 3), "k is 3, but each problem has 2 samples"),
        (lambda: mean_at_k([[1, 0]], 0), "k is 0"),
        (lambda: pass_at_k([], 1), "expected as many samples"),
        (lambda: pass_at_k([[1, 0], [1]], 1), "expected as many samples"),
        (lambda: pass_at_k([[0.5, 0.5]], 1), "neither right"),
        (lambda: mean_at_k([[1, math.nan]], 1), "neither right"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
