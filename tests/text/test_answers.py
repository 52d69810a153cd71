"""Answer extraction: every language's marker, every script's digits, separators, letters and LaTeX."""

import json
import os
import time
import unicodedata
from pathlib import Path

import pytest

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.sources import mgsm, polymath, quickstart
from pbrl_jax.text.answers import ascii_digits, extract_answer, same_answer, split_response
from pbrl_jax.text.languages import LANGUAGES, answer_sentence

PHRASED = sorted(code for code, entry in LANGUAGES.items() if entry.phrased)
SAID_ALIKE = ({"da", "no"}, {"hr", "sl", "sr"}, {"st", "nso", "tn"}, {"zu", "xh"}, {"tl", "fil"}, {"zh", "zho_Hant"})
"""Languages whose sentences are one."""
NATIVE_ZEROS = {"ar": "٠", "bn": "০", "hi": "०", "te": "౦", "th": "๐"}


@pytest.mark.parametrize("code", PHRASED)
def test_own_marker_counts_and_no_other_does(code):
    sentence = answer_sentence("1234", code)
    text = f"3 + 4 = 7. {sentence}"
    assert split_response(text, code) == ("3 + 4 = 7.", sentence)
    assert extract_answer(text, code) == "1234"
    alike = {code, *(other for group in SAID_ALIKE if code in group for other in group)}
    alike |= {other for other in LANGUAGES if LANGUAGES[other].answer_phrase == LANGUAGES[code].answer_phrase}
    for other in set(LANGUAGES) - alike:
        assert extract_answer(text, other) is None, other
        assert split_response(text, other) == (text, "")


@pytest.mark.parametrize("code", sorted(LANGUAGES))
@pytest.mark.parametrize("value", ["-7", "18.5", "0"])
def test_signs_and_decimals_in_every_language(code, value):
    written = value.replace(".", ",") if LANGUAGES[code].comma_decimal else value
    assert extract_answer(answer_sentence(written, code), code) == value


@pytest.mark.parametrize("code", sorted(NATIVE_ZEROS))
def test_native_digits(code):
    zero = ord(NATIVE_ZEROS[code])
    native = "".join(chr(zero + int(digit)) for digit in "1250")
    assert ascii_digits(native) == "1250"
    assert extract_answer(answer_sentence(native, code), code) == "1250"
    assert extract_answer(f"#### {native}", code) == "1250"


def test_every_decimal_digit_of_unicode_is_read():
    zeros = [chr(p) for p in range(0x110000) if unicodedata.decimal(chr(p), None) == 0]
    assert len(zeros) > 60
    for zero in zeros:
        assert ascii_digits(chr(ord(zero) + 4) + chr(ord(zero) + 2)) == "42"


