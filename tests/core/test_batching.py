"""Rows in batches of one size, and their padding."""

import numpy as np
import pytest

from pbrl_jax.core.batching import by_length, few_rows, fill, length_bucket, pad_prompts, padded_length, split_rows
from pbrl_jax.core.errors import DataError


def test_batches_by_hand():
    """Shortest first, equal ones in their order; the last row fills the last batch."""
    assert list(by_length([5, 1, 3, 1, 4], 2)) == [([1, 3], [1, 3]), ([2, 4], [2, 4]), ([0], [0, 0])]
    assert list(by_length([(2, 1), (1, 9), (1, 3)], 4)) == [([2, 1, 0], [2, 1, 0, 0])]
    assert not list(by_length([], 4)) and fill([3, 7], 4) == [3, 7, 7, 7]


def test_few_sizes():
    assert [few_rows(count, 32) for count in (0, 1, 2, 3, 5, 32, 33, 900)] == [1, 1, 2, 4, 8, 32, 32, 32]


def test_rows_are_split_into_batches_of_few_sizes():
    """13 of 16 rows are enough for a batch of 16, 12 are not; under the smallest size there is no choice."""
    sizes = [1, 4, 16]
    found = [split_rows(count, sizes) for count in (0, 1, 3, 5, 8, 12, 13, 30)]
    assert found == [[], [1], [1, 1, 1], [4, 1], [4, 4], [4, 4, 4], [16], [16, 16]]
    assert split_rows(9, [8, 32]) == [8, 8] and split_rows(26, [8, 32]) == [32]
    for count in range(1, 600):
        batches = split_rows(count, [1, 4, 16, 64, 256])
        assert sum(batches) - batches[-1] < count <= sum(batches) <= 1.25 * count


def plan(lengths, size):
    """Row numbers in batches, as an engine makes them."""
    return [rows for rows, _ in by_length(lengths, size, padded_length)]


def test_plan_keeps_lengths_apart_and_every_row_once():
    lengths = [5, 40, 17, 16, 3, 33, 100, 18]
    batches = plan(lengths, 2)
    assert sorted(row for rows in batches for row in rows) == list(range(8))
    assert [[lengths[row] for row in rows] for rows in batches] == [[3, 5], [16], [17, 18], [33, 40], [100]]
    assert plan([3000], 4) == [[0]]


def test_few_rows_of_a_bucket_join_the_next_one():
    """Of seven rows of the bucket of 16 in batches of four three are no fewer than half a batch, of five rows one is;
    it is padded with the first of the bucket of 32, and the last bucket keeps what is left."""
    assert [len(rows) for rows in plan([9] * 7 + [20] * 4, 4)] == [4, 3, 4]
    assert plan([9] * 5 + [20] * 4, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert plan([9, 20, 40, 70], 16) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    "longest, limit, size", [(1, 64, 16), (16, 64, 16), (17, 64, 32), (64, 64, 64), (40, 48, 48), (9, 12, 12)]
)
def test_length_buckets(longest, limit, size):
    assert length_bucket(longest, limit) == size


def test_pad_prompts():
    batch = pad_prompts([[5, 6, 7], [8]], 4, [11, 12], pad_id=9)
    np.testing.assert_array_equal(batch.tokens_PT, [[5, 6, 7, 9], [8, 9, 9, 9]])
    np.testing.assert_array_equal(batch.lengths_P, [3, 1])
    np.testing.assert_array_equal(batch.row_ids_P, [11, 12])
    assert {array.dtype for array in (batch.tokens_PT, batch.lengths_P, batch.row_ids_P)} == {np.dtype("int32")}
    with pytest.raises(DataError, match="Prompt 1 has 3 tokens, expected 1 to 2"):
        pad_prompts([[1], [1, 2, 3]], 2, [0, 1])
    with pytest.raises(DataError, match="Prompt 0 has 0 tokens"):
        pad_prompts([[]], 2, [0])
