"""Quantities of several parts, several, hedged and one-sided numbers, and boxes with words."""

import json
import time
import unicodedata

import pytest

from pbrl_jax.text.answers import extract_answer, read_gold, same_answer
from pbrl_jax.text.languages import LANGUAGES

SCALES = [
    ("Jibu ni elfu 5.", "sw", "5000"),
    ("Jibu: elfu 12", "sw", "12000"),
    ("Jibu ni mia 5.", "sw", "500"),
    ("Jibu ni elfu 5 na mia 3.", "sw", "5300"),
    ("Jibu ni laki 2 na elfu 50.", "sw", "250000"),
    ("\\boxed{elfu 5}", "sw", "5000"),
    ("#### elfu 5", "sw", "5000"),
    ("<answer>elfu 5</answer>", "sw", "5000"),
    ("Jibu ni elfu.", "sw", "1000"),
    ("Jibu ni mia 5 na hamsini.", "sw", "550"),
    ("Jibu ni elfu 5 na mia tatu.", "sw", "5300"),
    ("উত্তর হল ৫ লক্ষ ২০ হাজার।", "bn", "520000"),
    ("उत्तर 5 लाख 20 हजार है।", "hi", "520000"),
    ("\\boxed{5 लाख 20 हजार}", "hi", "520000"),
    ("คำตอบคือ 2 ล้าน 5 แสน", "th", "2500000"),
    ("The answer is 2 million 500 thousand.", "en", "2500000"),
    ("The answer is -2 million 500 thousand.", "en", "-2500000"),
    ("The answer is 5 thousand 200 apples.", "en", "5200"),
    ("Ответ: 2 миллиона 500 тысяч рублей", "ru", "2500000"),
    ("La respuesta es 5 mil 200.", "es", "5200"),
    ("Jawabannya adalah 5 ribu 200.", "id", "5200"),
    ("The answer is 5 million of 30 million people.", "en", "5000000"),
]
HALVES = [
    ("Jibu ni 12 na nusu.", "sw", "12.5"),
    ("The answer is 12 and a half.", "en", "12.5"),
    ("The answer is -2 and a quarter.", "en", "-2.25"),
    ("The answer is 2 and a half million.", "en", "2500000"),
    ("The answer is 5 and 2/3 loads.", "en", "17/3"),
    ("\\boxed{1 \\text{ and } 1/4}", "en", "1.25"),
    ("Die Antwort ist 5 und 1/4.", "de", "5.25"),
    ("The answer is 5 and 7/3.", "en", "5,7/3"),
    ("La respuesta es 12 y medio.", "es", "12.5"),
    ("La réponse est 2 millions et demi.", "fr", "2500000"),
    ("คำตอบคือ 12 ครึ่ง", "th", "12.5"),
    ("উত্তর হল সাড়ে ১২।", "bn", "12.5"),
    ("उत्तर साढ़े 12 है।", "hi", "12.5"),
    ("उत्तर साढ़े 5 लाख है।", "hi", "550000"),
    ("Cevap: 12 buçuk", "tr", "12.5"),
    ("Đáp án là 2 triệu rưỡi.", "vi", "2500000"),
    ("\\boxed{12 na nusu}", "sw", "12.5"),
]
OTHER_UNITS = [
    ("The answer is 3 dollars and 50 cents.", "en", None),
    ("The answer is 1 hour 30 minutes.", "en", None),
    ("The answer is 1h30.", "en", None),
    ("The answer is 5 ft 6 in.", "en", None),
    ("The answer is 2 boys and 3 girls.", "en", None),
    ("Die Antwort ist 1 Stunde 30 Minuten.", "de", None),
    ("La respuesta es 1 hora y 30 minutos.", "es", None),
    ("Jibu ni dola 3 na senti 50.", "sw", None),
    ("उत्तर 1 घंटा 30 मिनट है।", "hi", None),
    ("উত্তর হল ১ ঘণ্টা ৩০ মিনিট।", "bn", None),
    ("సమాధానం 1 గంట 30 నిమిషాలు.", "te", None),
    ("คำตอบคือ 1 ชั่วโมง 30 นาที", "th", None),
    ("答案是1小时30分钟。", "zh", None),
    ("답은 1시간 30분입니다.", "ko", None),
    ("The answer is 12 apples for 3 people.", "en", "12"),
    ("The answer is 12 in 4 hours.", "en", "12"),
    ("The answer is 540 meters 3 times a week.", "en", "540"),
    ("The answer is 2 hours or 120 minutes.", "en", "2"),
    ("Die Antwort ist 12 in 4 Tagen.", "de", "12"),
]
SEVERAL = [
    ("The answer is 5 or 6.", "en", "5,6"),
    ("The answer is 5% or 6%.", "en", "5,6"),
    ("The answer is 2 + 3 = 5 or 6.", "en", "5,6"),
    ("The answer is 2 + 3 = 5, 6 or 7.", "en", "5,6,7"),
    ("The answer is 5 apples or 6 apples.", "en", None),
    ("The answer is 2 and 3.", "en", "2,3"),
    ("The answer is x = 2 or x = 3.", "en", "2,3"),
    ("The answer is $x=2$ or $x=3$.", "en", "2,3"),
    ("The answer is $\\frac{1}{2}$ or $\\frac{1}{3}$.", "en", "0.5,1/3"),
    ("The answer is (2, 3).", "en", "(2,3)"),
    ("The answer is 1 and 250.", "en", "1;250"),
    ("The answer is 12, 130.", "en", "12;130"),
    ("#### 12, 13, 14", "en", "12,13,14"),
    ("<answer>12 au 13</answer>", "sw", "12,13"),
    ("Jibu ni 5, 6, 7 au 8.", "sw", "5,6,7,8"),
    ("Die Antwort ist 5 oder 6.", "de", "5,6"),
    ("Ответ: 5 или 6", "ru", "5,6"),
    ("答案是5或6。", "zh", "5,6"),
    ("答えは5または6です。", "ja", "5,6"),
    ("답은 5 또는 6입니다.", "ko", "5,6"),
    ("คำตอบคือ 5 หรือ 6", "th", "5,6"),
    ("উত্তর হল ৫ বা ৬।", "bn", "5,6"),
    ("الإجابة هي ٥ أو ٦.", "ar", "5,6"),
    ('The answer is "5" or "6".', "en", "5,6"),
    ("The answer is 5 & 6.", "en", "5,6"),
    ("The answer is 5 or maybe 6.", "en", None),
    ("The answer is 5 or six.", "en", None),
    ("The answer is five or six.", "en", None),
    ("The answer is 7:05 or 8:05.", "en", None),
    ("The answer is 2x or 3x.", "en", None),
    ("<answer>5 6</answer>", "en", None),
    ("Jibu ni 5 au labda 6.", "sw", None),
    ("Jibu ni tano au sita.", "sw", None),
    ("Die Antwort ist fünf oder sechs.", "de", None),
    ("答案是五或六。", "zh", None),
    ("The answer is 2 $10 bills.", "en", "2"),
    ("The answer is 12 5-minute intervals.", "en", "12"),
    ("The answer is 12 or a dozen.", "en", "12"),
    ("The answer is twelve or 12.", "en", "12"),
    ("The answer is five apples or so.", "en", "5"),
    ("The answer is 10/2/5.", "en", None),
    ("The answer is 0.5 or 1/2.", "en", "0.5"),
    ("The answer is 5, because 3 + 2.", "en", "5"),
    ("The answer is 5, 3 of which are red.", "en", "5"),
    ("The answer is 5, 3 + 2.", "en", "5"),
    ("The answer is 18, and 3 of them are red.", "en", "18"),
    ("The answer is (1,250).", "en", "1250"),
    ("The answer is 1,250.50 dollars.", "en", "1250.5"),
    ("Die Antwort ist 3,5.", "de", "3.5"),
]
ONE_SIDED = [
    ("The answer is between 5 and 10.", "en", None),
    ("The answer is more than 5.", "en", None),
    ("The answer is x > 5.", "en", None),
    ("The answer is ≥ 5.", "en", None),
    ("Die Antwort ist mehr als 5.", "de", None),
    ("La respuesta es más de 5.", "es", None),
    ("Jibu ni zaidi ya 5.", "sw", None),
    ("Jibu ni zaidi ya dola 5.", "sw", None),
    ("उत्तर 5 से अधिक है।", "hi", None),
    ("答案大于5。", "zh", None),
    ("答案是5以上。", "zh", None),
    ("คำตอบคือ มากกว่า 5", "th", None),
    ("**Answer:**\n\n> 18", "en", "18"),
    ("Answer: <b>18</b>", "en", "18"),
    ("Answer: => 18", "en", "18"),
    ("The answer is rounded up to 18.", "en", "18"),
]
BOXES = [
    ("\\boxed{\\text{dola } 18}", "sw", "18"),
    ("\\boxed{\\text{mayai } 18}", "sw", "18"),
    ("\\boxed{Jibu ni 18}", "sw", "18"),
    ("\\boxed{shilingi elfu 5}", "sw", "5000"),
    ("\\boxed{\\$18/\\text{hour}}", "en", "18"),
    ("\\boxed{\\text{Total: } 18 \\text{ eggs}}", "en", "18"),
    ("\\boxed{共18个}", "zh", "18"),
    ("\\boxed{\\text{จำนวน } 18 \\text{ คน}}", "th", "18"),
    ("\\boxed{eighteen}", "en", "18"),
    ("\\boxed{\\text{achtzehn}}", "de", "18"),
    ("\\boxed{\\text{kumi na nane}}", "sw", "18"),
    ("\\boxed{dix-huit}", "fr", "18"),
    ("\\boxed{восемнадцать}", "ru", "18"),
    ("\\boxed{열여덟}", "ko", "18"),
    ("Jibu ni 9 × 2 = dola 18.", "sw", "18"),
    ("\\boxed{\\sin 30}", "en", "\\sin30"),
    ("\\boxed{x 5}", "en", "x5"),
    ("\\boxed{18/x}", "en", "18/x"),
    ("\\boxed{more than 5}", "en", "morethan5"),
    ("\\boxed{the answer is 5 or 6}", "en", "theansweris5or6"),
    ("\\boxed{1 hour 30 minutes}", "en", "1hour30minutes"),
]
CASES = SCALES + HALVES + OTHER_UNITS + SEVERAL + ONE_SIDED + BOXES


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(("text", "code", "answer"), CASES)
def test_case(text, code, answer, form):
    assert extract_answer(unicodedata.normalize(form, text), code) == answer


