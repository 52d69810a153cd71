"""Numbers that are one end of a range, a part of a quantity or a part of a formula, in many languages."""

import pytest

from pbrl_jax.text.answers import extract_answer, read_gold, same_answer

NO_ANSWER = [
    ("答案是5到6。", "zh"),
    ("答案是5~6。", "zh"),
    ("答案是5—6。", "zh"),
    ("答案是20多。", "zh"),
    ("答案是5余2。", "zh"),
    ("答えは5から6です。", "ja"),
    ("답은 5~6개입니다.", "ko"),
    ("답은 5에서 6입니다.", "ko"),
    ("คำตอบคือ 5 บาท ถึง 6 บาท", "th"),
    ("উত্তর: ৫ থেকে ৬", "bn"),
    ("उत्तर 5 रुपये से 6 रुपये है।", "hi"),
    ("సమాధానం 5 నుండి 6.", "te"),
    ("الإجابة هي من 5 إلى 6.", "ar"),
    ("پاسخ ۵ تا ۶ است.", "fa"),
    ("جواب 5 سے 6 ہے۔", "ur"),
    ("La respuesta es de 5 a 6 días.", "es"),
    ("A resposta é 5 até 6.", "pt"),
    ("La risposta è da 5 a 6.", "it"),
    ("Đáp án là từ 5 đến 6.", "vi"),
    ("Jibu ni 5 hadi 6.", "sw"),
    ("Jawabannya adalah 5 hingga 6.", "id"),
    ("Cevap 5 ila 6.", "tr"),
    ("The answer is 5 dollars to 6 dollars.", "en"),
    ("Die Antwort ist 5 Euro bis 6 Euro.", "de"),
    ("The answer is 5 apples or more.", "en"),
    ("The answer is 5 remainder 2.", "en"),
    ("Die Antwort ist 5 Rest 2.", "de"),
    ("La réponse est 5 ou plus.", "fr"),
    ("Cevap 3 saat 20 dakikadır.", "tr"),
    ("\\boxed{5~6}", "zh"),
    ("Odpowiedź: 3 godziny 20 minut", "pl"),
    ("A válasz 3 óra 20 perc.", "hu"),
    ("Odpověď je 3 hodiny 20 minut.", "cs"),
    ("Vastaus on 3 tuntia 20 minuuttia.", "fi"),
    ("ഉത്തരം 3 മണിക്കൂർ 20 മിനിറ്റ്.", "ml"),
]
VALUES = [
    ("La réponse est 1 heure et demie.", "fr", "1.5"),
    ("La respuesta es 1 hora y media.", "es", "1.5"),
    ("A resposta é 1 hora e meia.", "pt", "1.5"),
    ("The answer is 1 hour and a half.", "en", "1.5"),
    ("答案是1个半小时。", "zh", "1.5"),
    ("答案是十个半小时。", "zh", "10.5"),
    ("答案是一半。", "zh", "0.5"),
    ("答案是3个半圆。", "zh", "3"),
    ("答えは1時間半です。", "ja", "1.5"),
    ("답은 1시간 반입니다.", "ko", "1.5"),
    ("Đáp án là 1 giờ rưỡi.", "vi", "1.5"),
    ("คำตอบคือ 1 ชั่วโมงครึ่ง", "th", "1.5"),
    ("الإجابة هي 1 ساعة ونصف.", "ar", "1.5"),
    ("الإجابة هي ١،٥٠٠", "ar", "1500"),
    ("La respuesta es 12 dólares a 3 amigos.", "es", "12"),
    ("答えは5個余ります。", "ja", "5"),
    ("The answer is 12~cm.", "en", "12"),
    ("సమాధానం 1 లక్ష.", "te", "100000"),
    ("ಉತ್ತರ 2 ಲಕ್ಷ.", "kn", "200000"),
    ("ഉത്തരം 1 ലക്ഷം ആണ്.", "ml", "100000"),
    ("Ang sagot ay 5 libo.", "tl", "5000"),
    ("Vastaus on 5 tuhatta.", "fi", "5000"),
    ("Odgovor je 5 hiljada.", "sr", "5000"),
    ("အဖြေမှာ ၁ သိန်း ဖြစ်သည်။", "my", "100000"),
    ("ចម្លើយគឺ ១ លាន។", "km", "1000000"),
    ("Amsar ita ce dubu 5.", "ha", "5000"),
    ("Amsar ita ce dala 5.", "ha", "5"),
    ("<answer>3,2</answer>", "de", "3.2"),
]
FORMULAS = [
    ("<answer>\\frac{\\pi \\ln 2}{\\sqrt{2}}</answer>", "en", "\\frac{\\pi\\ln 2}{\\sqrt{2}}"),
    ("<answer>$(3,2)$</answer>", "de", "(3,2)"),
    ("<answer>(-0.5,0.87),(0,0)</answer>", "de", "(-0.5,0.87),(0,0)"),
    ("<answer>\\frac{k}{k+1}</answer>", "sw", "\\frac{k}{k+1}"),
    ("<answer>x > 5</answer>", "en", "x>5"),
    ("<answer>k</answer>", "en", "k"),
    ("<answer>c</answer>", "en", "C"),
    ("The answer is $n$.", "en", "n"),
    ("The answer is $c < a < b$.", "en", "c<a<b"),
    ("Die Antwort lautet $(3,6]$.", "de", "(3,6]"),
    ("The answer is \\frac{\\pi \\ln 2}{\\sqrt{2}} because so it is.", "en", "\\frac{\\pi\\ln 2}{\\sqrt{2}}"),
    ("The answer is 2\\pi a day.", "en", "2\\pi"),
    ("उत्तर \\frac{\\pi}{2} है।", "hi", "\\frac{\\pi}{2}"),
    ("The answer is $A \\cap B$.", "en", "A\\cap B"),
]


@pytest.mark.parametrize(("text", "code"), NO_ANSWER)
def test_a_bound_or_a_part_is_no_answer(text, code):
    answer = extract_answer(text, code)
    assert not any(same_answer(answer, gold) for gold in ("3", "5", "20", "56"))


@pytest.mark.parametrize(("text", "code", "value"), VALUES)
def test_a_half_behind_a_measure_counts(text, code, value):
    assert extract_answer(text, code) == value


@pytest.mark.parametrize(("text", "code", "gold"), FORMULAS)
def test_a_formula_in_a_tag_or_without_dollar_signs_is_read_whole(text, code, gold):
    answer = extract_answer(text, code)
    assert same_answer(answer, read_gold(gold, code)) or same_answer(answer, gold)
    assert not any(same_answer(answer, number) for number in ("0", "1", "2", "3.2", "3.6", "A"))


@pytest.mark.parametrize(
    ("text", "code", "value"),
    [
        ("10 + 8", "en", "18"),
        ("10 × 8", "en", "80"),
        ("10 x 8", "en", "80"),
        ("10 ÷ 2", "en", "5"),
        ("10**2", "en", "100"),
        ("3 + 4i", "en", "3+4i"),
        ("16^(1/2)", "en", "4"),
        ("- 8", "en", "-8"),
        ("12 *(approximately)*", "en", "12"),
        ("10 + 8 = 18", "en", "18"),
        ("\\boxed{half of 10}", "en", None),
        ("\\boxed{total of 12}", "en", "12"),
        ("10 + 8 dollars", "en", None),
    ],
)
def test_a_number_of_an_expression_is_not_its_value(text, code, value):
    answer = extract_answer(f"The answer is {text}.", code)
    assert same_answer(answer, value) if value else not any(same_answer(answer, n) for n in ("10", "8", "2"))
