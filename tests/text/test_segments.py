"""Sentences, protected spans, and numbers across languages, case by case."""

import time

import pytest

from pbrl_jax.text.segments import (
    FORMULA,
    NUMBER,
    fitting_parts,
    lines_and_sentences,
    mask,
    names_in,
    numbers_agree,
    readings,
    unmask,
)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It costs 3.50 in total. Then he left.", ["It costs 3.50 in total.", "Then he left."]),
        ("Mr. Smith met J. Doe. They ate, z. B. pie.", ["Mr. Smith met J. Doe.", "They ate, z. B. pie."]),
        ("She has 5. He has 6.", ["She has 5.", "He has 6."]),
        ("1. First do this. 2 is left.", ["1. First do this.", "2 is left."]),
        ("and so on... but no end. Now.", ["and so on...", "but no end.", "Now."]),
        ("答案是42。因为6乘7是42！", ["答案是42。", "因为6乘7是42！"]),
        ("उत्तर 18 है। धन्यवाद।", ["उत्तर 18 है।", "धन्यवाद।"]),
        ("उसने कहा “18।” फिर वह गया।बस।", ["उसने कहा “18।”", "फिर वह गया।", "बस।"]),
        ("جواب 18 ہے۔ شکریہ۔", ["جواب 18 ہے۔", "شکریہ۔"]),
        ("መልሱ 18 ነው። አመሰግናለሁ፧", ["መልሱ 18 ነው።", "አመሰግናለሁ፧"]),
        ("အဖြေ ၁၈။ ကျေးဇူးပါ။", ["အဖြေ ၁၈။", "ကျေးဇူးပါ။"]),
        ("ចម្លើយ ១៨។ អរគុណ។", ["ចម្លើយ ១៨។", "អរគុណ។"]),
        ("Պատասխան 18։ Շնորհակալություն։", ["Պատասխան 18։", "Շնորհակալություն։"]),
        ("He said “Go.” Then he went.", ["He said “Go.”", "Then he went."]),
        ("no end at all", ["no end at all"]),
        ("", []),
        ("   ", []),
    ],
)
def test_sentences(text, expected):
    assert [sentence for sentence, _ in lines_and_sentences(text)] == expected


def test_line_breaks_are_kept():
    assert list(lines_and_sentences("A bee. C dee.\n\nE\nFoo.\n")) == [
        ("A bee.", ""), ("C dee.", "\n\n"), ("E", "\n"), ("Foo.", "\n"),
    ]  # fmt: skip


def test_long_sentences_are_cut_at_the_best_place():
    def fits(part: str) -> bool:
        return len(part) <= 12

    assert fitting_parts("short one", fits) == ["short one"]
    assert fitting_parts("aaa bbb ccc, ddd eee fff", fits) == ["aaa bbb ccc,", "ddd eee fff"]
    assert fitting_parts("aaaa bbbb cccc dddd", fits) == ["aaaa bbbb", "cccc dddd"]
    assert fitting_parts("a" * 30, fits) == ["aaaaaaa", "aaaaaaaa", "aaaaaaa", "aaaaaaaa"]
    assert fitting_parts("abc", lambda part: False) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "text, spans",
    [
        (r"So $x^2 = 4$ and \boxed{\frac{1}{2}} end", ["$x^2 = 4$", r"\boxed{\frac{1}{2}}"]),
        (r"\[ a \\ b \] then \( c \) then $$d$$", [r"\[ a \\ b \]", r"\( c \)", "$$d$$"]),
        ("it costs $5 and $6, or $5-$6", []),
        ("<think> a </think> <answer> 7 </answer>", ["<think>", "</think>", "<answer>", "</answer>"]),
        ("#### 42", ["####"]),
        (r"an open \boxed{ stays", []),
        ("plain", []),
    ],
)
def test_formulas_are_found_and_put_back(text, spans):
    masked = mask(text, FORMULA)
    assert list(masked.spans.values()) == spans
    assert unmask(masked.text, masked.spans) == text
    assert not spans or not any(span in masked.text for span in spans)


