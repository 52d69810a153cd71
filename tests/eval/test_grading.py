"""Grades of responses: ours, and those of published evaluations where they differ; language fidelity."""

import pytest

from pbrl_jax.core.errors import DataError
from pbrl_jax.eval.benchmarks import BENCHMARKS, own_table
from pbrl_jax.eval.benchmarks.common import Problem, known_language
from pbrl_jax.eval.benchmarks.scoring import harness_flexible, harness_match, harness_strict, math_octopus
from pbrl_jax.eval.fidelity import fidelity, share
from pbrl_jax.eval.grading import grade_choices, grade_rows

MGSM = BENCHMARKS["mgsm"]


def graded(language: str, text: str, gold: str, protocol: str = "native-cot", benchmark=MGSM, **more):
    answer_language = "en" if protocol == "en-cot" else known_language(language)
    problem = Problem(f"{language}/0", language, "?", "?", gold, more.pop("kind", "number"), answer_language, **more)
    row = {"key": problem.key, "language": language, "sample": 0, "completion": text, "tokens": 1, "truncated": False}
    return grade_rows(benchmark, protocol, [problem], [row])[0]


@pytest.mark.parametrize(
    ("language", "text", "gold", "ours", "strict", "flexible"),
    [
        ("sw", "Mbili na mbili ni 4. Jibu ni 4.", "4", True, True, True),
        ("sw", "Mbili na mbili ni 4.", "4", True, False, True),  # nothing announced
        ("bn", "উত্তর হল ১৮।", "18", True, False, False),  # native digits
        ("bn", "উত্তর হল 18।", "18", True, False, True),  # the harness looks for an English sentence
        ("de", "Die Antwort lautet 5.600.", "5600", True, True, True),
        ("de", "Die Antwort lautet 3,5.", "35", False, True, True),  # punctuation removed: 3,5 counts as 35
        ("fr", "La réponse est 1 000.", "1000", True, False, False),  # a space groups thousands
        ("fr", "La réponse est -7.", "7", False, True, True),  # the sign is punctuation
        ("en", "The answer is 18.00.", "18", True, False, False),  # 1800
        ("ja", "答えは9個です。", "9", True, False, True),
        ("zh", "答案是 12。\n另外 15", "12", True, True, False),  # the last number is another one
        ("en", "No idea.", "3", False, False, False),
    ],
)
def test_where_ours_and_the_harness_differ(language, text, gold, ours, strict, flexible):
    row = graded(language, text, gold)
    assert row["correct"] is ours
    assert row["published"] == {"lm_eval_strict": strict, "lm_eval_flexible": flexible}


def test_rules_of_the_harness():
    assert harness_strict("Jibu ni 5. Jibu ni 6.", r"Jibu ni (\-?[0-9\.\,]+)") == "5.", "the first one"
    assert harness_flexible("5 and 1,234.") == "1,234." and harness_flexible("so 7 ...") == "..."
    assert harness_flexible("nothing") == "[invalid]" and harness_flexible("cost $3") == "$3"
    assert harness_match("1,234.", "1234") and not harness_match("", "4")
    assert math_octopus("1,5 is 3", "3") and math_octopus("about 2.9999", "3") and not math_octopus("7", "x")


def test_protocols_ask_for_their_own_answer():
    assert graded("sw", "So it is 4. The answer is 4.", "4", "en-cot")["published"]["lm_eval_strict"]
    direct = graded("sw", " 4 ", "4", "direct")
    assert direct["published"] == {"lm_eval_strict": True, "lm_eval_flexible": True} and direct["correct"]
    assert not graded("sw", "4 kuku", "4", "direct")["published"]["lm_eval_strict"]


def test_what_a_row_says_of_the_answer():
    announced, bare, none = (graded("sw", text, "4") for text in ("Jibu ni 4.", "Ni 4", "Sijui."))
    assert [row["marker_missing"] for row in (announced, bare, none)] == [False, True, False]
    assert [row["extracted"] for row in (announced, bare, none)] == ["4", "4", None]
    assert announced["gold"] == "4"


def test_letters():
    grade = {"benchmark": BENCHMARKS["global-mmlu"], "protocol": "direct", "kind": "letter", "options": 4}
    for text, right in [("B", True), (" (B) because", True), ("Jibu ni B.", True), ("Bila shaka", False), ("E", False)]:
        row = graded("sw", text, "B", **grade)
        assert row["correct"] is row["published"]["letter"] is right, text
    prox = {"benchmark": BENCHMARKS["mmlu-prox"], "kind": "letter", "options": 10}
    first_wins = graded("sw", "Jibu ni (A). Hapana, Jibu ni **(C)**.", "C", **prox)
    assert first_wins["correct"] and not first_wins["published"]["lm_eval_strict"]
    czech = graded("cs", "Odpověď je **(C)**.", "C", **prox)
    assert czech["correct"] and not czech["published"]["lm_eval_strict"], "the harness takes no bold"
    assert czech["right_language"] is True, "too short to tell, as in training"
    assert not graded("cs", "Odpověď je (J).", "C", **(prox | {"options": 4}))["extracted"]


