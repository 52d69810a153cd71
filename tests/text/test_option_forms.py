"""Option letters in boxes with the option's text, in small letters, and after "the correct option"; numbers with the
endings, currencies and marks that languages write at them."""

import time

import pytest

from pbrl_jax.eval.benchmarks.scoring import leading_or_announced_letter
from pbrl_jax.text.answers import extract_answer, read_gold, same_answer

BOXES = [
    ("C. Paris", "C"),
    ("\\text{C: Paris}", "C"),
    ("\\text{(C) Paris}", "C"),
    ("\\text{C) Paris}", "C"),
    ("\\text{C. } 5\\sqrt{2}", "C"),
    ("\\textbf{(C) }18", "C"),
    ("\\textbf{(C)}\\ 18", "C"),
    ("\\mathbf{(C)}~18", "C"),
    ("(\\textbf{C})\\quad 18", "C"),
    ("\\textbf{(C)}\\ 18 \\textbf{(D)}\\ 20", "\\textbf{(C)}\\18\\textbf{(D)}\\20"),
    ("(C)\\, x", "C"),
    ("C\\, x", "C\\,x"),
    ("\\text{Option C}", "C"),
    ("\\text{C}.", "C"),
    ("A. 5, B. 3", "A.5,B.3"),
    ("(A) \\cup (B)", "(A)\\cup(B)"),
    ("A + B", "A+B"),
    ("f: 5", "f:5"),
]
SMALL = [
    ("Answer: c", "en", "C"),
    ("The answer is d", "en", "D"),
    ("<answer>c</answer>", "en", "C"),
    ("Jibu: b", "sw", "B"),
    ("The answer is a", "en", None),
    ("The answer is a cat.", "en", None),
    ("Antwort: d. h. wenig", "de", None),
]
CORRECT_OPTION = [
    ("The right option is B.", "en"),
    ("Therefore, option B is correct.", "en"),
    ("Choice **B** is the right answer.", "en"),
    ("Option A is not right. So option (B) is the best choice here.", "en"),
    ("If option A is correct, x is 2, but it is 3, so option B is correct.", "en"),
    ("Por lo tanto, la opción B es correcta.", "es"),
    ("Donc l'option B est la bonne réponse.", "fr"),
    ("Somit ist Antwort B richtig.", "de"),
    ("Portanto, a alternativa B está correta.", "pt"),
    ("Quindi l'opzione B è quella corretta.", "it"),
    ("Jadi pilihan B adalah jawaban yang benar.", "id"),
    ("因此选项B是正确的。", "zh"),
    ("したがって、選択肢Bが正解です。", "ja"),
    ("따라서 선택지 B가 정답입니다.", "ko"),
    ("L'option correcte est B.", "fr"),
    ("La bonne réponse est l'option B.", "fr"),
    ("Die richtige Option ist B.", "de"),
    ("A alternativa correta é a letra B.", "pt"),
    ("L'opzione corretta è la B.", "it"),
    ("La alternativa correcta es B.", "es"),
    ("Pilihan yang benar adalah B.", "id"),
    ("Phương án đúng là B.", "vi"),
    ("Chaguo sahihi ni B.", "sw"),
    ("الخيار الصحيح هو (ب)", "ar"),
    ("सही विकल्प B है।", "hi"),
    ("সঠিক বিকল্প হল B।", "bn"),
    ("సరైన ఎంపిక B.", "te"),
    ("ตัวเลือกที่ถูกต้องคือ B", "th"),
    ("ตอบข้อ B", "th"),
    ("正しい選択肢はBです。", "ja"),
    ("Правильный вариант ответа: B", "ru"),
    ("Doğru seçenek B'dir.", "tr"),
    ("正确的选项是B。", "zh"),
    ("因此选B。", "zh"),
    ("【答案】B", "zh"),
]
NUMBERS = [
    ("Cevap 12'dir.", "tr", "12"),
    ("Cevap: 5’tir.", "tr", "5"),
    ("Cevap 1.250'dir.", "tr", "1250"),
    ("Cevap 3,5'tir.", "tr", "3.5"),
    ("\\boxed{12'dir}", "tr", "12"),
    ("Die Antwort ist 1'250.", "de", "1250"),
    ("The answer is 5'6\".", "en", None),
    ("उत्तर ₹1,00,000 है।", "hi", "100000"),
    ("సమాధానం ₹1,250.", "te", "1250"),
    ("उत्तर ₹ १,२५० आहे.", "mr", "1250"),
    ("Jibu ni Ksh 1,250/=", "sw", "1250"),
    ("उत्तर: 500/-", "hi", "500"),
    ("【答案】12", "zh", "12"),
    ("The ratio is 3 : 4.", "en", None),
    ("The answer is 3 : 4.", "en", "3:4"),
    ("The answer is 12: 5 + 7.", "en", "12"),
    ("\\boxed{25°C}", "en", "25"),
    ("\\boxed{25\\,^\\circ C}", "en", "25"),
    ("\\boxed{25 °F}", "en", "25"),
    ("\\boxed{25^{\\circ}\\mathrm{C}}", "en", "25^{\\circ}"),
    ("\\boxed{5m}", "en", "5m"),
    ("\\boxed{12\\text{ m}}", "en", "12"),
    ("\\boxed{12\\,\\mathrm{m}^2}", "en", "12"),
    ("\\boxed{12\\ \\text{m/s}^{2}}", "en", "12"),
    ("\\boxed{12 \\mathrm{~m}^{2}}", "en", "12"),
    ("\\boxed{12\\text{ ans}}", "fr", "12"),
    ("\\boxed{12\\text{ jam}}", "id", "12"),
    ("\\boxed{12\\quad\\text{men}}", "en", "12"),
    ("\\boxed{12 \\text{ per day}}", "en", "12"),
    ("\\boxed{12^{\\text{th}}}", "en", "12"),
    ("\\boxed{2.5\\text{ million}}", "en", "2500000"),
    ("\\boxed{36\\pi\\,\\mathrm{cm}^3}", "en", "36\\pi"),
    ("\\boxed{2\\sqrt{3}\\text{ m}}", "en", "2\\sqrt{3}"),
    ("\\boxed{\\frac{3}{4} \\text{ of the cake}}", "en", "0.75"),
    ("\\boxed{12\\text{ or more}}", "en", "12\\text{ormore}"),
    ("\\boxed{x \\text{ is even}}", "en", "x\\text{iseven}"),
    ("\\boxed{5\\text{ h }30\\text{ min}}", "en", "5\\text{h}30\\text{min}"),
    ("\\boxed{US\\$12}", "en", "12"),
    ("\\boxed{{-}12}", "en", "-12"),
]

