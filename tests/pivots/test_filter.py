"""Right references stay, wrong ones go where a gold answer tells, and a reference needs an answer part."""

import pytest

from pbrl_jax.config.tree import Config
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.pivots.filter import FilterReport, answer_value, filter_report, keep_reference
from pbrl_jax.pivots.write import unread_references


def reference(answer: str) -> Reference:
    return Reference("3 bags of 6 are 18.", answer)


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("The answer is 18.", "18"),
        ("The answer is 18.", "18.0"),
        ("The answer is 1,250.", "1250"),
        ("The final answer is: **18**", "18"),
        ("#### 18", "18"),
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("18", "18"),
        ("$18", "18"),
        ("18 apples", "18"),
        ("B", "B"),
        ("The answer is (B).", "B"),
        ("x^2+1", "x^2 + 1"),
    ],
)
def test_right(answer, gold):
    assert keep_reference(reference(answer), gold) == (True, True)


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("The answer is 17.", "18"),
        ("The answer is -18.", "18"),
        ("The answer is unknown.", "18"),
        ("\\frac{1}{2}", "2"),
        ("A", "B"),
        ("Die Antwort lautet 18.", "18"),
    ],
)
def test_wrong_is_dropped_unless_kept_on_purpose(answer, gold):
    assert keep_reference(reference(answer), gold) == (False, False)
    assert keep_reference(reference(answer), gold, keep_wrong=True) == (True, False)


def test_without_gold_nothing_is_known_and_it_stays():
    assert keep_reference(reference("The answer is 17."), None) == (True, None)


@pytest.mark.parametrize("gold", ["18", None])
@pytest.mark.parametrize("answer", ["", "  \n"])
def test_without_an_answer_part_it_is_dropped_even_where_wrong_ones_are_kept(answer, gold):
    assert keep_reference(reference(answer), gold, keep_wrong=True) == (False, None)


def test_the_gold_answer_is_not_looked_for_in_the_reasoning():
    assert keep_reference(Reference("The answer is 18.", "The answer is 17."), "18") == (False, False)


def test_the_language_decides_how_an_answer_is_announced_and_read():
    german = Reference("", "Die Antwort lautet 1.250.")
    assert keep_reference(german, "1250", "de") == (True, True)
    assert answer_value("The answer is 1.250.", "en") == "1.25"


def test_answer_value_of_nothing():
    assert answer_value("  ", "en") is None


def test_report_counts_each_outcome_once():
    cases = [
        (reference("The answer is 18."), "18"),
        (reference("18"), "18"),
        (reference("The answer is 17."), "18"),
        (reference("The answer is 3."), None),
        (reference(""), "18"),
        (reference(""), None),
    ]
    dropping = filter_report(keep_reference(found, gold) for found, gold in cases)
    assert dropping == FilterReport(total=6, kept=3, right=2, wrong=1, unverified=1, no_answer=2)
    keeping = filter_report(keep_reference(found, gold, keep_wrong=True) for found, gold in cases)
    assert keeping == FilterReport(total=6, kept=4, right=2, wrong=1, unverified=1, no_answer=2)
    assert filter_report([]) == FilterReport(0, 0, 0, 0, 0, 0)


def test_rows_may_lack_references_that_no_reward_reads():
    right = reference("The answer is 18.")
    rows = [Prompt(n, "sw", "Tatu na tatu?", "Three and three?", "18", right if n else None) for n in range(8)]
    kept, report = unread_references(rows, Config())
    assert kept == rows and (report.kept, report.missing, report.dropped) == (8, {}, {})
