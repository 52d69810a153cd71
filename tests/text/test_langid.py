"""Language identification: quickstart text, real questions, formulas, and texts too short to say."""

import os
import time

import pytest

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.sources import mgsm, quickstart
from pbrl_jax.text.langid import (
    CONFUSABLE,
    RIGHT_SHARE,
    _classifier,
    _cld2_labels,
    foreign_tail,
    identify_language,
    is_right_language,
    language_share,
    plain_words,
)

ALL = quickstart.LANGUAGES
MGSM = mgsm.LANGUAGES


def few_problems() -> list:
    """Four of each family of word problems."""
    families = len(quickstart.SPACES[""].families)
    problems = quickstart.problems("test", 4 * families, seed=0)
    assert len({problem.family for problem in problems}) == families
    return problems


@pytest.mark.parametrize("code", ALL)
def test_quickstart_text_is_recognised(code):
    for problem in few_problems():
        for text in (quickstart.question(problem, code), quickstart.response(problem, code)):
            assert identify_language(text, ALL) == code, text
            assert is_right_language(text, code, ALL) is True, text


@pytest.mark.parametrize("code", [code for code in ALL if code != "en"])
def test_an_english_response_is_the_wrong_language(code):
    for problem in few_problems():
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


def test_formulas_hold_symbols_and_their_words_count():
    text = "Tuna $x = \\frac{AB}{2} \\times 3 \\text{ km}$ mayai kumi na mbili."
    assert plain_words(text) == "Tuna mayai kumi na mbili."
    assert is_right_language(text, "sw", ALL) is True
    text = "Tuna $\\text{the total number of the apples is}$ mayai kumi na mbili. ```print('the answer is here')```"
    assert plain_words(text) == "Tuna the total number of the apples is mayai kumi na mbili. print 'the answer is here'"
    assert is_right_language(text, "sw", ALL) is False


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


SWAHILI = "Bata wa Janet hutaga mayai kumi na sita kila siku. Yeye hula mayai matatu asubuhi na huuza mengine sokoni. "
KINYARWANDA = (
    "Abantu bose bavuka aribo kandi bangana mu gaciro no mu burenganzira. Buri muntu afite uburenganzira ku buzima, "
    "ubwisanzure n'umutekano. Arya atatu mu gitondo kandi agurisha asigaye ku isoko buri munsi. "
)
SPANISH = "Los patos de Janet ponen dieciséis huevos por día. Ella come tres en el desayuno y vende el resto. "
PORTUGUESE = (
    "Os patos da Janete põem dezesseis ovos por dia. Ela come três no café da manhã e vende os outros na feira, "
    "então não sobra nenhum ovo para as suas amigas. "
)


@pytest.mark.parametrize(
    ("language", "own", "drift", "name"),
    [("sw", SWAHILI, KINYARWANDA, "rw"), ("es", SPANISH, PORTUGUESE, "pt")],
)
@pytest.mark.parametrize("run", [("en",), MGSM, ALL])
def test_a_drift_to_a_language_outside_the_run_is_seen(language, own, drift, name, run):
    assert name not in run
    assert identify_language(drift) == name
    assert is_right_language(own * 2, language, run) is True
    assert is_right_language(own + drift, language, run) is False
    assert is_right_language(drift, language, run) is False


def test_a_confusable_language_counts_only_where_the_run_does_not_use_it():
    """Galician without a Galician run may be Spanish; in a run with both it is not."""
    galician = "Os parrulos de Xoana poñen dezaseis ovos cada día e ela come tres deles no almorzo coas súas amigas. "
    assert identify_language(galician) == "gl"
    assert "gl" in CONFUSABLE["Spanish"] and "pt" not in CONFUSABLE["Spanish"]
    assert language_share(galician, "es", ("en",)) == 1.0
    indonesian = "Dia membeli sepuluh kartu lagi karena kartu yang lama sudah hilang di jalan menuju ke sekolah. "
    malay = "Dia membeli sepuluh kad lagi kerana kad yang lama sudah hilang di jalan ketika pergi ke sekolah. "
    assert is_right_language(malay, "id", ("en",)) is True
    assert is_right_language(malay, "id", ("en", "ms")) is False
    assert is_right_language(indonesian, "id", ("en", "ms")) is True


