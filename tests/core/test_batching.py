"""Rows in batches of one size."""

from pbrl_jax.core.batching import by_length, few_rows, fill


def test_batches_by_hand():
    """Shortest first, equal ones in their order; the last row fills the last batch."""
    assert list(by_length([5, 1, 3, 1, 4], 2)) == [([1, 3], [1, 3]), ([2, 4], [2, 4]), ([0], [0, 0])]
    assert list(by_length([(2, 1), (1, 9), (1, 3)], 4)) == [([2, 1, 0], [2, 1, 0, 0])]
    assert not list(by_length([], 4)) and fill([3, 7], 4) == [3, 7, 7, 7]


def test_few_sizes():
    assert [few_rows(count, 32) for count in (0, 1, 2, 3, 5, 32, 33, 900)] == [1, 1, 2, 4, 8, 32, 32, 32]
