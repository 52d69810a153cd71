"""Gold answers at load: read as a response's are, counted, and refused where most cannot be read."""

import json

import pytest

from pbrl_jax.config.tree import DataConfig
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.load import check_golds, load_prompts
from pbrl_jax.data.sources import table
from pbrl_jax.text.answers import extract_answer, same_answer


def rows(tmp_path, golds, languages=("sw",), **more):
    file = tmp_path / "rows.jsonl"
    lines = [{"question": f"Ngapi {i}?", "answer": gold, "language": "sw", **more} for i, gold in enumerate(golds)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return table.rows(str(file), "train", languages, 0, 0)


def test_golds_are_read_as_responses_are(tmp_path):
    found = rows(tmp_path, ["2 + 5 = 7\n#### 7", "7 vitabu", "(C)", "c", 7.0, "7"])
    assert [row.answer for row in found] == ["7", "7", "C", "c", "7", "7"]
    replies = ["Jibu ni 7.", "Jibu ni 7.", "Jibu ni C.", "Jibu ni C.", "Jibu ni 7.", "\\boxed{7}"]
    assert all(same_answer(extract_answer(t, "sw"), row.answer) for t, row in zip(replies, found, strict=True))
    assert [row.answer for row in rows(tmp_path, [float("nan"), None])] == [None, None]


def test_golds_in_words_digits_of_other_scripts_and_with_currencies(tmp_path):
    found = rows(tmp_path, ["kumi na mbili", "twelve", "KSh 1,500", "Rp 5,000", "١٢٫٥٪", "-১২", 1e-7, 1250.0])
    assert [row.answer for row in found] == ["12", "12", "1500", "5000", "12.5", "-12", "0.0000001", "1250"]


def test_a_run_says_how_many_it_could_read_and_refuses_prose():
    prose = "First he counts them all, then he gives half of them away to friends."
    prompts = [Prompt(64 * i, "en", "?", "?", str(i)) for i in range(19)]
    assert check_golds(prompts) == "Gold answers: 19 of 19 can be read." and check_golds([]) == ""
    said = check_golds([*prompts, Prompt(64 * 19, "en", "?", "?", prose)])
    assert said.startswith("Gold answers: 19 of 20 can be read; the first that cannot, row 20 (en): 'First he")
    with pytest.raises(DataError, match=r"2 of 4 can be read.*row 3.*option letter"):
        check_golds([*prompts[:2], Prompt(128, "en", "?", "?", prose), Prompt(192, "en", "?", "?", prose)])


def test_load_prompts_refuses_where_answers_are_needed(tmp_path):
    file = tmp_path / "x.jsonl"
    prose = "He simply counts all of the apples and then he is done with it."
    file.write_text("".join(json.dumps({"question": "?", "answer": prose}) + "\n" for _ in range(3)))
    data = DataConfig(source="table", path=str(file), languages=("en",))
    assert len(load_prompts(data, 0)) == 3
    with pytest.raises(DataError, match="0 of 3 can be read"):
        load_prompts(data, 0, require=("answer",))


def test_rows_in_an_unknown_language_are_left_out_and_counted(tmp_path, capsys):
    found = rows(tmp_path, ["1", "2"]) + rows(tmp_path, ["1"], language="swh_Latn")
    assert [row.language for row in found] == ["sw"] * 3
    file = tmp_path / "mixed.jsonl"
    codes = ["sw", "qq", "tlh", "sw"]
    file.write_text("".join(json.dumps({"question": "?", "answer": "1", "language": code}) + "\n" for code in codes))
    assert len(table.rows(str(file), "train", ("sw",), 0, 0)) == 2
    assert "2 rows left out, the first row 2: unknown language 'qq'" in capsys.readouterr().err