@pytest.mark.parametrize(
    ("text", "code", "gold", "right"),
    [
        ("The answer is 5 or 6.", "en", "5", False),
        ("The answer is 5 or 6.", "en", "6", False),
        ("Jibu ni 5, 6, 7 au 8.", "sw", "5", False),
        ("#### 12, 13, 14", "en", "12", False),
        ("The answer is 1 and 250.", "en", "1250", False),
        ("The answer is 2 and 3.", "en", "2,3", True),
        ("Die Antwort ist 3 und 2.", "en", "2,3", False),
        ("Die Antwort ist 3 und 2.", "de", "2, 3", True),
        ("The answer is $x=2$ or $x=3$.", "en", "3,2", True),
        ("The answer is (2, 3).", "en", "2,3", True),
        ("The answer is (2, 3).", "en", "(2,3)", True),
        ("The answer is (3, 2).", "en", "(2,3)", False),
        ("\\boxed{\\text{eighteen}}", "en", "18", True),
        ("\\boxed{\\text{eighteen}}", "en", "19", False),
    ],
)
def test_several_numbers_are_right_only_as_a_whole(text, code, gold, right):
    assert same_answer(extract_answer(text, code), read_gold(gold, code)) is right
    assert same_answer(read_gold(gold, code), extract_answer(text, code)) is right


