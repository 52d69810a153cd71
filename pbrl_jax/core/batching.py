"""Batches of rows of different lengths, in few shapes so that few programs are compiled."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.records import PromptBatch, on_host

#: Padded lengths.
LENGTH_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def length_bucket(longest: int, limit: int) -> int:
    """The smallest bucket that holds `longest` tokens, never above `limit`."""
    return next((size for size in LENGTH_BUCKETS if longest <= size < limit), limit)


def padded_length(longest: int) -> int:
    """The smallest bucket that holds `longest` tokens; above the largest bucket, the next multiple of 1024."""
    return next((size for size in LENGTH_BUCKETS if longest <= size), -(-longest // 1024) * 1024)


def fill(rows: list[int], size: int) -> list[int]:
    """`rows` padded to `size` with copies of the last one; the caller discards the results of the copies."""
    return rows + rows[-1:] * (size - len(rows))


def few_rows(count: int, largest: int) -> int:
    """Batch size for `count` rows: the next power of two, at most `largest`."""
    return min(largest, 1 << max(count - 1, 0).bit_length())


def split_rows(count: int, sizes: Sequence[int]) -> list[int]:
    """Batch sizes, chosen from `sizes` (ascending), that together hold `count` rows. At most a fifth of a batch is
    padding, unless `count` is less than the smallest size."""
    batches: list[int] = []
    while count > sum(batches):
        left = count - sum(batches)
        nearly_full = [size for size in sizes if 4 * size <= 5 * left and size >= left]
        smaller = [size for size in sizes if size <= left]
        batches.append(nearly_full[0] if nearly_full else smaller[-1] if smaller else sizes[0])
    return batches


def by_length(
    lengths: Sequence[Any], size: int, bucket: Callable[[Any], Any] | None = None
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (row numbers, the same padded to `size` by `fill`) for each batch, shortest rows first.

    Args:
      lengths: one sortable value per row.
      bucket: length -> padded length. Rows of two buckets share a batch only if those of the smaller bucket fill less
        than half of it: an extra batch would cost more than their padding.
    """
    groups: dict[Any, list[int]] = {}
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        groups.setdefault(bucket and bucket(lengths[row]), []).append(row)
    rest: list[int] = []
    for number, group in enumerate(groups.values(), start=1):
        rows = rest + group
        few = len(rows) % size if number < len(groups) else 0
        full = len(rows) - (few if 2 * few < size else 0)
        rows, rest = rows[:full], rows[full:]
        for start in range(0, len(rows), size):
            yield rows[start : start + size], fill(rows[start : start + size], size)


def pad_tokens(token_lists: Sequence[Sequence[int]], length: int, pad_id: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(right-padded tokens [N, length], lengths [N]) of token lists, int32; longer lists are cut."""
    tokens_NT = np.full((len(token_lists), length), pad_id, np.int32)
    for row, tokens in zip(tokens_NT, token_lists, strict=True):
        row[: len(tokens)] = tokens[:length]
    return tokens_NT, np.array([min(len(tokens), length) for tokens in token_lists], np.int32)


def pad_prompts(
    token_lists: Sequence[Sequence[int]], length: int, row_ids: Sequence[int], pad_id: int = 0
) -> PromptBatch:
    """Token lists as one right-padded batch of NumPy arrays (int32, `[P, length]`).

    Raises:
      DataError: a list that is empty or longer than `length`.
    """
    for number, tokens in enumerate(token_lists):
        if not 1 <= len(tokens) <= length:
            raise DataError(f"Prompt {number} has {len(tokens)} tokens, expected 1 to {length}.")
    return on_host(PromptBatch, *pad_tokens(token_lists, length, pad_id), np.asarray(row_ids, np.int32))
