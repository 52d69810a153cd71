"""The hand-written cases of answer_cases.py."""

import pytest
from text.answer_cases import CASES

from pbrl_jax.text.answers import extract_answer, same_answer, split_response
from pbrl_jax.text.numerals import HAN_NUMBER, han_number, without_myriads, without_powers


def test_there_are_two_hundred_and_each_is_another():
    assert len(CASES) >= 200
    assert len({case[:2] for case in CASES}) == len(CASES)


@pytest.mark.parametrize(("text", "code", "answer"), CASES)
def test_case(text, code, answer):
    assert extract_answer(text, code) == answer
    assert answer is None or same_answer(answer, answer)


def test_tags_split_like_markers_and_think_tags_are_no_text():
    text = "<think>Moja na moja.</think>\n<answer>2</answer>"
    assert split_response(text, "sw") == ("Moja na moja.", "<answer>2</answer>")
    assert split_response("<think>Moja", "sw") == ("Moja", "")


@pytest.mark.parametrize(
    ("written", "number"),
    [("一万亿", "1000000000000"), ("二十一", "21"), ("十", "10"), ("一万零五", "10005"), ("三点五万", "35000")],
)
def test_han_numerals_by_hand(written, number):
    assert HAN_NUMBER.fullmatch(written)
    assert float(han_number(written)) == float(number)


def test_numbers_written_out_by_hand():
    assert without_myriads("5万7500 と 3 億") == "57500 と 300000000"
    assert without_myriads("12345") == "12345"
    assert without_powers("1,5 × 10^2 und 3e2 und 2^10") == "150 und 300 und 2^10"