def test_the_members_of_every_set_are_known_to_the_classifier():
    known = set(dict(_classifier().rank("some text")))
    assert {code for group in CONFUSABLE.values() for code in group} <= known | set(_cld2_labels())
    assert len(known) > 100 and {"ar", "bn", "de", "sw", "yo", "zu", "ha", "am"} <= known


@pytest.mark.parametrize("tail", ["The answer is 12.", "\nSo the answer is 12", "Therefore she has twelve of them."])
def test_an_english_tail_is_seen_however_long_the_text_before(tail):
    assert is_right_language(SWAHILI * 20 + tail, "sw", ALL) is False
    assert language_share(SWAHILI * 20 + tail, "sw", ALL) > 0.95
    assert foreign_tail(SWAHILI + tail, "sw", ALL) and not foreign_tail(SWAHILI + "Jibu ni 12.", "sw", ALL)
    thai = "เป็ดของเจเน็ตออกไข่วันละสิบหกฟอง เธอกินสามฟองทุกเช้า\n"
    assert is_right_language(thai * 20 + tail, "th", ALL) is False


def test_a_brand_in_latin_letters_counts_once():
    """19 Bengali letters or more to each iPhone, seven Latin letters that are counted once."""
    text = "ব্র্যান্ডনের iPhone বেনের iPhone-এর থেকে চারগুণ পুরনো। বেনের iPhone সুজির iPhone-এর তুলনায় দ্বিগুণ পুরনো।"
    assert language_share(text, "bn", ALL) > 0.85
    assert is_right_language(text, "bn", ALL) is True


def test_too_short_for_all_the_languages_of_the_world():
    assert identify_language("Jibu ni hilo") is None
    assert identify_language("Jibu ni hilo", ("en", "sw")) == "sw"


def test_the_share_is_the_callers_choice():
    text = SWAHILI + "Then she sells the rest of the eggs at the market for two dollars each. " + SWAHILI
    assert 0.5 < language_share(text, "sw", ALL) < RIGHT_SHARE
    assert is_right_language(text, "sw", ALL) is False
    assert is_right_language(text, "sw", ALL, share=0.5) is True


def with_half(first: str, second: str) -> str:
    return f"{first[: len(first) // 2]} {second[len(second) // 2 :]}"


def some_questions(code: str) -> list:
    """Every third problem of MGSM in a language."""
    rows = mgsm.rows("", "test", (code,), 0, 0)
    assert len(rows) == 250
    return rows[::3]


@pytest.mark.skipif(not os.environ.get("PBRL_DATA"), reason="PBRL_DATA is not set: no real benchmark text")
@pytest.mark.parametrize("code", MGSM)
def test_real_questions(code):
    questions = [prompt.question for prompt in some_questions(code)]
    named = sum(identify_language(question, MGSM) == code for question in questions)
    right = sum(is_right_language(question, code, MGSM) is True for question in questions)
    assert named == len(questions)
    assert right >= 0.99 * len(questions)
    alone = sum(is_right_language(question, code, (code, "en")) is True for question in questions)
    assert alone >= 0.99 * len(questions)


@pytest.mark.skipif(not os.environ.get("PBRL_DATA"), reason="PBRL_DATA is not set: no real benchmark text")
@pytest.mark.parametrize("code", [code for code in MGSM if code != "en"])
def test_real_questions_with_an_english_half(code):
    """The cut falls in the middle of a sentence; either half may be the English one."""
    pairs = [(prompt.question, prompt.question_en) for prompt in some_questions(code)]
    for text in (with_half, lambda own, english: with_half(english, own)):
        caught = sum(is_right_language(text(*pair), code, MGSM) is False for pair in pairs)
        assert caught >= 0.95 * len(pairs)


def test_one_english_word_is_no_answer_in_another_language():
    assert language_share("Yes.", "sw", ("sw", "en")) == 0.0
