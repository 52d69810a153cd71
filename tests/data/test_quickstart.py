"""The templated task: correct arithmetic, parallel sentences, disjoint splits, rules of grammar we rely on."""

import collections
import json
import random
import re
import unicodedata

import pytest
from text_helpers import script_share

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.data.sources import SOURCES, quickstart
from pbrl_jax.data.sources import quickstart_text as text
from pbrl_jax.data.sources.common import language_of, prompt_id, row_of
from pbrl_jax.text.answers import extract_answer

ALL = quickstart.LANGUAGES
SPLITS = tuple(quickstart.SPLIT_SHARES)


@pytest.fixture(scope="module")
def sample():
    """Problems of every family."""
    found = quickstart.problems("test", 240, seed=0)
    assert {problem.family for problem in found} == set(text.FAMILIES)
    return found


def test_every_table_has_every_language_and_matching_entries():
    for table in (text.NAMES, text.ITEMS, text.TWO_STEPS, text.FULL_STOP, quickstart.number_words()):
        assert set(table) == set(ALL)
    assert {len(names) for names in text.NAMES.values()} == {6}
    for table in (text.ITEMS, text.CLASSIFIERS, text.HOW_MANY):
        assert {len(entries) for entries in table.values()} == {8}
    for family in text.FAMILIES:
        assert set(text.QUESTIONS[family]) == set(ALL)
    assert {code: len(words) for code, words in quickstart.number_words().items()} == dict.fromkeys(ALL, 100)


def test_number_words_are_all_different_and_normalised():
    for words in quickstart.number_words().values():
        assert len(set(words)) == 100
        assert all(word and unicodedata.is_normalized("NFC", word) for word in words)
    assert [quickstart.number_words()[c][17] for c in ("en", "es", "de", "sw", "id", "zh", "th", "bn")] == [
        "seventeen", "diecisiete", "siebzehn", "kumi na saba", "tujuh belas", "十七", "สิบเจ็ด", "সতেরো",
    ]  # fmt: skip
    assert quickstart.number_word("zh", 2) == "两" and quickstart.number_word("zh", 12) == "十二"


def test_one_problem_by_hand():
    problem = quickstart.WordProblem(0, "muladd", 4, 1, 3, 6, 8, 26)
    assert quickstart.question(problem, "en") == (
        "Lina has three packets with six pencils each and eight more pencils. How many pencils are there in total?"
    )
    assert quickstart.question(problem, "es").endswith("¿Cuántos lápices hay en total?")
    assert quickstart.question(problem, "sw").startswith("Lina ana pakiti tatu zenye penseli sita kila moja")
    assert quickstart.question(problem, "zh") == "丽娜有三包铅笔，每包六支，另外还有八支铅笔。一共有多少支铅笔？"
    assert quickstart.response(problem, "de") == "Zuerst 3 * 6 = 18. Dann 18 + 8 = 26. Die Antwort lautet 26."
    assert quickstart.reference(problem, "sw") == ("Kwanza 3 * 6 = 18. Kisha 18 + 8 = 26.", "Jibu ni 26.")


@pytest.mark.parametrize("code", ALL)
def test_questions_hold_words_and_responses_hold_true_equations(sample, code):
    for problem in sample:
        asked, said = quickstart.question(problem, code), quickstart.response(problem, code)
        assert not re.search(r"\d|[{}]", asked)
        assert unicodedata.is_normalized("NFC", asked) and unicodedata.is_normalized("NFC", said)
        assert script_share(asked, code) == 1.0
        counts = [n for n in (problem.a, problem.b, problem.c) if n]
        assert all(quickstart.number_word(code, n) in asked for n in counts)
        for left, operator, right, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", said):
            x, y, z = int(left), int(right), int(result)
            assert z == {"+": x + y, "-": x - y, "*": x * y, "/": x / y}[operator]
        assert z == problem.result
        assert extract_answer(said, code) == str(problem.result)


@pytest.mark.parametrize("code", ALL)
def test_sentences_are_parallel(sample, code):
    for problem in sample:
        numbers = [sorted(re.findall(r"\d+", quickstart.response(problem, c))) for c in ("en", code)]
        assert numbers[0] == numbers[1]
        asked = quickstart.question(problem, code)
        assert text.NAMES[code][problem.name] in asked and text.ITEMS[code][problem.item] in asked
        if code in text.CLASSIFIERS:
            assert text.CLASSIFIERS[code][problem.item] in asked


def test_counts_that_break_agreement_never_occur():
    for split in SPLITS:
        for problem in quickstart.problems(split, 0, seed=0):
            assert not {1, 21, 31, 41} & {problem.a, problem.b, problem.c}
            assert problem.result >= 1


def test_splits_are_disjoint_whatever_the_seed():
    sets = {split: set(quickstart.problems(split, 0, seed)) for seed, split in enumerate(SPLITS)}
    for split in SPLITS:
        assert sets[split] == set(quickstart.problems(split, 0, seed=9))
        for other in set(SPLITS) - {split}:
            assert not sets[split] & sets[other]
    total = sum(map(len, sets.values()))
    for split, share in quickstart.SPLIT_SHARES.items():
        assert len(sets[split]) == pytest.approx(share * total, rel=0.05)
    assert len({problem[1:] for problems in sets.values() for problem in problems}) == total


def test_the_seed_chooses_and_families_take_turns():
    one, same, other = (quickstart.problems("train", 600, seed) for seed in (0, 0, 1))
    assert one == same != other
    families = [problem.family for problem in one]
    assert {families.count(family) for family in text.FAMILIES} == {100}
    assert quickstart.problems("train", 60, 0) == one[:60]