@pytest.mark.parametrize(
    ("text", "code", "answer"),
    [
        # word and colon, markdown, adjectives
        ("Answer: 18", "en", "18"),
        ("**Answer:** **18**", "en", "18"),
        ("Final answer: 18.", "en", "18"),
        ("**Respuesta final:** 18", "es", "18"),
        ("Réponse : 18", "fr", "18"),
        ("Antwort: 18 Eier", "de", "18"),
        ("最终答案：18", "zh", "18"),
        ("答：18个", "zh", "18"),
        ("答え: 18", "ja", "18"),
        ("答えは9個です。", "ja", "9"),
        ("정답: 18", "ko", "18"),
        ("Đáp án: 18", "vi", "18"),
        ("Jawaban akhirnya adalah 18.", "id", "18"),
        ("Ответ: -5", "ru", "-5"),
        ("Ответ - 18.", "ru", "18"),
        ("উত্তর: ১৮", "bn", "18"),
        ("คำตอบคือ ๑๘ บาท", "th", "18"),
        # NFKC takes Thai SARA AM apart
        (unicodedata.normalize("NFKC", "คำตอบคือ 18"), "th", "18"),
        # separators
        ("The answer is 2,125.", "en", "2125"),
        ("The answer is $1,250.50 per day.", "en", "1250.5"),
        ("The answer is 3.125.", "en", "3.125"),
        ("The answer is 0.125.", "en", "0.125"),
        ("The answer is 1,14,200.", "en", "114200"),
        ("Die Antwort lautet 5.600.", "de", "5600"),
        ("Die Antwort lautet 5,600.", "de", "5600"),
        ("Die Antwort lautet 1.250,50 Euro.", "de", "1250.5"),
        ("La réponse est 5 600.", "fr", "5600"),
        ("La réponse est 5\u202f600,5.", "fr", "5600.5"),
        ("Die Antwort lautet 5'600.", "de", "5600"),
        ("The answer is 18.00.", "en", "18"),
        ("The answer is 007.", "en", "7"),
        ("الإجابة هي ١٢٬٥٠٠٫٥.", "ar", "12500.5"),
        ("The answer is −7.", "en", "-7"),
        ("The answer is １８.", "en", "18"),
        # the last number of the line, but of the first line that has one
        ("The answer is 5 - 7 = -2.", "en", "-2"),
        ("The answer is 12.\nCall 24/7!", "en", "12"),
        ("Answer:\n\n42", "en", "42"),
        # units, powers, fractions
        ("The answer is 12 m².", "en", "12"),
        ("The answer is 7½.", "en", "7.5"),
        ("The answer is 1/3.", "en", "1/3"),
        ("The answer is 50%.", "en", "50"),
        # option letters
        ("The answer is (B).", "en", "B"),
        ("Answer: C", "en", "C"),
        ("**Answer: D**", "en", "D"),
        ("Jibu ni (A)", "sw", "A"),
        ("答えは (J) です", "ja", "J"),
        ("答案是B。", "zh", "B"),
        ("The answer is A total of 12.", "en", "12"),
        # boxed and LaTeX
        ("So \\boxed{18}.", "th", "18"),
        ("The answer is $\\boxed{1{,}234}$.", "en", "1234"),
        ("\\boxed{\\frac{3}{4}}", "en", "0.75"),
        ("\\boxed{12 \\text{ apples}}", "en", "12"),
        ("\\boxed{x = 5}", "en", "5"),
        ("\\boxed{(1, 2)}", "en", "(1,2)"),
        ("\\boxed{2x}", "en", "2x"),
        ("\\boxed{-1,1}", "en", "-1,1"),
        ("\\boxed{p = 2,3,7}", "de", "p=2,3,7"),
        ("\\boxed{x^2 - y^2 = 1}", "en", "x^2-y^2=1"),
        ("\\boxed{1,234,567}", "en", "1234567"),
        ("\\boxed{\\sqrt{3}}", "sw", "\\sqrt{3}"),
        ("\\boxed{\\text{(B)}}", "en", "B"),
        ("The answer is $\\sqrt{3}$.", "en", "\\sqrt{3}"),
        # the last marker wins
        ("The answer is 3. Wait. The answer is 4.", "en", "4"),
        ("steps #### 2,125", "bn", "2125"),
    ],
)
def test_extract(text, code, answer):
    assert extract_answer(text, code) == answer


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "en"),
        ("3 + 4 = 7.", "en"),
        ("The answer is unknown.", "en"),
        ("The answer is", "en"),
        ("Answer: \\boxed{18", "sw"),
        ("The answer is 2,3,7.", "en"),
        ("The answer is 18.", "sw"),
        ("#### ", "en"),
        ("The answer isn't 5", "en"),
        ("The answer is 3/0.0.0", "th"),
    ],
)
def test_nothing_to_extract(text, code):
    assert extract_answer(text, code) is None


def test_fallback_reads_the_last_number_of_all():
    assert extract_answer("so 3 + 4 = 7 eggs", "en", fallback=True) == "7"
    assert extract_answer("no number", "en", fallback=True) is None
    assert extract_answer("The answer is 5. 3 + 4 = 7", "sw", fallback=True) == "7"