FORMULAS = [
    ("The answer is √2.", "\\sqrt{2}"),
    ("The answer is √(16)", "4"),
    ("The answer is sqrt(2)/2", "\\frac{\\sqrt{2}}{2}"),
    ("The answer is x^2 + 1.", "x^2+1"),
    ("The answer is (a+b)^2.", "(a+b)^2"),
    ("The answer is n(n+1)/2.", "\\frac{n(n+1)}{2}"),
    ("The answer is $n(n+1)/2$.", "\\frac{n(n+1)}{2}"),
    ("The answer is $n+1$.", "n+1"),
    ("The answer is f(2) = 12.", "12"),
    ("It costs $9 a day. The answer is $12 for a pen and $5 back.", "12"),
]


@pytest.mark.parametrize(("text", "gold"), FORMULAS)
def test_a_number_in_a_formula_is_not_the_answer(text, gold):
    assert same_answer(extract_answer(text, "en"), gold)


@pytest.mark.parametrize("filler", [" ", "_", "$", ": ", "\\", "#", "1 ", "("])
def test_a_response_in_a_loop_is_read_at_once(filler):
    extract_answer("The answer is 2.", "en")
    start = time.process_time()
    for text in (f"x {filler * 20000} The answer is", f"The answer is {filler * 20000}"):
        extract_answer(text, "en")
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(("content", "letter"), BOXES)
def test_a_box_with_the_text_of_the_option(content, letter):
    assert extract_answer(f"So \\boxed{{{content}}}.", "en") == letter


@pytest.mark.parametrize(("text", "code", "letter"), SMALL)
def test_a_small_letter_is_an_option_where_it_is_the_whole_line(text, code, letter):
    assert extract_answer(text, code) == letter


@pytest.mark.parametrize(("text", "code"), CORRECT_OPTION)
def test_the_correct_option_is_announced_in_every_large_language(text, code):
    assert extract_answer(text, code) == "B"


@pytest.mark.parametrize(("text", "code", "number"), NUMBERS)
def test_what_stands_at_a_number(text, code, number):
    assert extract_answer(text, code) == number


@pytest.mark.parametrize("text", ["b", "b)", "(b)", "b. Paris", "**b**", "\\boxed{b}", "Answer: b"])
def test_a_small_letter_answers_a_multiple_choice_question(text):
    assert leading_or_announced_letter(text, "en", "ABCD") == "B"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("उत्तर A और C है।", "hi"),
        ("উত্তর: A এবং C", "bn"),
        ("సమాధానం A మరియు C.", "te"),
        ("คำตอบคือ A และ C", "th"),
        ("答えはAとCです。", "ja"),
        ("答えはAではなくCです。", "ja"),
        ("정답은 A와 C입니다.", "ko"),
        ("정답은 A가 아니라 C입니다.", "ko"),
        ("正确答案是A、C。", "zh"),
        ("جواب A اور C ہے۔", "ur"),
        ("উত্তর A নয়, C।", "bn"),
        ("उत्तर A नहीं, बल्कि C है।", "hi"),
        ("The answer is A & C", "en"),
        ("A is incorrect. So is C.", "en"),
        ("I think that option A is correct, and option C is correct.", "en"),
        ("If option C is correct, then x is 2.", "en"),
        ("Option C is not correct.", "en"),
    ],
)
def test_one_of_two_options_or_a_wrong_one_is_no_answer(text, code):
    assert leading_or_announced_letter(text, code, "ABCD") is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("सही उत्तर विकल्प C है।", "hi"),
        ("ตอบ ค", "th"),
        ("Chọn C.", "vi"),
        ("The answer is \\textbf{(C)}.", "en"),
        ("C is the correct answer.", "en"),
        ("答えはCです。", "ja"),
        ("정답은 C입니다.", "ko"),
        ("คำตอบคือ C และนี่คือเหตุผล", "th"),
    ],
)
def test_one_option_is_an_answer(text, code):
    assert leading_or_announced_letter(text, code, "ABCD") == "C"


def test_what_only_looks_like_a_small_option():
    for text in ("e.g. Paris", "a city", "f) Paris", "d.h. Paris"):
        assert leading_or_announced_letter(text, "en", "ABCD") is None
    assert same_answer(extract_answer("\\boxed{e}", "en"), read_gold("$e$", "en"))