def test_asking_for_more_than_there_is_says_so():
    available = len(quickstart.problems("test", 0, 0, "small"))
    assert len(quickstart.problems("test", available, 0, "small")) == available
    with pytest.raises(DataError, match=f"has {available} problems, {available + 1} are needed"):
        quickstart.problems("test", available + 1, 0, "small")


def test_the_small_space_is_a_part_of_the_full_one():
    full = set(quickstart.problems("train", 0, 0))
    small = quickstart.problems("train", 0, 0, "small")
    assert set(small) < full and {problem.family for problem in small} == {"add", "sub"}


def test_rows():
    rows = SOURCES["quickstart"]("", "train", ("en", "sw", "th"), 50, 3)
    assert len(rows) == 150
    assert len({row.id for row in rows}) == 150
    for english, swahili, thai in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert (english.language, swahili.language, thai.language) == ("en", "sw", "th")
        assert row_of(english.id) == row_of(swahili.id) == row_of(thai.id)
        assert prompt_id(row_of(swahili.id), "en") == english.id and language_of(thai.id) == "th"
        assert swahili.question_en == english.question == english.question_en
        assert swahili.reference == english.reference
        assert extract_answer(swahili.reference.text, "en") == swahili.answer
        assert 0 <= thai.id < 2**31


def test_ids_do_not_depend_on_the_request():
    few = SOURCES["quickstart"]("", "train", ("sw",), 20, 0)
    many = {row.question: row.id for row in SOURCES["quickstart"]("", "train", ("en", "sw"), 400, 0)}
    assert all(many[row.question] == row.id for row in few)
    by_index = {problem.number: problem for problem in quickstart.problems("train", 0, 0)}
    for row in SOURCES["quickstart"]("small", "train", ("sw",), 50, 5):
        assert quickstart.question(by_index[row_of(row.id)], "sw") == row.question


def test_bad_requests():
    rows = SOURCES["quickstart"]
    with pytest.raises(ConfigError, match="no split 'tarin'.*Did you mean 'train'"):
        rows("", "tarin", ("en",), 1, 0)
    with pytest.raises(ConfigError, match="has no language fr"):
        rows("", "train", ("en", "fr"), 1, 0)
    with pytest.raises(ConfigError, match="Unknown quickstart space"):
        rows("large", "train", ("en",), 1, 0)
    with pytest.raises(ConfigError, match="limit is -1"):
        rows("", "train", ("en",), -1, 0)


@pytest.mark.parametrize("part", ["any", "answer"])
def test_a_corrupted_problem_reads_differently(sample, part):
    rng = random.Random(0)
    for problem in sample * 5:
        wrong = quickstart.corrupt(problem, rng, part=part)
        assert quickstart.response(wrong, "sw") != quickstart.response(problem, "sw")
        assert wrong[1:4] == problem[1:4] and wrong.result >= 1
        if part == "answer":
            assert wrong.result != problem.result


def test_sft_pools_share_no_problem_with_anything():
    pools = quickstart.sft_pools(ALL, english=500, warm=10, practice=30, seed=0)
    assert {name: len(rows) for name, rows in pools.items()} == {"english": 500, "warm": 70, "equations": 30}
    assert {row.language for row in pools["english"]} == {"en"}
    assert [sum(row.language == code for row in pools["warm"]) for code in ALL] == [0, *[10] * 7]
    asked = {row.question for row in pools["english"]}
    assert len(asked) == 500
    own = {quickstart.question(problem, "en") for problem in quickstart.problems("sft", 570, 0)}
    assert asked < own and not own & {row.question for row in SOURCES["quickstart"]("", "test", ("en",), 600, 0)}
    assert all(row.question == "" and row.response for row in pools["equations"])
    assert re.fullmatch(r"(\d+ [-+*/] \d+ = \d+\. ?){3}", pools["equations"][0].response)
    assert pools == quickstart.sft_pools(ALL, english=500, warm=10, practice=30, seed=0)


def test_every_language_is_warmed_up_in_every_family():
    """However many English rows there are: they use up the families with few problems."""
    pools = quickstart.sft_pools(ALL, english=8000, warm=40, practice=0, seed=1)
    made = {(quickstart.question(p, code), code): p.family for p in quickstart.problems("sft", 280, 1) for code in ALL}
    counts = collections.Counter((row.language, made[row.question, row.language]) for row in pools["warm"])
    assert set(counts) == {(code, family) for code in ALL[1:] for family in quickstart.SPACES[""].families}
    assert set(counts.values()) == {6, 7}


def test_sft_pools_larger_than_the_split():
    with pytest.raises(DataError, match="are needed. Lower sft.english_rows or sft.warm_rows_per_language"):
        quickstart.sft_pools(ALL, english=10**6, warm=10, practice=0, seed=0)


def test_vocabulary_text_covers_every_piece_of_the_task_but_no_test_problem():
    lines = set(quickstart.vocabulary_text(("en", "bn"), seed=0, count=300))
    assert {"ninety-nine", "নিরানব্বই", "= 99"} <= lines
    tests = {quickstart.question(p, "en") for p in quickstart.problems("test", 0, 0)}
    assert not tests & lines


def test_number_words_file_is_plain_json():
    import importlib.resources

    file = importlib.resources.files("pbrl_jax.text") / "number_words.json"
    assert json.loads(file.read_text(encoding="utf-8")) == quickstart.number_words()
