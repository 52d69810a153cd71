"""The prompts of batch n: a pure function of the data set, the seed and n.

Every epoch is a new permutation, drawn from (seed, epoch) alone, so a batch depends neither on interruptions nor on the
number of hosts. A cursor is the number of batches taken, as a JSON object.
"""

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError, DataError, did_you_mean
from pbrl_jax.core.records import Prompt

_STREAMS = {"target": 0, "english": 1, "weighted": 2, "language": 3}
"""Random streams; that of the n-th language is `language` + n."""


class Sampler(NamedTuple):
    """What batches are drawn from; it has no position.

    Each batch holds `target_size` rows of `target` and `english_size` of `english`. `shares` holds (language,
    share) of the target languages, sorted; () leaves them as they are in the rows.
    """

    target: tuple[Prompt, ...]
    english: tuple[Prompt, ...]
    target_size: int
    english_size: int
    seed: int
    shares: tuple[tuple[str, float], ...] = ()


def make_sampler(
    prompts: Sequence[Prompt],
    batch_size: int,
    english_share: float,
    seed: int,
    language_weights: Sequence[str] = (),
    temperature: float = 1.0,
) -> Sampler:
    """A sampler of batches with `batch_size` prompts, `english_share` of them (rounded) English.

    Args:
      language_weights: `language=weight` pairs for the other languages, see `language_shares`.
      temperature: as there. Without weights and with temperature 1 an epoch is one permutation of all rows.

    Share 0 leaves English rows out, unless the data set has no others; `pbrl_jax.data.load.with_english` adds English
    rows to a data set that has none.

    Raises:
      ConfigError: a batch size or share out of range, or weights of languages without rows.
      DataError: fewer rows than one batch needs; gives both numbers.
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
    uneven = bool(language_weights) or temperature != 1
    shares = language_shares(target, language_weights, temperature) if uneven else ()
    sampler = Sampler(target, english, batch_size - english_size, english_size, seed, shares)
    for name, pool, size in (("non-English", target, sampler.target_size), ("English", english, english_size)):
        if len(pool) < size:
            raise DataError(
                f"A batch needs {size} different {name} prompts and the data set has {len(pool)}. Lower "
                "train.prompts_per_step or data.english_share, or raise data.limit."
            )
    if shares:
        epoch_quotas(sampler)
    return sampler


def prompt_sampler(config: Config, prompts: Sequence[Prompt]) -> Sampler:
    """The sampler of the batches of a run; errors as make_sampler."""
    data = config.data
    return make_sampler(
        prompts, config.train.prompts_per_step, data.english_share, config.train.seed, data.language_weights,
        data.language_temperature,
    )  # fmt: skip


def batch_at(sampler: Sampler, index: int) -> list[Prompt]:
    """Batch `index` (from 0): no prompt twice, target rows first, then English ones."""
    english = _rows_at(sampler.english, sampler.english_size, sampler.seed, "english", index)
    if sampler.shares:
        return _weighted_rows_at(sampler, index) + english
    return _rows_at(sampler.target, sampler.target_size, sampler.seed, "target", index) + english


def start_cursor() -> dict[str, int]:
    """The cursor before the first batch."""
    return {"batch": 0}


def next_batch(sampler: Sampler, cursor: Mapping[str, int]) -> tuple[list[Prompt], dict[str, int]]:
    """(the batch at the cursor, the cursor behind it)."""
    index = cursor["batch"]
    return batch_at(sampler, index), {"batch": index + 1}


def language_shares(
    prompts: Sequence[Prompt], weights: Sequence[str], temperature: float
) -> tuple[tuple[str, float], ...]:
    """The share in [0, 1] of each language: its (number of rows)^(1 / temperature) times its weight, normalised.

    Args:
      weights: `language=weight` pairs; 1 where a language is not named, 0 leaves it out.
      temperature: 1 keeps the proportions of the rows; a large one makes them equal (as in multilingual pre-training).

    Raises:
      ConfigError: a malformed pair, a negative weight, a language without rows or named twice, or no language left.
    """
    counts = Counter(prompt.language for prompt in prompts)
    factors, named = dict.fromkeys(counts, 1.0), set[str]()
    for pair in weights:
        code, _, weight = pair.partition("=")
        if not re.fullmatch(r"\d+(\.\d*)?", weight):
            raise ConfigError(f"data.language_weights has {pair!r}; expected language=weight, for example sw=2.")
        if code not in counts:
            raise ConfigError(
                f"data.language_weights names {code!r}, but the batches hold no rows of it besides English replay. "
                f"{did_you_mean(code, counts)} English is weighted by data.english_share."
            )
        if code in named:
            raise ConfigError(f"data.language_weights names {code} twice. Give it one weight.")
        named.add(code)
        factors[code] = float(weight)
    raw = {code: factors[code] * counts[code] ** (1 / temperature) for code in sorted(counts)}
    total = sum(raw.values())
    if total == 0:
        raise ConfigError("data.language_weights leaves no language: all weights are 0. Raise one.")
    return tuple((code, value / total) for code, value in raw.items() if value)


def epoch_quotas(sampler: Sampler) -> dict[str, int]:
    """Rows of each language in an epoch: as many as the scarcest one, relative to its share, has.

    Raises:
      DataError: the epoch would be shorter than a batch.
    """
    counts = Counter(prompt.language for prompt in sampler.target)
    scarcest = min(sampler.shares, key=lambda pair: counts[pair[0]] / pair[1])
    rows = counts[scarcest[0]] / scarcest[1]
    quotas = {code: min(max(round(rows * share), 1), counts[code]) for code, share in sampler.shares}
    if sum(quotas.values()) < sampler.target_size:
        raise DataError(
            f"By data.language_weights {scarcest[0]} ({counts[scarcest[0]]} rows) makes {scarcest[1]:.0%} of the "
            f"batches, which leaves {sum(quotas.values())} different prompts, fewer than the {sampler.target_size} "
            "of a batch. Lower its weight or train.prompts_per_step."
        )
    return quotas


def _weighted_rows_at(sampler: Sampler, index: int) -> list[Prompt]:
    """Batch `index` of epochs with each language's quota of rows; each language has its own permutation."""
    quotas = epoch_quotas(sampler)
    epoch, place = divmod(index, sum(quotas.values()) // sampler.target_size)
    rows: list[Prompt] = []
    for number, (code, quota) in enumerate(sorted(quotas.items())):
        pool = tuple(prompt for prompt in sampler.target if prompt.language == code)
        rows += _rows_at(pool, quota, sampler.seed, "language", epoch, number)
    order = _permutation(len(rows), sampler.seed, _STREAMS["weighted"], epoch)
    return [rows[i] for i in order[place * sampler.target_size : (place + 1) * sampler.target_size]]


def _rows_at(pool: tuple[Prompt, ...], size: int, seed: int, stream: str, index: int, number: int = 0) -> list[Prompt]:
    if size == 0:
        return []
    epoch, place = divmod(index, len(pool) // size)
    order = _permutation(len(pool), seed, _STREAMS[stream] + number, epoch)
    return [pool[i] for i in order[place * size : (place + 1) * size]]


@functools.lru_cache(maxsize=64)
def _permutation(count: int, seed: int, stream: int, epoch: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, stream, epoch]).permutation(count).tolist())
