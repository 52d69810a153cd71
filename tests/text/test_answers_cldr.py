"""Every answer of MGSM, and decimals, as CLDR writes them in each language, read back exactly.

Babel holds CLDR's patterns, separators and the names of the numbering systems; the ten digits of each system are
those that Unicode names.
"""

import os
import unicodedata
from decimal import Decimal

import pytest
from babel import Locale
from babel.numbers import format_decimal

from pbrl_jax.data.sources import mgsm
from pbrl_jax.text.answers import extract_answer
from pbrl_jax.text.languages import LANGUAGES, answer_sentence

WRITTEN = sorted(code for code, entry in LANGUAGES.items() if entry.lead and len(code) == 2)

ZEROS = {
    "latn": "DIGIT ZERO", "arab": "ARABIC-INDIC DIGIT ZERO", "arabext": "EXTENDED ARABIC-INDIC DIGIT ZERO",
    "beng": "BENGALI DIGIT ZERO", "deva": "DEVANAGARI DIGIT ZERO", "telu": "TELUGU DIGIT ZERO",
    "thai": "THAI DIGIT ZERO", "mymr": "MYANMAR DIGIT ZERO", "fullwide": "FULLWIDTH DIGIT ZERO",
}  # fmt: skip


def digits_of(system: str) -> str:
    if system == "hanidec":
        return "〇一二三四五六七八九"
    zero = ord(unicodedata.lookup(ZEROS[system]))
    return "".join(chr(zero + value) for value in range(10))


def renderings(number: str, code: str) -> set[str]:
    """`number` in the language's native, default and Latin digits, grouped by CLDR's pattern and ungrouped."""
    locale = Locale.parse(code)
    systems = {"latn", locale.default_numbering_system, locale.other_numbering_systems["native"]}
    groups = (True, False) if abs(Decimal(number)) >= 1000 else (False,)
    return {
        format_decimal(
            Decimal(number), locale=locale, numbering_system=system, decimal_quantization=False, group_separator=group
        ).translate(str.maketrans("0123456789", digits_of(system)))
        for system in systems
        for group in groups
    }


def missed(number: str, code: str, forms=slice(None)) -> list[str]:
    """The texts that are read as another answer; of every rendering in the chosen of the four forms."""
    texts = [
        text
        for written in sorted(renderings(number, code))
        for text in (
            answer_sentence(written, code), f"#### {written}", f"\\boxed{{{written}}}", f"<answer>{written}</answer>",
        )[forms]
    ]  # fmt: skip
    return [text for text in texts if extract_answer(text, code) != number]


def test_the_renderer_writes_native_digits():
    assert "১,১৪,২০০" in renderings("114200", "bn")
    assert "౧,౧౪,౨౦౦" in renderings("114200", "te")
    assert "๑๑๔,๒๐๐" in renderings("114200", "th")
    assert "一一四,二〇〇" in renderings("114200", "zh")
    assert "114\u202f200" in renderings("114200", "fr")
    assert "١١٤٬٢٠٠" in renderings("114200", "ar")


@pytest.mark.parametrize(
    "code", [*WRITTEN, "af", "cs", "el", "fa", "hu", "mr", "ne", "nl", "pl", "sr", "uk", "ur", "zu"]
)
def test_whole_numbers_signs_and_decimals(code):
    """Three decimals are left out: 1,125 in German is also how 1125 is written by those who think in English."""
    numbers = ["0", "7", "-7", "18.5", "-0.25", "0.125", "1234", "-98765", "114200", "1234567", "12345678.75"]
    assert not [text for number in numbers for text in missed(number, code)]


@pytest.mark.skipif(not os.environ.get("PBRL_DATA"), reason="PBRL_DATA is not set: no real benchmark text")
@pytest.mark.parametrize("code", mgsm.LANGUAGES)
def test_every_answer_of_mgsm(code):
    """Each answer in one of the forms, which take turns; all forms of a number are read above."""
    prompts = mgsm.rows("", "test", (code,), 0, 0)
    assert len(prompts) == 250
    answers = sorted({p.answer for p in prompts}, key=lambda answer: (len(answer), answer))
    assert len(answers) > 100
    assert not [text for n, answer in enumerate(answers) for text in missed(answer, code, slice(n % 4, n % 4 + 1))]
