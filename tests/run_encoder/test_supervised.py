"""The supervised pools: which rows there are, as which tokens, and what does not fit."""

import copy

import pytest
from tiny_world import LANGUAGES, SPACE, policy, tokenizer

from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import DataError
from pbrl_jax.run.sft import quickstart_pools, reference_pool, supervised

CONFIG = with_values(
    Config(),
    data={"path": SPACE, "languages": LANGUAGES},
    sft={"english_rows": 60, "warm_rows_per_language": 5, "batch_size": 10},
    rollout={"max_prompt_length": 64, "max_completion_length": 64},
)


def test_quickstart_pools_as_tokens():
    """60 English rows, 30 equations, 5 rows in each other language; 6, 2 and 2 of a batch of 10."""
    pools, _ = quickstart_pools(CONFIG)
    data = supervised(CONFIG, policy().tokenizer)
    assert {name: len(rows) for name, rows in data.pools.items()} == {"english": 60, "equations": 30, "warm": 10}
    assert data.counts == {"english": 6, "equations": 2, "warm": 2}
    assert [row.language for row in pools["warm"]].count("sw") == 5
    end, bos = tokenizer().eos_ids[0], tokenizer().bos_id
    for name, rows in pools.items():
        for row, (prompt, response) in zip(rows, data.pools[name], strict=True):
            assert prompt == [bos, *tokenizer().encode(f"{row.question}\n")]
            assert response == [*tokenizer().encode(row.response), end]


def test_a_text_without_a_prompt_and_a_tokenizer_without_a_beginning():
    """Nothing predicts its first token, which is read and not trained on."""
    bare = copy.copy(tokenizer())
    bare.bos_id = None
    rows = quickstart_pools(CONFIG)[0]["equations"]
    data = supervised(with_values(CONFIG, data={"user_prompt": "{question}"}), bare)
    for row, (prompt, response) in zip(rows, data.pools["equations"], strict=True):
        assert row.question == "" and len(prompt) == 1
        assert prompt + response == [*bare.encode(row.response), bare.eos_ids[0]]


def test_rows_that_are_too_long_are_left_out_and_counted(capsys):
    """The limit lies one below the longest English prompt."""
    lengths = [len(prompt) for prompt, _ in supervised(CONFIG, policy().tokenizer).pools["english"]]
    limit = max(lengths) - 1
    data = supervised(with_values(CONFIG, rollout={"max_prompt_length": limit}), policy().tokenizer)
    kept = sum(length <= limit for length in lengths)
    assert 0 < len(data.pools["english"]) == kept < 60
    assert max(len(prompt) for rows in data.pools.values() for prompt, _ in rows) <= limit
    assert f"Supervised pool english: {60 - kept} of 60 rows are too long" in capsys.readouterr().out


def test_a_pool_of_which_nothing_fits_is_an_error():
    with pytest.raises(DataError, match="No row of the supervised pool 'english' fits rollout.max_prompt_length=2"):
        supervised(with_values(CONFIG, rollout={"max_prompt_length": 2}), policy().tokenizer)


def test_other_sources_give_their_english_references():
    """Here the quickstart itself, read as any source: English questions with English references, all of one pool."""
    rows, shares = reference_pool(with_values(CONFIG, data={"limit": 7}))
    assert shares == {"english": 1.0} and len(rows["english"]) == 7
    assert all(row.language == "en" and "The answer is" in row.response for row in rows["english"])
