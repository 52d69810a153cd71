"""Which prompts make up batch n: a pure function of the data set, the seed and n.

Every epoch is a fresh permutation, drawn from (seed, epoch) alone, so a batch depends neither on how the run got here
nor on the number of hosts. A cursor is the number of batches taken, as a JSON object.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.records import Prompt, PromptBatch

Row = TypeVar("Row")
_STREAMS = {"target": 0, "english": 1}


class Sampler(NamedTuple):
    """What batches are drawn from; no position, no state.

    Each batch holds `target_size` rows of `target` and `english_size` of `english`.
    """

    target: tuple[Prompt, ...]
    english: tuple[Prompt, ...]
    target_size: int
    english_size: int
    seed: int


def make_sampler(prompts: Sequence[Prompt], batch_size: int, english_share: float, seed: int) -> Sampler:
    """A sampler of batches with `batch_size` prompts, `english_share` of them (rounded) English.

    Share 0 leaves English rows out, unless the data set has no others; `pbrl_jax.data.load.with_english` adds English
    rows to a data set that has none.

    Raises:
      ConfigError: a batch size or share that is out of range.
      DataError: fewer rows than one batch needs; the message gives both numbers.
    """
    if batch_size < 1:
        raise ConfigError(f"train.prompts_per_step is {batch_size}; expected at least 1.")
    if not 0.0 <= english_share <= 1.0:
        raise ConfigError(f"data.english_share is {english_share}; expected a share in [0, 1].")
    english_size = round(english_share * batch_size)
    target = tuple(prompt for prompt in prompts if prompt.language != "en")
    english = tuple(prompt for prompt in prompts if prompt.language == "en") if english_size else ()
    if not target:
        target, english, english_size = tuple(prompts), (), 0
    sampler = Sampler(target, english, batch_size - english_size, english_size, seed)
    for name, pool, size in (("non-English", target, sampler.target_size), ("English", english, english_size)):
        if len(pool) < size:
            raise DataError(
                f"A batch needs {size} different {name} prompts and the data set has {len(pool)}. Lower "
                "train.prompts_per_step or data.english_share, or raise data.limit."
            )
    return sampler


def batches_per_epoch(sampler: Sampler) -> int:
    """Batches until the rows that are not replayed have all had their turn; the rest of an epoch is left out."""
    pool, size = (sampler.target, sampler.target_size)
    if size == 0:
        pool, size = sampler.english, sampler.english_size
    return len(pool) // size


def batch_at(sampler: Sampler, index: int) -> list[Prompt]:
    """Batch `index` (from 0): no prompt twice, target rows first, then English ones."""
    target = _rows_at(sampler.target, sampler.target_size, sampler.seed, "target", index)
    return target + _rows_at(sampler.english, sampler.english_size, sampler.seed, "english", index)


def start_cursor() -> dict[str, int]:
    """The cursor before the first batch."""
    return {"batch": 0}


def next_batch(sampler: Sampler, cursor: dict[str, int]) -> tuple[list[Prompt], dict[str, int]]:
    """(the batch at the cursor, the cursor behind it)."""
    index = cursor["batch"]
    return batch_at(sampler, index), {"batch": index + 1}


def _rows_at(pool: tuple[Prompt, ...], size: int, seed: int, stream: str, index: int) -> list[Prompt]:
    if size == 0:
        return []
    epoch, place = divmod(index, len(pool) // size)
    order = _permutation(len(pool), seed, _STREAMS[stream], epoch)
    return [pool[i] for i in order[place * size : (place + 1) * size]]


@functools.lru_cache(maxsize=8)
def _permutation(count: int, seed: int, stream: int, epoch: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, stream, epoch]).permutation(count).tolist())


def host_share(rows: Sequence[Row], process_index: int, process_count: int) -> list[Row]:
    """The contiguous share of one host; all shares in order give the rows back.

    Raises:
      ConfigError: the rows cannot be shared evenly, or there is no such host.
    """
    if not 0 <= process_index < process_count:
        raise ConfigError(f"Host {process_index} of {process_count} does not exist.")
    if len(rows) % process_count:
        raise ConfigError(
            f"{len(rows)} prompts cannot be shared evenly by {process_count} hosts. Set train.prompts_per_step to a "
            f"multiple of {process_count}."
        )
    size = len(rows) // process_count
    return list(rows[process_index * size : (process_index + 1) * size])


def pad_prompts(
    token_lists: Sequence[Sequence[int]], length: int, row_ids: Sequence[int], pad_id: int = 0
) -> PromptBatch:
    """Token lists as one right-padded batch of NumPy arrays (int32, `[P, length]`).

    Raises:
      DataError: a list that is empty or longer than `length`.
    """
    lengths_P = np.array([len(tokens) for tokens in token_lists], np.int32)
    bad = [i for i, n in enumerate(lengths_P) if not 1 <= n <= length]
    if bad:
        raise DataError(f"Prompt {bad[0]} has {lengths_P[bad[0]]} tokens, expected 1 to {length}.")
    tokens_PT = np.full((len(token_lists), length), pad_id, np.int32)
    for row, tokens in zip(tokens_PT, token_lists, strict=True):
        row[: len(tokens)] = tokens
    return PromptBatch(tokens_PT, lengths_P, np.asarray(row_ids, np.int32))
