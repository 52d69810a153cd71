"""Language identification: quickstart text, real questions, formulas, and texts too short to say."""

import os
import time

import pytest

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.sources import mgsm, quickstart
from pbrl_jax.text.langid import identify_language, is_right_language, language_share, plain_words

ALL = quickstart.LANGUAGES
MGSM = mgsm.LANGUAGES


@pytest.mark.parametrize("code", ALL)
def test_quickstart_text_is_recognised(code):
    for problem in quickstart.problems("test", 120, seed=0):
        for text in (quickstart.question(problem, code), quickstart.response(problem, code)):
            assert identify_language(text, ALL) == code, text
            assert is_right_language(text, code, ALL) is True, text


@pytest.mark.parametrize("code", [code for code in ALL if code != "en"])
def test_an_english_response_is_the_wrong_language(code):
    for problem in quickstart.problems("test", 40, seed=0):
        assert is_right_language(quickstart.response(problem, "en"), code, ALL) is False


@pytest.mark.parametrize("text", ["", "12", "12 + 3 = 15.", "$x = 12$", "\\boxed{12}", "x = 3", "…", "a"])
def test_nothing_to_identify_is_none(text):
    assert identify_language(text, ALL) is None
    assert is_right_language(text, "sw", ALL) is None


def test_short_text_in_one_alphabet_is_undetermined_but_a_foreign_script_is_wrong():
    assert identify_language("Jibu 12", ALL) is None
    assert is_right_language("Jibu 12", "sw", ALL) is None
    assert is_right_language("答案 12", "sw", ALL) is False
    assert is_right_language("答案 12", "zh", ALL) is True
    assert is_right_language("Jibu 12", "zh", ALL) is False


def test_formulas_and_code_do_not_vote():
    text = "Tuna $\\text{the total number of the apples is}$ mayai kumi na mbili. ```print('the answer is here')```"
    assert plain_words(text) == "Tuna mayai kumi na mbili."
    assert is_right_language(text, "sw", ALL) is True


def test_a_long_answer_that_turns_english_loses_its_share():
    swahili = "Bata wa Janet hutaga mayai kumi na sita kila siku na yeye hula mayai matatu asubuhi. " * 4
    english = "Then the rest of the eggs are sold at the market for two dollars each every single day. " * 4
    assert is_right_language(swahili, "sw", ALL) is True
    assert language_share(swahili + english, "sw", ALL) == pytest.approx(0.5, abs=0.15)
    assert is_right_language(swahili + english, "sw", ALL) is False


def test_japanese_and_chinese_are_told_apart_by_kana():
    assert identify_language("これは漢字です", ("zh", "ja", "en")) == "ja"
    assert identify_language("这是汉字的句子", ("zh", "ja", "en")) == "zh"
    assert is_right_language("这是汉字的句子", "ja", ("zh", "ja", "en")) is False


def test_text_in_the_script_of_no_language_of_the_run():
    assert identify_language("Сколько зажимов продала Наталья?", ("en", "th")) is None
    assert is_right_language("Сколько зажимов продала Наталья?", "th", ("en", "th")) is False


def test_the_target_joins_the_alternatives():
    assert is_right_language("Jibu ni mayai kumi na mbili", "sw", ("en",)) is True


def test_unknown_language_is_a_config_error():
    with pytest.raises(ConfigError, match="Unknown language"):
        identify_language("text", ("en", "xx"))


def test_a_batch_is_identified_quickly():
    rows = [quickstart.response(p, "sw") for p in quickstart.problems("test", 256, seed=0)]
    identify_language(rows[0], ALL)
    spent = time.process_time()
    for row in rows:
        is_right_language(row, "sw", ALL)
    assert time.process_time() - spent < 2.0  # ten times what it takes; a model loaded per call would take minutes


@pytest.mark.skipif(not os.environ.get("PBRL_DATA"), reason="PBRL_DATA is not set: no real benchmark text")
@pytest.mark.parametrize("code", MGSM)
def test_real_questions(code):
    questions = [prompt.question for prompt in mgsm.rows("", "test", (code,), 0, 0)]
    named = sum(identify_language(question, MGSM) == code for question in questions)
    right = sum(is_right_language(question, code, MGSM) is True for question in questions)
    assert named == len(questions) == 250
    assert right >= 0.98 * len(questions)
