"""Rows in batches of one size, so that few programs are compiled."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def pad_rows(rows: Sequence[Sequence[int]], size: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [N, size], mask [N, size]) of N lists of ids, right-padded; longer lists are cut."""
    tokens, mask = np.full((len(rows), size), pad_id, np.int32), np.zeros((len(rows), size), bool)
    for row, ids in enumerate(rows):
        kept = ids[:size]
        tokens[row, : len(kept)], mask[row, : len(kept)] = kept, True
    return tokens, mask


def fill(rows: list[int], size: int) -> list[int]:
    """`rows` with the last one repeated up to `size`; results of the copies are to be discarded."""
    return rows + rows[-1:] * (size - len(rows))


def few_rows(count: int, largest: int) -> int:
    """Rows of a batch for `count` rows: a power of two that holds them all, at most `largest`."""
    return min(largest, 1 << max(count - 1, 0).bit_length())


def by_length(lengths: Sequence[Any], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """(row numbers, the same filled up to `size`) batch by batch, shortest rows first, to reduce padding.

    Args:
      lengths: length of every row, or another sort key.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, fill(rows, size)
