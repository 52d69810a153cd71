"""The language table and script shares."""

import re

import pytest
from text_helpers import script_share

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.text.languages import (
    LANGUAGES,
    answer_sentence,
    check_languages,
    letters_of,
    script_pattern,
)

NEEDED = "ar bn de en es fr id it ja ko ms pt ru sw te th vi zh".split()


def test_all_benchmark_languages_are_there():
    assert set(NEEDED) <= set(LANGUAGES)


@pytest.mark.parametrize("code", sorted(code for code in LANGUAGES if LANGUAGES[code].phrased))
def test_every_answer_sentence_is_in_its_own_script_and_has_its_marker(code):
    sentence = answer_sentence("12", code)
    assert "12" in sentence
    assert script_share(sentence, code) == 1.0
    assert re.search(LANGUAGES[code].answer_markers, sentence, re.IGNORECASE)


def test_check_languages_names_the_near_one():
    assert check_languages(["en", "sw"]) == ("en", "sw")
    with pytest.raises(ConfigError, match="Did you mean 'sw'"):
        check_languages(["en", "Swahili"])
    with pytest.raises(ConfigError, match="Unknown language 'xx'"):
        check_languages(["xx"])
    for typed in ("sw,zh", "sw zh", "sw, zh"):
        with pytest.raises(ConfigError, match="expected 2 words, as in --data.languages sw zh .*take sw,zh"):
            check_languages([typed])
    with pytest.raises(ConfigError, match="No languages given"):
        check_languages([])
    with pytest.raises(ConfigError, match="twice: sw"):
        check_languages(["sw", "en", "sw"])


def test_script_share_by_hand():
    assert script_share("12 + 3 = 15", "en") is None
    assert script_share("abcd", "th") == 0.0
    assert script_share("ก 12 ab", "th") == pytest.approx(1 / 3)
    assert script_share("ひらがなとカナと漢字", "ja") == 1.0
    assert script_share("ひらがなとカナと漢字", "zh") == pytest.approx(2 / 10)
    assert script_share("Ответ five", "ru") == pytest.approx(5 / 9)


def test_letters_leave_digits_and_signs_out():
    assert letters_of("a1_b? ৮ ć") == "abć"


def test_no_character_belongs_to_two_scripts():
    scripts = ("Latn", "Cyrl", "Arab", "Deva", "Beng", "Telu", "Thai", "Hang", "Hira", "Kana", "Hani")
    for point in range(0x41, 0x2FFFF):
        if 0xD800 <= point < 0xE000 or not chr(point).isalpha():
            continue
        found = [script for script in scripts if script_pattern((script,)).match(chr(point))]
        assert len(found) <= 1, (hex(point), found)
