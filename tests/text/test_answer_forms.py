"""Answers as chat models write them: structure, announcements, numbers and options in many languages."""

import unicodedata

import pytest

from pbrl_jax.text.answers import extract_answer, read_gold, same_answer, split_response

STRUCTURE = [
    ("Hence \\boxed{44}.\n\nThis answer is easy to check: 4 * 11.", "en", "44"),
    ("So \\boxed{44}. The answer is in metres.", "en", "44"),
    ("\\boxed{7} was my first try.\n\nFinal Answer: $\\boxed{9}$", "en", "9"),
    ("Jibu ni 7.\n<answer>9 mayai</answer>\nNatumaini jibu ni wazi.", "sw", "9"),
    ("#### Solution\nWe add 2 and 3.\n#### 5", "en", "5"),
    ("#### 1. Read the question\nDie Antwort lautet 12.", "de", "12"),
    ("<think>it may be \\boxed{3}</think>\nRespuesta: 4", "es", "4"),
    ("<think>it may be \\boxed{3}</think>\n\n**4**", "en", "4"),
    ("<think>the answer is 3, or \\boxed{3}", "en", None),
    ("first idea</think>The answer is 6.", "en", "6"),
    ("\\boxed 25", "en", "25"),
    ("\\boxed{12} and then \\boxed{1", "en", "12"),
    ("The answer is \\boxed{1", "en", None),
]
ANNOUNCED = [
    ("## Antwort\n\n**27**", "de", "27"),
    ("**Final answer:**\n\n27", "en", "27"),
    ("The right answer should be 27, not 72.", "en", "27"),
    ("The answer is not 72 but 27.", "en", "27"),
    ("La respuesta sería 27.", "es", "27"),
    ("La réponse est donc de 27 euros", "fr", "27"),
    ("Die Antwort beträgt 27 Euro für 3 Tage.", "de", "27"),
    ("Правильный ответ будет 27", "ru", "27"),
    ("উত্তর হবে ২৭ টাকা", "bn", "27"),
    ("सही जवाब होगा 27", "hi", "27"),
    ("జవాబు: 27", "te", "27"),
    ("所以答案应该是27个，每人3个。", "zh", "27"),
    ("よって、答えが27円です。", "ja", "27"),
    ("따라서 정답이 27입니다", "ko", "27"),
    ("Vậy đáp số bằng 27 kg", "vi", "27"),
    ("Jibu langu ni shilingi 27 kwa watu 3.", "sw", "27"),
    ("Impendulo ithi 27.", "zu", "27"),
    ("Ìdáhùn náà ni 27.", "yo", "27"),
    ("Tontu bi mooy 27.", "wo", "27"),
    ("የመጨረሻው መልስ 27 ነው", "am", "27"),
    ("Відповідь: 27 грн", "uk", "27"),
    ("जवाफ २७ हो।", "ne", "27"),
    ("अंतिम उत्तर २७ आहे.", "mr", "27"),
    ("جواب ۲۷ ہے۔", "ur", "27"),
    ("The answer is unclear.", "en", None),
    ("The answers are 27.", "en", None),
    ("I count 27 of them.", "en", None),
]
NUMBERS = [
    ("Answer: $3\\frac{1}{4}$", "en", "3.25"),
    ("\\boxed{-2\\frac12}", "en", "-2.5"),
    ("\\boxed{7\\pi}", "en", "7\\pi"),
    ("\\boxed{4ab}", "en", "4ab"),
    ("The answer is 2n - 1.", "en", "2n-1"),
    ("The answer is 2^{99} - 1.", "en", "2^{99}-1"),
    ("The answer is 2m + 1.", "en", "2m+1"),
    ("The answer is 2n - 1, as n > 0.", "en", None),
    ("Final Answer: $$2n - 1$$", "en", "2n-1"),
    ("The answer is\n\\[\n2^{99} - 1\n\\]", "en", "2^{99}-1"),
    ("The answer is\n$$\n\\sqrt{3} + 1\n$$", "en", "\\sqrt{3}+1"),
    ("The answer is:\n\\[\n(1,4), (2,4)\n\\]", "en", "(1,4),(2,4)"),
    ("The answer is \\frac{2kn}{n+1} - 2.", "en", "\\frac{2kn}{n+1}-2"),
    ("<answer>y=x e^{2 x}+c_{1}</answer>", "en", "y=xe^{2x}+c_{1}"),
    ("<answer>\\{-2,0,2\\}</answer>", "en", "\\{-2,0,2\\}"),
    ("#### $-\\frac{1}{2}$", "en", "-0.5"),
    ("#### $k + 4$", "en", "k+4"),
    ("#### Step $k$", "en", None),
    ("The answer is 5! = 120.", "en", "120"),
    ("\\boxed{\\displaystyle e-1}", "en", "e-1"),
    ("\\boxed{\\displaystyle .5}", "en", "0.5"),
    ("\\boxed{\\textbf{\\frac{1}{2}}}", "en", "0.5"),
    ("\\boxed{\\color{red}12}", "en", "12"),
    ("\\boxed{12\\\\}", "en", "12"),
    ('{"answer": 12}', "en", "12"),
    ('{"reasoning": "", "final_answer": "12"}', "en", "12"),
    ("Ans: 12", "en", "12"),
    ("Answer: `D`", "en", "D"),
    ("A resposta correta é a alternativa C.", "pt", "C"),
    ("The answer is 6x.", "en", "6x"),
    ("The answer is −6.", "en", "-6"),
    ("The answer is –6 degrees.", "en", "-6"),
    ("La réponse est moins 6.", "fr", "-6"),
    ("الإجابة هي ٦-", "ar", "-6"),
    ("The answer is 7:05 a.m.", "en", "7:05AM"),
    ("\\boxed{3:4}", "en", "3:4"),
    ("The answer is 75 percent", "en", "75"),
    ("Cevap %75", "tr", "75"),
    ("答案是百分之七十五。", "zh", "75"),
    ("答案是四分之三。", "zh", "0.75"),
    ("答えは4分の3です。", "ja", "0.75"),
    ("The answer is three quarters.", "en", "0.75"),
    ("The answer is twenty-five.", "en", "25"),
    ("The answer is one hundred and six apples.", "en", "106"),
    ("The answer is three thousand five hundred.", "en", "3500"),
    ("The answer is one million two hundred thousand.", "en", "1200000"),
    ("The answer is negative five.", "en", "-5"),
    ("The answer is two and a half.", "en", "2.5"),
    ("Jibu ni kumi na mbili.", "sw", "12"),
    ("Jibu ni mia mbili na tano.", "sw", "205"),
    ("Jibu ni mbili na nusu.", "sw", "2.5"),
    ("La réponse est vingt-deux pommes.", "fr", "22"),
    ("La réponse est soixante-quinze.", "fr", "75"),
    ("La respuesta es doscientos treinta y cinco.", "es", "235"),
    ("A resposta é vinte e dois.", "pt", "22"),
    ("Die Antwort ist zweiundzwanzig.", "de", "22"),
    ("La risposta è ventitré.", "it", "23"),
    ("Ответ: сто двадцать пять.", "ru", "125"),
    ("Jawabannya adalah dua puluh lima.", "id", "25"),
    ("Đáp án là hai mươi lăm.", "vi", "25"),
    ("Cevap: yirmi beş.", "tr", "25"),
    ("উত্তর হল বারো।", "bn", "12"),
    ("Impendulo ngu-12.", "zu", "12"),
    ("정답은 스물다섯입니다.", "ko", "25"),
    ("정답은 3만 4천원입니다.", "ko", "34000"),
    ("答案是2.5亿。", "zh", "250000000"),
    ("答案是三千二。", "zh", "3200"),
    ("答案是3千克。", "zh", "3"),
    ("उत्तर 3.5 लाख है।", "hi", "350000"),
    ("Jawabannya adalah 2,5 juta rupiah.", "id", "2500000"),
    ("Đáp án là 2,5 triệu đồng.", "vi", "2500000"),
    ("The answer is 2.5 million.", "en", "2500000"),
    ("Jibu ni shilingi milioni 2.", "sw", "2000000"),
    ("The answer is $8 \\times 3 = 24$.", "en", "24"),
    ("\\boxed{8 \\times 3 = 24}", "en", "24"),
    ("\\boxed{8 = 9}", "en", "8=9"),
    ("The answer is 24 (8 bags of 3).", "en", "24"),
    ("\\boxed{60 \\text{ km/h}}", "en", "60"),
    ("The answer is the 4th house.", "en", "4"),
]
OPTIONS = [
    ("The correct answer is: C) Lagos", "en", "C"),
    ("The answer is option C.", "en", "C"),
    ("The answer is [C].", "en", "C"),
    ("The answer is A since 5 > 4.", "en", "A"),
    ("The answer is A or B.", "en", None),
    ("La respuesta es: (C)", "es", "C"),
    ("答案选C。", "zh", "C"),
    ("正确答案是选项C", "zh", "C"),
    ("答案是丙。", "zh", "C"),
    ("คำตอบคือ ข้อ ค", "th", "C"),
    ("উত্তর: (গ)", "bn", "C"),
    ("उत्तर ग है", "hi", "C"),
    ("Ответ: С", "ru", "C"),
    ("정답은 다입니다", "ko", "C"),
    ("Jibu sahihi ni: C", "sw", "C"),
]
CASES = STRUCTURE + ANNOUNCED + NUMBERS + OPTIONS


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(("text", "code", "answer"), CASES)
def test_forms(text, code, answer, form):
    assert extract_answer(unicodedata.normalize(form, text), code) == answer