def test_a_bare_line_after_a_thought_is_an_answer_only_without_words_before_its_number():
    assert extract_answer("<think>9</think>\n\n18 apples", "en") == "18"
    assert extract_answer("<think>9</think>\n\nSee step 3", "en") is None


def test_prose_without_spaces_is_no_boxed_number():
    question = "拉姆使用很多钢笔。如果他买了25支钢笔，然后用它们来制作新的钢笔，他最后一共会获得多少支满墨的钢笔？"
    assert read_gold(question, "zh") != "25"


@pytest.mark.parametrize("code", sorted(code for code, entry in LANGUAGES.items() if entry.ors))
def test_a_hedge_is_no_answer_in_any_language(code):
    for word in LANGUAGES[code].ors.replace("\\", "").replace("?", "").split("|"):
        found = extract_answer(LANGUAGES[code].answer_phrase.format(answer=f"5 {word} 6"), code)
        assert not same_answer(found, "5") and not same_answer(found, "6"), json.dumps([word, found])


@pytest.mark.parametrize("unit", ["1, ", "1 or ", "1 million ", "word ", "1 na mia ", "x = 1 and ", "(1, "])
def test_long_lists_take_no_time(unit):
    start = time.process_time()
    for code in ("en", "sw", "th"):
        extract_answer("The answer is " + unit * 3000, code)
        extract_answer("\\boxed{" + unit * 3000 + "}", code)
        extract_answer(LANGUAGES[code].answer_phrase.format(answer=unit * 3000), code)
    assert time.process_time() - start < 5.0