def test_split_keeps_a_chain_of_markers_together():
    answer = "The answer is $\\boxed{2}$."
    assert split_response(f"1 + 1 = 2. {answer}", "en") == ("1 + 1 = 2.", answer)
    assert split_response("Answer: 1. Then \\boxed{2}", "en") == ("Answer: 1. Then", "\\boxed{2}")
    assert split_response("", "en") == ("", "")


def test_unknown_language_is_a_config_error():
    with pytest.raises(ConfigError, match="Unknown language"):
        extract_answer("Answer: 1", "xx")


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("18", "18", True),
        ("18", "18.0", True),
        ("2,125", "2125", True),
        ("18", "18.0000001", True),
        ("18", "18.001", False),
        ("1/3", "0.3333333", True),
        ("18", "-18", False),
        ("B", "B", True),
        ("B", "C", False),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}", True),
        ("\\sqrt{3}", "\\sqrt{2}", False),
        ("(1,2)", "(1, 2)", True),
        ("18", None, False),
        (None, None, False),
    ],
)
def test_same_answer(a, b, same):
    assert same_answer(a, b) is same
    assert same_answer(b, a) is same


@pytest.mark.parametrize(
    "text",
    [
        "Answer: " + "1" * 6000,
        "Answer: " + "1" * 6000 + "/" + "3" * 6000,
        "Answer: 1/0",
        "\\boxed{1e999999999}",
        "\\boxed{" * 3000,
        "\\boxed{9^{9^{9^{9}}}}",
        "\\boxed{10^{99999999}}",
        "Answer: ...,,,...",
        "#### -",
        "Answer: $" * 2000,
        "\x00\ud800 Answer: 5 \u202e",
    ],
)
def test_degenerate_text_neither_raises_nor_takes_long(text):
    start = time.process_time()
    for code in ("en", "de", "th"):
        found = extract_answer(text, code)
        split_response(text, code)
        assert not same_answer(found, "18")
        assert not same_answer(found, "\\frac{1}{2}^{3}")
    assert time.process_time() - start < 5.0


@pytest.mark.parametrize("code", quickstart.LANGUAGES)
def test_quickstart_responses_split_and_read_back(code):
    for problem in quickstart.problems("test", 200, seed=0):
        reference = quickstart.reference(problem, code)
        assert split_response(quickstart.response(problem, code), code) == tuple(reference)
        assert extract_answer(reference.text, code) == str(problem.result)


@pytest.mark.skipif(not os.environ.get("PBRL_DATA"), reason="PBRL_DATA is not set: no real benchmark text")
def test_the_worked_solutions_of_mgsm():
    exemplars = json.loads((Path(os.environ["PBRL_DATA"]) / "mgsm" / "exemplars.json").read_text())["exemplars"]
    golds = ("11", "29", "39", "9", "33", "8", "8", "5")
    missed = [
        (code, number)
        for code in mgsm.LANGUAGES
        for number, gold in enumerate(golds, start=1)
        if extract_answer(exemplars[code][str(number)]["a"], code) != gold
    ]
    # All 88 but what the source itself garbled: Telugu 3 ends in a corrupted repetition.
    assert set(missed) <= {("te", 3)}


@pytest.mark.skipif(not os.environ.get("PBRL_DATA"), reason="PBRL_DATA is not set: no real benchmark text")
@pytest.mark.parametrize("level", polymath.SPLITS)
def test_every_gold_of_polymath_is_read_back_from_a_box(level):
    for prompt in polymath.rows("", level, ("en", "th"), 0, 0):
        if prompt.answer.count("{") != prompt.answer.count("}"):
            continue  # two golds of the data set are cut off in the middle
        text = f"so $x$. \\boxed{{{prompt.answer}}}."
        assert same_answer(extract_answer(text, prompt.language), prompt.answer), prompt.answer