def test_letters_of_a_table_of_your_own():
    table = {"benchmark": own_table.BENCHMARK}
    for text, right in [("B", True), ("B) 12", True), ("b. 12", True), ("Jibu ni B.", True), ("C) 12", False)]:
        assert graded("sw", text, "B", **table)["correct"] is right, text
    assert graded("sw", "Ni 12", "12", **table)["correct"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("es", "A Juan le quedan cinco manzanas; no sé cuál elegir."),
        ("pt", "A força resultante depende da massa."),
        ("en", "A body at rest stays at rest."),
        ("fr", "A-t-elle raison ? Je ne sais pas."),
        ("it", "E quindi la risposta è chiara."),
    ],
)
def test_an_article_at_the_beginning_is_no_letter(code, text):
    grade = {"benchmark": BENCHMARKS["global-mmlu"], "protocol": "direct", "kind": "letter", "options": 5}
    row = graded(code, text, text[0], **grade)
    assert not row["correct"] and row["extracted"] is None


def test_latex():
    poly = {"benchmark": BENCHMARKS["polymath-top"], "kind": "latex"}
    row = graded("en", r"First \boxed{3}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}", **poly)
    assert row["correct"] and row["published"] == {"first_boxed": False}
    assert graded("en", r"\boxed{0.5}", r"\frac{1}{2}", **poly)["correct"]


def test_choices():
    problem = Problem("sw/0", "sw", "?", "?", "B", "letter", "sw", (" ndiyo", " la"))
    row = {"key": "sw/0", "language": "sw", "sample": 0, "logprobs": [-5.0, -4.0], "tokens": [2, 1]}
    found = grade_choices(problem, row)
    assert found["correct"] and found["extracted"] == "B"
    # Per character -5 / 5 beats -4 / 2.
    assert found["published"] == {"lm_eval_acc": True, "lm_eval_acc_norm": False}
    assert not grade_choices(problem, row | {"logprobs": [-4.0, -4.0]})["correct"], "the first of equals"
    with pytest.raises(DataError, match="no usable logprobs"):
        grade_rows(BENCHMARKS["xcopa"], "loglikelihood", [problem], [row | {"logprobs": [-4.0]}])


def test_rows_come_in_the_order_of_problems_and_samples():
    problems = [Problem(f"sw/{i}", "sw", "?", "?", "4", "number", "sw") for i in (0, 1)]
    rows = [
        {"key": key, "language": "sw", "sample": sample, "completion": "4", "tokens": 1, "truncated": False}
        for key, sample in (("sw/1", 1), ("sw/0", 1), ("sw/1", 0), ("sw/0", 0))
    ]
    order = [(row["key"], row["sample"]) for row in grade_rows(MGSM, "native-cot", problems, rows)]
    assert order == [("sw/0", 0), ("sw/0", 1), ("sw/1", 0), ("sw/1", 1)]
    again = grade_rows(MGSM, "native-cot", problems, rows)
    assert grade_rows(MGSM, "native-cot", problems, again) == again, "graded rows can be graded again"
    with pytest.raises(DataError, match="row of 'sw/9', which is no problem of this evaluation"):
        grade_rows(MGSM, "native-cot", problems, [rows[0] | {"key": "sw/9"}])
    del rows[0]["completion"]
    with pytest.raises(DataError, match="row of 'sw/1' has no usable completion"):
        grade_rows(MGSM, "native-cot", problems, rows)


# Language.

SWAHILI = "Ali alikuwa na chupa kumi na alinunua chupa kumi zaidi sokoni."
ENGLISH = "Ali starts with ten bottles and buys ten more bottles at the market."
CHINESE = "小明有十个瓶子，他又买了十个瓶子。"


def test_lines_and_words():
    codes = ("sw", "zh", "en")
    assert fidelity(SWAHILI, "sw", codes) == (True, True, None), "Latin letters tell no words apart"
    assert fidelity(ENGLISH, "sw", codes) == (False, False, None)
    swahili = f"{SWAHILI}\n" * 8
    mixed = fidelity(f"{swahili}{ENGLISH}\n{swahili}", "sw", codes)
    assert mixed.right and mixed.lines is False and mixed.switched
    assert fidelity(CHINESE, "zh", codes) == (True, True, True)
    word = fidelity(CHINESE * 3 + "所以 answer 是二十。" + CHINESE, "zh", codes)
    assert word.right and word.words is False and word.switched
    assert fidelity(CHINESE + r"共 $x = 20 \text{km}$", "zh", codes).words, "units and variables are no words"
    assert fidelity(CHINESE + r"共 $x = 20 \text{bottles}$", "zh", codes).words is False, "a word in a formula is one"
    assert fidelity("", "sw", codes) == fidelity("12", "sw", codes) == (None, None, None)
    assert fidelity(SWAHILI, "qq", codes) == (None, None, None), "no language of ours"
    assert fidelity(SWAHILI, "ee", codes) == (None, None, None), "one that no identifier knows"
    assert fidelity(SWAHILI, "ha", codes).right is False
    assert fidelity("", "sw", codes).switched is None


def test_fidelity_in_a_row():
    assert graded("sw", ENGLISH, "4")["right_language"] is False
    assert graded("sw", ENGLISH, "4", "en-cot")["right_language"] is True, "the protocol asks for English"
    assert graded("sw", "4", "4")["right_language"] is True, "too short to tell, as in training"
    assert (
        graded("sw", ENGLISH, "4")["response_language"] == "en" and graded("sw", "4", "4")["response_language"] is None
    )
    assert share([True, None, False, True]) == pytest.approx(2 / 3) and share([None]) is None