def test_names_touch_no_letters():
    masked = mask("<think>one</think><answer>7</answer>", FORMULA)
    assert masked.text == "XA one XB XC 7 XD"
    assert unmask(masked.text, masked.spans) == "<think> one </think> <answer> 7 </answer>"


def test_names_do_not_clash_with_the_text():
    masked = mask("XA is here, and $a$ too", FORMULA)
    assert masked.text == "XA is here, and QA too"
    many = mask(" ".join(f"${letter}$" for letter in "abcdefghijklmnopqrstuvwxyz" * 2), FORMULA)
    assert len(set(many.spans)) == 52 and "XAZ" in many.spans
    assert unmask(many.text, many.spans).startswith("$a$ $b$")
    assert names_in("then XA, not XAB", {"XA": "1", "XB": "2"}) == {"XA": "1"}


def test_a_lost_or_doubled_name_is_noticed():
    masked = mask("so $a$ is $b$", FORMULA)
    assert unmask("ni XB, XA basi", masked.spans) == "ni $b$, $a$ basi"
    assert unmask("答案XA是XB", masked.spans) == "答案$a$是$b$"
    assert unmask("so XA is", masked.spans) is None
    assert unmask("XA XA XB", masked.spans) is None
    assert unmask("XAB XB", masked.spans) is None


def test_numbers_are_found():
    assert NUMBER.findall("3,5 and 1.250 or 12. Then 7") == ["3,5", "1.250", "12", "7"]


@pytest.mark.parametrize(
    "token, values",
    [
        ("12", {"12"}),
        ("3,5", {"3.5"}),
        ("3.50", {"3.5"}),
        ("1.250", {"1250", "1.25"}),
        ("1,250", {"1250", "1.25"}),
        ("1.250,75", {"1250.75"}),
        ("1,250.75", {"1250.75"}),
        ("1,14,200", {"114200"}),
        ("1'000", {"1000"}),
        ("1\u202f000", {"1000"}),
        ("2,3,7", set()),
        ("1000", {"1000"}),
        ("007", {"7"}),
    ],
)
def test_readings(token, values):
    assert readings(token) == values


@pytest.mark.parametrize(
    "source, translation, agree",
    [
        ("Tom has 12 apples", "Tom ana tufaha 12", True),
        ("Tom has 12 apples", "Tom ana tufaha 21", False),
        ("12 and 13", "13 und 12", True),
        ("12 and 12", "12", False),
        ("12", "12 und 12", False),
        ("none", "keine", True),
        ("1,250.5 dollars", "1.250,5 Dollar", True),
        ("1,250 dollars", "1250 Dollar", True),
        ("1.25 dollars", "1250 Dollar", False),
        ("3.5 litres", "35 Liter", False),
        ("1250 Euro", "1 250 euros", True),
        ("5万元", "50,000 yuan", True),
        ("ফল ১২", "the result is 12", True),
        ("٣٫٥ لتر", "3.5 litres", True),
        ("mbili na 2", "two and two", True),
        ("she has 2 cats", "she has two cats", True),
        ("she has 2 cats", "she has three cats", False),
        ("1, 2, 3", "1,2,3", True),
        ("half past 12:30", "12 Uhr 30", True),
        ("the answer is 0.50", "jibu ni 0,5", True),
        ("", "7", False),
    ],
)
def test_numbers_agree(source, translation, agree):
    assert numbers_agree(source, translation) is agree
    assert numbers_agree(translation, source) is agree


def test_texts_in_a_loop_are_compared_and_cut_at_once():
    """A response of thousands of equal numbers, or of full stops."""
    start = time.process_time()
    assert numbers_agree("1 " * 3000, "1 " * 3000) and not numbers_agree("1 " * 3001, "1 " * 3000)
    assert numbers_agree("1.250; " * 300, "1,250; " * 300) and not numbers_agree("1.250; " * 301, "1.25; " * 300)
    assert list(lines_and_sentences("." * 20000)) == [("." * 20000, "")]
    assert time.process_time() - start < 2


def test_a_number_leaves_a_partner_that_another_needs():
    assert numbers_agree("1.250 1250", "1250 1.25") and not numbers_agree("1.250 1250", "1.25 1.25")
