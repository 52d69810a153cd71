"""Batches: a pure function of data, seed and index; epochs, English share, hosts, padding."""

import json
from collections import Counter

import pytest

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.batches import (
    batch_at,
    make_sampler,
    next_batch,
    start_cursor,
)
from pbrl_jax.data.sources.common import prompt_id


def prompts_of(*languages, count=10):
    return [Prompt(prompt_id(r, c), c, f"{c}{r}", f"en{r}") for r in range(count) for c in languages]


def ids(batch):
    return [prompt.id for prompt in batch]


def test_every_row_has_its_turn_once_an_epoch():
    sampler = make_sampler(prompts_of("sw", "th"), 4, 0.0, seed=0)
    epochs = [[i for n in range(5) for i in ids(batch_at(sampler, 5 * e + n))] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(ids(prompts_of("sw", "th")))
    assert epochs[0] != epochs[1] != epochs[2]


def test_rows_that_fill_no_batch_are_left_out_and_change_with_the_epoch():
    sampler = make_sampler(prompts_of("sw"), 4, 0.0, seed=0)
    seen = Counter()
    for index in range(40):
        batch = ids(batch_at(sampler, index))
        assert len(set(batch)) == 4
        seen.update(batch)
    assert len(seen) == 10 and min(seen.values()) >= 10


def test_the_english_share_is_replayed():
    sampler = make_sampler(prompts_of("en", "sw", "th"), 8, 0.25, seed=1)
    seen = Counter()
    for index in range(20):
        batch = batch_at(sampler, index)
        assert [p.language == "en" for p in batch] == [False] * 6 + [True] * 2
        assert len(set(ids(batch))) == 8
        seen.update(p.id for p in batch if p.language == "en")
    assert set(seen.values()) == {4}


def test_shares_at_the_edges():
    prompts = prompts_of("en", "sw")
    assert {p.language for p in batch_at(make_sampler(prompts, 4, 0.0, 0), 0)} == {"sw"}
    assert {p.language for p in batch_at(make_sampler(prompts, 4, 1.0, 0), 0)} == {"en"}
    only_english = make_sampler(prompts_of("en"), 4, 0.125, 0)
    assert (only_english.target_size, only_english.english_size) == (4, 0)


def test_the_cursor_is_json_and_resumes_anywhere():
    sampler = make_sampler(prompts_of("en", "sw"), 3, 0.3, seed=5)
    cursor, straight = start_cursor(), []
    for _ in range(25):
        batch, cursor = next_batch(sampler, cursor)
        straight.append(ids(batch))
    for start in (0, 7, 24):
        cursor = json.loads(json.dumps({"batch": start}))
        fresh = make_sampler(prompts_of("en", "sw"), 3, 0.3, seed=5)
        batch, after = next_batch(fresh, cursor)
        assert ids(batch) == straight[start] and after == {"batch": start + 1} and cursor == {"batch": start}
    assert straight[0] != ids(batch_at(make_sampler(prompts_of("en", "sw"), 3, 0.3, seed=6), 0))


def test_batches_that_cannot_be():
    with pytest.raises(DataError, match="needs 12 different non-English prompts and the data set has 10"):
        make_sampler(prompts_of("sw"), 12, 0.0, 0)
    with pytest.raises(DataError, match="needs 2 different English prompts and the data set has 0"):
        make_sampler(prompts_of("sw"), 8, 0.25, 0)
    with pytest.raises(DataError, match="needs 1 different .* the data set has 0"):
        make_sampler([], 1, 0.0, 0)
    with pytest.raises(ConfigError, match="prompts_per_step is 0"):
        make_sampler(prompts_of("sw"), 0, 0.0, 0)
    with pytest.raises(ConfigError, match="english_share is 1.5"):
        make_sampler(prompts_of("sw"), 4, 1.5, 0)