def test_the_split_is_where_the_answer_was_found():
    assert split_response("9 * 5 = 45.\nSo \\boxed{45}\n\nThe answer is in metres.", "en") == (
        "9 * 5 = 45.\nSo", "\\boxed{45}\n\nThe answer is in metres.",
    )  # fmt: skip
    assert split_response("<think>\\boxed{1}", "en") == ("\\boxed{1}", "")
    nfd = unicodedata.normalize("NFD", "Neuf. La réponse est 9.")
    assert split_response(nfd, "fr") == ("Neuf.", "La réponse est 9.")


@pytest.mark.parametrize(
    ("gold", "code", "read"),
    [
        ("She has 2 + 2 = 4.\n#### 4", "sw", "4"),
        ("4 kalamu", "sw", "4"),
        ("(B)", "sw", "B"),
        ("b", "sw", "b"),
        ("The answer is 4.", "sw", "4"),
        ("1,250", "de", "1250"),
        ("2.125", "de", "2.125"),
        ("$\\frac{1}{2}$", "en", "0.5"),
        ("\\boxed{4}", "th", "4"),
        ("Paris", "en", "Paris"),
        ("NaN", "en", None),
        (" ", "en", None),
        ("First she adds the apples and then she gives all of them away.", "en", None),
    ],
)
def test_golds_as_files_write_them(gold, code, read):
    assert read_gold(gold, code) == read


def test_a_lower_case_gold_letter_is_the_letter():
    assert same_answer(extract_answer("Jibu ni B.", "sw"), read_gold("b", "sw"))
