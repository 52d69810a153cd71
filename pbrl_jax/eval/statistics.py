"""Intervals and tests for accuracies, and metrics of several samples per problem, on the host.

N problems, S samples of each. All random numbers are seeded, so that results are reproducible.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pbrl_jax.core.errors import ConfigError

DRAWS = 10_000
"""Resamples of a bootstrap."""
_CHUNK = 2_000_000
"""Largest number of indices drawn at a time."""

Values = Sequence[float] | np.ndarray
"""One number per problem."""


class Interval(NamedTuple):
    """A mean and the bounds of its interval, in the unit of the values."""

    mean: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """Two runs on the same problems: `difference` is the mean of the second minus the mean of the first.

    `p_bootstrap` is two-sided; `p_mcnemar` is None if some value is neither 0 nor 1. `lost` and `won` count the
    problems solved only by the first and only by the second run.
    """

    difference: float
    low: float
    high: float
    p_bootstrap: float
    p_mcnemar: float | None
    lost: int
    won: int


def _values(values: Values, what: str) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ConfigError(f"{what}: found shape {array.shape}, expected at least one finite number in one row.")
    return array


def resampled_means(values_N: np.ndarray, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Means of `draws` resamples with replacement, [draws]."""
    rng = np.random.default_rng(seed)
    size = len(values_N)
    block = max(1, _CHUNK // size)
    parts = [
        values_N[rng.integers(0, size, (min(block, draws - start), size))].mean(axis=1)
        for start in range(0, draws, block)
    ]
    return np.concatenate(parts)


def bootstrap_interval(values: Values, seed: int = 0, level: float = 0.95, draws: int = DRAWS) -> Interval:
    """The mean with its percentile bootstrap interval (Efron 1979).

    Args:
      values: one number per problem, [N]; 0 and 1 for an accuracy.
      seed: of the resampling.
      level: mass between the bounds.
      draws: resamples.

    Raises:
      ConfigError: no values, a value that is not finite, or a level outside (0, 1).
    """
    values_N = _values(values, "Bootstrap interval")
    if not 0 < level < 1:
        raise ConfigError(f"The level of an interval is {level}; expected a share between 0 and 1, such as 0.95.")
    return Interval(float(values_N.mean()), *_bounds(resampled_means(values_N, seed, draws), level))


def _bounds(means: np.ndarray, level: float) -> tuple[float, float]:
    """The percentiles of resampled means between which a share `level` of them lies."""
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def mean_interval(columns: Sequence[Values], seed: int = 0, level: float = 0.95,
                  draws: int = DRAWS) -> Interval:  # fmt: skip
    """The mean of the means of several languages, with an interval.

    Languages with the same number of problems are assumed to have the same problems, which are resampled together: a
    hard problem is hard in every language, so that languages are correlated. Otherwise each is resampled separately.
    """
    rows = [_values(column, "Mean over languages") for column in columns]
    if not rows:
        raise ConfigError("Mean over languages: found no language, expected at least one.")
    if len({len(row) for row in rows}) == 1:
        return bootstrap_interval(np.mean(rows, axis=0), seed, level, draws)
    means = np.mean([resampled_means(row, seed + index, draws) for index, row in enumerate(rows)], axis=0)
    return Interval(float(np.mean([row.mean() for row in rows])), *_bounds(means, level))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval (1927) of a share observed over `count` independent trials.

    Unlike the normal interval it stays within [0, 1] and does not vanish at 0 or 1.
    """
    from scipy.stats import binomtest  # slow to import

    found = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def mcnemar_exact(lost: int, won: int) -> float:
    """Two-sided p-value of McNemar's test (1947) in its exact binomial form, for `lost` and `won` discordant pairs; 1.0
    without any."""
    if lost < 0 or won < 0:
        raise ConfigError(f"McNemar's test: found counts {lost} and {won}; expected none below 0.")
    from scipy.stats import binomtest  # slow to import

    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def paired_test(first: Values, second: Values, seed: int = 0, level: float = 0.95,
                draws: int = DRAWS) -> PairedTest:  # fmt: skip
    """Whether `second` differs from `first` on the same problems in the same order.

    The bootstrap resamples problems, so that difficulty common to both runs cancels. Its p-value is twice the smaller
    share of resamples on either side of 0, with one added to count and draws (Davison and Hinkley 1997, 4.2).
    """
    first_N, second_N = _values(first, "Paired test, first run"), _values(second, "Paired test, second run")
    if len(first_N) != len(second_N):
        raise ConfigError(
            f"A paired test needs the same problems: found {len(first_N)} and {len(second_N)}. Compare two runs of one "
            "benchmark with the same --languages and --limit."
        )
    difference_N = second_N - first_N
    means = resampled_means(difference_N, seed, draws)
    low, high = _bounds(means, level)
    side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    binary = bool(np.isin(first_N, (0, 1)).all() and np.isin(second_N, (0, 1)).all())
    lost, won = int((difference_N < 0).sum()), int((difference_N > 0).sum())
    return PairedTest(
        difference=float(difference_N.mean()),
        low=low,
        high=high,
        p_bootstrap=min(1.0, 2 * (side + 1) / (draws + 1)),
        p_mcnemar=mcnemar_exact(lost, won) if binary else None,
        lost=lost,
        won=won,
    )


def pass_at_k(correct_NS: Sequence[Values], k: int) -> np.ndarray:
    """Probability that at least one of k samples is correct, [N].

    Unbiased estimate from S >= k samples: 1 - C(S - c, k) / C(S, k) with c correct ones (Chen et al. 2021, equation 1).
    """
    right_N, samples = _right(correct_NS, k)
    # C(S - c, k) / C(S, k) as a product neither overflows nor loses digits; with S - c < k one factor is 0.
    factors_NK = [1 - k / np.arange(samples - right + 1, samples + 1) for right in right_N]
    return np.array([1 - np.prod(np.maximum(factors, 0)) if len(factors) else 0.0 for factors in factors_NK])


def mean_at_k(correct_NS: Sequence[Values], k: int) -> np.ndarray:
    """Share of correct answers among the first k samples of each problem, [N]."""
    _right(correct_NS, k)
    return np.asarray(correct_NS, np.float64)[:, :k].mean(axis=1)


def majority_at_k(votes_NS: Sequence[Sequence[int]], correct_NS: Sequence[Values], k: int) -> np.ndarray:
    """Whether the most frequent answer among the first k samples of each problem is correct, [N] of 0 and 1.

    Args:
      votes_NS: one number per sample, equal for equal answers; negative without an answer, which does not vote. The
        first of several most frequent answers wins.
      correct_NS: whether each sample is correct.
    """
    _right(correct_NS, k)
    outcomes = []
    for votes, correct in zip(votes_NS, correct_NS, strict=True):
        cast = [vote for vote in votes[:k] if vote >= 0]
        if not cast:
            outcomes.append(0.0)
            continue
        winner = max(dict.fromkeys(cast), key=cast.count)
        outcomes.append(float(correct[list(votes).index(winner)]))
    return np.array(outcomes)


def _right(correct_NS: Sequence[Values], k: int) -> tuple[np.ndarray, int]:
    """(correct samples of each problem [N], S)."""
    counts = sorted({len(row) for row in correct_NS})
    if len(counts) != 1 or not counts[0]:
        raise ConfigError(f"Found problems with {counts or 'no'} samples; expected as many samples of every problem.")
    table = np.asarray(correct_NS, np.float64)
    if not np.isin(table, (0, 1)).all():
        raise ConfigError("Some sample is neither right (1) nor wrong (0). Grade shares as right from a threshold on.")
    if not 1 <= k <= table.shape[1]:
        raise ConfigError(f"k is {k}, but each problem has {table.shape[1]} samples. Raise --samples or lower k.")
    return table.sum(axis=1).astype(int), table.shape[1]
