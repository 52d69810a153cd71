"""GSM8K, MGSM, MGSM8K and PolyMath: typed-in files, bad rows, and the real files where PBRL_DATA is set."""

import gzip
import json
import os

import pytest

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.records import Reference
from pbrl_jax.data.sources import SOURCES, gsm8k, mgsm, mgsm8k, polymath
from pbrl_jax.data.sources.common import prompt_id, row_of

needs_data = pytest.mark.skipif(not os.environ.get("PBRL_DATA"), reason="PBRL_DATA is not set: no real benchmark text")

SOLVED = [
    {"question": "Two and three?", "answer": "2+3=<<2+3=5>>5 eggs.\nSo five.\n#### 5"},
    {"question": "A lot?", "answer": "1000*2=<<1000*2=2000>>2,000\n#### 2,000"},
    {"question": "Debt?", "answer": "It falls.\n#### -10"},
]
TRANSLATED = [
    {"id": 0, "answer": "5", "en": "Two and three?", "sw": "Mbili na tatu?", "de": "Zwei und drei?"},
    {"id": 1, "answer": "2,000", "en": "A lot?", "sw": "A lot?", "de": "Viel?"},
    {"id": 2, "answer": "-10", "en": "Debt?", "de": "Schulden?"},
]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A folder of the same shape as the real benchmark folder."""
    for name in ("gsm8k", "mgsm", "mgsm8k_questions"):
        (tmp_path / name).mkdir()
    (tmp_path / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SOLVED))
    (tmp_path / "mgsm" / "mgsm_en.tsv").write_text("How many?\t2,125\nHow much?\t7\nHow far?\t-3\n")
    (tmp_path / "mgsm" / "mgsm_sw.tsv").write_text("Ngapi?\t2,125\nKiasi gani?\t7\nUmbali gani?\t-3\n")
    with gzip.open(tmp_path / "mgsm8k_questions" / mgsm8k.FILE, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in TRANSLATED)
    for code, word in (("en", "Find"), ("ko", "찾기")):
        folder = tmp_path / "polymath" / "data" / code
        folder.mkdir(parents=True)
        row = {"id": f"top-{code}-0", "question": word, "answer": "\\pi"}
        (folder / "top.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setenv("PBRL_DATA", str(tmp_path))
    return tmp_path


def test_gsm8k_solutions_become_references(bench):
    rows = SOURCES["gsm8k"]("", "train", ("en",), 0, 0)
    assert rows[0].reference == Reference("2+3=5 eggs.\nSo five.", "The answer is 5.")
    assert [row.answer for row in rows] == ["5", "2000", "-10"]
    assert rows[1].reference.answer == "The answer is 2000."
    assert [row.id for row in rows] == [prompt_id(i, "en") for i in range(3)]


def test_mgsm_rows(bench):
    rows = SOURCES["mgsm"]("", "test", ("sw", "en"), 0, 0)
    assert [(row.language, row.answer) for row in rows][:3] == [("sw", "2125"), ("sw", "7"), ("sw", "-3")]
    assert rows[0].question == "Ngapi?" and rows[0].question_en == "How many?" and rows[0].reference is None


def test_a_limit_takes_the_same_problems_in_every_language(bench):
    rows = SOURCES["mgsm"]("", "test", ("sw", "en"), 2, 4)
    assert len(rows) == 4
    assert [row_of(row.id) for row in rows[:2]] == [row_of(row.id) for row in rows[2:]]
    assert len(SOURCES["mgsm"]("", "test", ("sw",), 99, 4)) == 3


def test_mgsm8k_joins_and_leaves_untranslated_rows_out(bench):
    rows = SOURCES["mgsm8k"]("", "train", ("sw", "de", "en"), 0, 0)
    assert [(row.language, row_of(row.id)) for row in rows] == [
        ("sw", 0), ("de", 0), ("de", 1), ("de", 2), ("en", 0), ("en", 1), ("en", 2),
    ]  # fmt: skip
    assert rows[0].question == "Mbili na tatu?" and rows[0].question_en == "Two and three?"
    assert rows[0].reference == Reference("2+3=5 eggs.\nSo five.", "The answer is 5.")
    assert len({row.id for row in rows}) == len(rows)


def test_the_test_split_of_mgsm8k_is_mgsm(bench):
    assert SOURCES["mgsm8k"]("", "test", ("sw",), 0, 0) == SOURCES["mgsm"]("", "test", ("sw",), 0, 0)


def test_mgsm8k_refuses_solutions_of_other_problems(bench):
    (bench / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SOLVED[::-1]))
    with pytest.raises(DataError, match="does not belong to line"):
        SOURCES["mgsm8k"]("", "train", ("de",), 0, 0)


def test_polymath_rows(bench):
    rows = SOURCES["polymath"]("", "top", ("ko",), 0, 0)
    assert [(row.question, row.question_en, row.answer) for row in rows] == [("찾기", "Find", "\\pi")]


@pytest.mark.parametrize(
    ("source", "folder", "code"),
    [
        ("gsm8k", "gsm8k", "en"),
        ("mgsm", "mgsm", "sw"),
        ("mgsm8k", "mgsm8k_questions", "sw"),
        ("polymath", "polymath", "sw"),
    ],
)
def test_without_pbrl_data_the_message_says_what_to_set(source, folder, code, monkeypatch, tmp_path):
    split = "train" if source in ("gsm8k", "mgsm8k") else "test"
    monkeypatch.delenv("PBRL_DATA", raising=False)
    with pytest.raises(DataError, match=f"PBRL_DATA is not set. Set PBRL_DATA to the folder that holds {folder}/"):
        SOURCES[source]("", split, (code,), 0, 0)
    monkeypatch.setenv("PBRL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"holds no folder '{folder}'"):
        SOURCES[source]("", split, (code,), 0, 0)
    with pytest.raises(DataError, match="No data at"):
        SOURCES[source](str(tmp_path / "none"), split, (code,), 0, 0)


def test_languages_and_splits_that_a_source_does_not_have(bench):
    with pytest.raises(ConfigError, match="'gsm8k' has no language sw"):
        SOURCES["gsm8k"]("", "train", ("en", "sw"), 0, 0)
    with pytest.raises(ConfigError, match="'mgsm' has no split 'train'"):
        SOURCES["mgsm"]("", "train", ("en",), 0, 0)
    with pytest.raises(DataError, match="No file .*mgsm_th.tsv"):
        SOURCES["mgsm"]("", "test", ("th",), 0, 0)


def test_bad_gsm8k_rows_are_named(bench):
    bad = ["not json", json.dumps({"question": None, "answer": "x"}), json.dumps({"question": "?", "answer": "5"})]
    bad += [json.dumps({"question": "  ", "answer": "#### 1"}), json.dumps({"question": 3, "answer": "#### 1"})] * 3
    (bench / "gsm8k" / "train.jsonl").write_text("\n".join(bad) + "\n")
    with pytest.raises(DataError) as caught:
        SOURCES["gsm8k"]("", "train", ("en",), 0, 0)
    message = str(caught.value)
    for part in (
        "train.jsonl",
        "row 1: is no JSON",
        "row 2: question is missing",
        "row 3: answer has no line '#### N'",
        "row 4: question is empty",
        "row 5: question is int",
        "and 4 more",
    ):
        assert part in message
    assert "row 6" not in message


def test_bad_mgsm_rows_are_named(bench):
    (bench / "mgsm" / "mgsm_sw.tsv").write_text("Ngapi?\t2\nbila jibu\n\t5\n")
    with pytest.raises(DataError, match="row 2: has 1 fields.*row 3: question is empty"):
        SOURCES["mgsm"]("", "test", ("sw",), 0, 0)
    (bench / "mgsm" / "mgsm_sw.tsv").write_text("Ngapi?\t2\n")
    with pytest.raises(DataError, match="expected the same problems"):
        SOURCES["mgsm"]("", "test", ("sw",), 0, 0)
    (bench / "mgsm" / "mgsm_sw.tsv").write_bytes(b"\xff\xfe\t2\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        SOURCES["mgsm"]("", "test", ("sw",), 0, 0)


@needs_data
def test_real_gsm8k():
    rows = gsm8k.rows("", "train", ("en",), 0, 0)
    assert len(rows) == 7473 and rows[0].answer == "72"
    assert not any("<<" in row.reference.text or "####" in row.reference.text for row in rows)
    assert len(gsm8k.rows("", "test", ("en",), 0, 0)) == 1319


@needs_data
def test_real_mgsm():
    rows = mgsm.rows("", "test", mgsm.LANGUAGES, 0, 0)
    assert len(rows) == 11 * 250 == len({row.id for row in rows})
    golds = {code: [row.answer for row in rows if row.language == code] for code in mgsm.LANGUAGES}
    assert all(golds[code] == golds["en"] for code in mgsm.LANGUAGES)
    assert {"2125", "114200", "276000", "5600"} <= set(golds["en"])


@needs_data
def test_real_mgsm8k():
    rows = mgsm8k.rows("", "train", mgsm8k.LANGUAGES, 0, 0)
    counts = {code: sum(row.language == code for row in rows) for code in mgsm8k.LANGUAGES}
    # Translations that exist less those that repeat the English text.
    assert counts["en"] == 7473 and counts["fr"] == 7464 - 377 and counts["es"] == 7468 - 64
    assert all(row.reference is not None and row.question != row.question_en for row in rows if row.language != "en")
    limited = mgsm8k.rows("", "train", ("de", "sw"), 100, 0)
    assert len(limited) == 200 and len({row_of(row.id) for row in limited}) < 110


@needs_data
def test_real_polymath():
    rows = polymath.rows("", "low", polymath.LANGUAGES, 0, 0)
    assert len(rows) == 18 * 125 == len({row.id for row in rows})
    assert not {row.id for row in rows} & {row.id for row in polymath.rows("", "top", polymath.LANGUAGES, 0, 0)}
