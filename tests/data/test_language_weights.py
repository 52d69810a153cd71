"""Weights and temperature of languages: shares, epochs, and that batches are a function of seed and number alone."""

from collections import Counter

import pytest

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.batches import batch_at, epoch_quotas, language_shares, make_sampler


def prompts_of(**counts: int) -> list[Prompt]:
    rows = [(code, i) for code, count in counts.items() for i in range(count)]
    return [Prompt(number, code, f"{code} {i}", f"en {i}") for number, (code, i) in enumerate(rows)]


ROWS = prompts_of(sw=40, th=40, zh=80)


def shares(weights=(), temperature=1.0, rows=ROWS):
    return dict(language_shares(rows, weights, temperature))


def test_shares_by_hand():
    assert shares() == {"sw": 0.25, "th": 0.25, "zh": 0.5}
    assert shares(("sw=2",)) == pytest.approx({"sw": 0.4, "th": 0.2, "zh": 0.4})
    assert shares(("zh=0", "th=3.0")) == pytest.approx({"sw": 0.25, "th": 0.75})
    root = 2**0.5
    assert shares(temperature=2.0) == pytest.approx(
        {"sw": 1 / (2 + root), "th": 1 / (2 + root), "zh": root / (2 + root)}
    )
    assert shares(temperature=1e6)["zh"] == pytest.approx(1 / 3, abs=1e-5)


def test_an_epoch_holds_the_shares_and_repeats_no_prompt():
    """sw twice as often: its 40 rows are 40 % of 100, of which th has 20 and zh 40."""
    sampler = make_sampler(ROWS, 10, 0.0, 3, ("sw=2",))
    assert epoch_quotas(sampler) == {"sw": 40, "th": 20, "zh": 40}
    for epoch in range(2):
        rows = [prompt for index in range(10) for prompt in batch_at(sampler, 10 * epoch + index)]
        assert Counter(prompt.language for prompt in rows) == {"sw": 40, "th": 20, "zh": 40}
        assert len({prompt.id for prompt in rows}) == 100


def test_rows_that_one_epoch_leaves_out_come_in_the_next():
    sampler = make_sampler(ROWS, 10, 0.0, 3, ("sw=2",))
    seen = {p.id for index in range(20) for p in batch_at(sampler, index) if p.language == "th"}
    assert len(seen) == 40


def test_batches_are_a_function_of_seed_and_number():
    one, same = (make_sampler(ROWS, 10, 0.0, 3, ("sw=2",)) for _ in range(2))
    assert [batch_at(one, i) for i in (7, 0, 23)] == [batch_at(same, i) for i in (7, 0, 23)]
    assert batch_at(one, 0) != batch_at(make_sampler(ROWS, 10, 0.0, 4, ("sw=2",)), 0)
    assert batch_at(one, 0) != batch_at(one, 10)


def test_english_keeps_its_own_share():
    sampler = make_sampler([*ROWS, *prompts_of(en=20)], 10, 0.2, 0, temperature=5.0)
    for index in range(5):
        assert sum(prompt.language == "en" for prompt in batch_at(sampler, index)) == 2


def test_neither_weights_nor_temperature_is_the_sampler_as_it_was():
    plain = make_sampler(ROWS, 10, 0.0, 3)
    assert plain.shares == () and make_sampler(ROWS, 10, 0.0, 3, (), 1.0) == plain


@pytest.mark.parametrize(
    "weights, message",
    [
        (("sw",), "has 'sw'; expected language=weight"),
        (("sw=-1",), "expected language=weight"),
        (("sw=nan",), "expected language=weight"),
        (("swa=2",), "names 'swa'.*Did you mean 'sw'"),
        (("en=2",), "English is weighted by data.english_share"),
        (("sw=2", "sw=1"), "names sw twice"),
        (("sw=0", "th=0", "zh=0"), "leaves no language"),
    ],
)
def test_weights_that_cannot_be_met_are_named(weights, message):
    with pytest.raises(ConfigError, match=message):
        make_sampler(ROWS, 10, 0.0, 0, weights)


def test_a_scarce_language_with_a_large_weight_is_refused_before_training():
    with pytest.raises(DataError, match=r"sw \(2 rows\) makes 87% of the batches.*fewer than the 10"):
        make_sampler(prompts_of(sw=2, th=30), 10, 0.0, 0, ("sw=100",))
