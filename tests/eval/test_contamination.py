"""Shared runs of words and characters, by hand, and on real text where PBRL_DATA names some."""

import json
import os
from pathlib import Path

import pytest

from pbrl_jax import Config, with_values
from pbrl_jax.config.serialize import to_json
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.eval.contamination import find_overlap, ngrams, units
from pbrl_jax.run.contamination import prompt_texts, training_texts

DATA = os.environ.get("PBRL_DATA")
NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def test_units_are_words_or_characters():
    assert units("Wie viel kostet's? 3,5 Euro!") == ["wie", "viel", "kostet", "s", "3", "5", "euro"]
    assert units("他有12个苹果。") == ["他", "有", "12", "个", "苹", "果"]
    assert units("りんごを ABC 3個") == ["り", "ん", "ご", "を", "abc", "3", "個"]
    assert units("มี") == ["ม", "ี"], "Thai vowel signs are characters too"
    assert units("রজারের ৫টি বল।") == ["রজারের", "৫টি", "বল"], "Bengali marks stay in their words"
    assert units("ＡＢＣ") == ["abc"] and units(" ?! ") == []


def test_runs_of_a_text():
    assert ngrams("a b c d", 3) == ["a b c", "b c d"]
    assert ngrams("a b", 3) == ["a b"] and ngrams("...", 3) == []


def test_thirteen_words_count_and_twelve_do_not():
    words = NUMBERS.split()
    text = f"zero {NUMBERS} and so on"
    train = [f"Before: {' '.join(words[:12])}.", f"THIRTEEN? {', '.join(words[1:14])}!"]
    assert find_overlap(train[:1], [text]).shared == [None]
    found = find_overlap(train, ["nothing of it", text, text + " twice"])
    assert found.shared == [None, " ".join(words[1:14]), " ".join(words[1:14])]
    assert found.share == pytest.approx(2 / 3)
    assert find_overlap(train[:1], [text], n=12).share == 1


def test_the_text_of_a_run_holds_its_examples_preferences_turns_and_all_references(tmp_path):
    talk = [{"role": "user", "content": "first turn"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "last turn"}]  # fmt: skip
    files = {"rows": {"question": talk, "language": "sw"}, "sft": {"prompt": talk, "completion": "learnt"},
             "dpo": {"prompt": "asked", "chosen": "better", "rejected": "worse"}}  # fmt: skip
    for name, row in files.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    config = with_values(
        Config(), data={"source": "table", "path": str(tmp_path / "rows.jsonl"), "languages": ("sw",)},
        sft={"source": "file", "path": str(tmp_path / "sft.jsonl")}, dpo={"path": str(tmp_path / "dpo.jsonl")},
    )  # fmt: skip
    (tmp_path / "config.json").write_text(to_json(config))
    texts = set(training_texts(str(tmp_path / "config.json")))
    assert texts == {"first turn", "b", "last turn", "learnt", "asked", "better", "worse"}
    more = Prompt(0, "sw", "q", "", reference=Reference("a", "b"), more_references=(Reference("c", "d"),))
    assert list(prompt_texts([more])) == ["q", *(reference.text for reference in more.references)]


def test_a_short_problem_overlaps_only_with_its_equal():
    assert find_overlap(["What is two and two in all?"], ["What is two and two?"]).shared == [None]
    assert find_overlap(["what is TWO and two"], ["What is two and two?"]).shared == ["what is two and two"]


def test_chinese_is_compared_by_characters():
    question = "小明有十二个苹果，吃了五个苹果，还剩几个？"
    assert find_overlap(["昨天小明有十二个苹果，吃了五个苹果，就走了。"], [question]).share == 1
    assert find_overlap(["小明有十二个苹果，小红吃了五个苹果，还剩几个？"], [question]).share == 0, "no run of 13"


@pytest.mark.parametrize(
    ("common", "problem"),
    [
        ("ทั้งหมดกี่ชิ้น", "มะลิมีแอปเปิลสิบสองผลและซื้ออีกห้าผลจากตลาด เธอมีผลไม้"),
        ("តើនៅសល់ប៉ុន្មាន", "សុខាមានផ្លែប៉ោមដប់ពីរផ្លែ ហើយបានទិញថែមទៀតប្រាំផ្លែពីផ្សារ"),
        ("စုစုပေါင်းဘယ်လောက်", "မောင်မောင်တွင်ပန်းသီးဆယ့်နှစ်လုံးရှိပြီး ဈေးမှငါးလုံးထပ်ဝယ်သည်"),
    ],
)
def test_alphabets_without_spaces(common, problem):
    """A phrase that many problems end with is three or four words; a copy with something before it is a copy."""
    assert find_overlap([f"ก {common}", f"ខ {common}"], [f"{problem} {common}"]).share == 0
    assert find_overlap([f"X: {problem} {common} 1 2 3"], [f"{problem} {common}"]).share == 1
    assert ngrams("กขคงจฉ", 1) == ["ก ข ค", "ข ค ง", "ค ง จ", "ง จ ฉ"]
    assert ngrams("กข12คงจ", 2) == ["ก ข 12 ค", "ข 12 ค ง", "12 ค ง จ"]


@pytest.mark.skipif(not DATA, reason="PBRL_DATA is not set: it names the folder of real benchmark text")
def test_halves_of_mgsm_do_not_overlap_in_thai():
    lines = (Path(DATA) / "mgsm" / "mgsm_th.tsv").read_text("utf-8").splitlines()
    questions = [line.split("\t")[0] for line in lines]
    assert find_overlap(questions[:125], questions[125:]).share <= 0.01


def test_the_training_text_is_read_once():
    assert find_overlap(iter([NUMBERS, NUMBERS]), [NUMBERS]).share == 1
    assert find_overlap([], [NUMBERS]).share == find_overlap([NUMBERS], []).share == 0
    with pytest.raises(ConfigError, match="Runs of 0 words"):
        find_overlap([], [], 0)


@pytest.mark.skipif(not DATA, reason="PBRL_DATA is not set: it names the folder of real benchmark text")
def test_mgsm_is_in_the_test_split_of_gsm8k_and_not_in_its_training_split():
    lines = (Path(DATA) / "mgsm" / "mgsm_en.tsv").read_text("utf-8").splitlines()
    questions = [line.split("\t")[0] for line in lines]
    splits = {
        name: [json.loads(line)["question"] for line in (Path(DATA) / "gsm8k" / f"{name}.jsonl").open(encoding="utf-8")]
        for name in ("train", "test")
    }
    assert find_overlap(splits["test"], questions).share == 1
    assert find_overlap(splits["train"], questions).share < 0.05
