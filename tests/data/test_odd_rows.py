"""Odd rows of data sets: counted and named at load, refused above a share; files that are cut off are errors."""

import decimal
import json

import datasets
import pytest

from pbrl_jax.config.tree import DataConfig
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import read_json_lines
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.load import check_golds, check_rows, load_prompts
from pbrl_jax.run.scored import read_groups
from pbrl_jax.run.sft_sources import read_examples
from pbrl_jax.text.answers import read_gold
from pbrl_jax.translate.questions import read_questions


def prompts(count: int, **changes) -> list[Prompt]:
    """Ordinary prompts, the last of them with changes."""
    rows = [Prompt(64 * n, "en", f"{n} + 1?", f"{n} + 1?", str(n + 1)) for n in range(count)]
    return [*rows[:-1], rows[-1]._replace(**changes)]


@pytest.mark.parametrize(
    "changes, kind",
    [
        ({"question": "\u200b\u2060\ufeff"}, "a question without a visible character"),
        ({"question": "2 + 2?\x1b[2J"}, "control characters"),
        ({"answer": "4\x00"}, "control characters"),
        ({"question": "3 + 1?", "answer": "4.0"}, "a question that stood before, with the same answer"),
        ({"question": "3 + 1?", "answer": "5"}, "a question that stood before, with another answer"),
    ],
)
def test_odd_rows_are_named_and_refused_above_a_share(changes, kind):
    assert check_rows(prompts(20)) == []
    assert check_rows(prompts(20, **changes)) == [f"1 of 20 rows have {kind}, the first at row 20 (en)."]
    repeats = [prompts(20, **changes)[-1]._replace(id=64 * n) for n in range(20, 60)]
    with pytest.raises(DataError, match=f"rows have {kind}.* At most .0% may. Correct or remove"):
        check_rows([*prompts(20), *repeats])


def test_questions_in_two_languages_are_two():
    assert check_rows([Prompt(0, "sw", "1 + 1?", "", "2"), Prompt(1, "bn", "1 + 1?", "", "3")]) == []


def test_headers_saved_data_sets_and_decimals(tmp_path):
    """Spaces around a header's names, a name twice; a folder of `save_to_disk`, whose answers are decimals."""

    def load(path):
        config = DataConfig(source="table", path=str(path), languages=("en",))
        return [(prompt.question, prompt.answer) for prompt in load_prompts(config, 0)]

    file = tmp_path / "rows.csv"
    file.write_text("question, answer ,,\n1?,4\n")
    assert load(file) == [("1?", "4")]
    file.write_text("question,answer,answer\n1?,4,5\n")
    with pytest.raises(DataError, match="two columns are named 'answer'"):
        load(file)
    rows = datasets.Dataset.from_list([{"question": "1?", "answer": decimal.Decimal("4.50")}])
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(train=rows).save_to_disk(str(tmp_path / "splits"))
    assert load(tmp_path / "saved") == load(tmp_path / "splits") == [("1?", "4.5")]
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"ARROW")
    with pytest.raises(DataError, match="saved holds no data set that can be read"):
        load(tmp_path / "saved")


def test_a_load_says_it(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    golds = [str(n) for n in range(30)] + [float("nan"), True, float("inf")]
    rows = [{"question": f"{n}?\a" if n == 4 else f"{n}?", "answer": gold} for n, gold in enumerate(golds)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_prompts(DataConfig(source="table", path=str(file), languages=("en",)), 0)
    assert [row.answer for row in found][-3:] == [None, None, "inf"]
    said = capsys.readouterr().err
    assert "2 rows noted, the first row 31: answer is nan, no answer: taken as missing." in said
    assert "1 of 33 rows have control characters, the first at row 5 (en)." in said
    assert "30 of 31 can be read; the first that cannot, row 33 (en): 'inf'" in check_golds(found)
    assert read_gold("-inf", "en") is None and read_gold("NaN", "en") is None


EXAMPLE = {"language": "sw", "question": "1 + 1?", "response": "Jibu ni 2."}
GROUP = {"prompt_id": 1, "language": "sw", "question": "?", "completions": ["a"], "tokens": [[4]], "rewards": [0.5]}


@pytest.mark.parametrize(
    "read, row",
    [(read_examples, EXAMPLE), (read_groups, GROUP), (lambda path: read_questions(path, "question"), EXAMPLE)],
)
def test_a_file_that_is_cut_off_is_an_error(read, row, tmp_path):
    """A log's incomplete last line is left out; a user's file is whole or an error."""
    file, line = tmp_path / "rows.jsonl", json.dumps(row)
    file.write_text(f"{line}\n{line[:-9]}")
    assert read_json_lines(file) == [row]
    with pytest.raises(DataError, match="line 2, is not JSON"):
        read(str(file))
    file.write_text(f"{line}\n{line}")
    assert len(read(str(file))) == 2
    for damage in (b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"[1]", b"null", b'{"id": 3}', b'{"language": 3}'):
        file.write_bytes(line.encode() + b"\n" + damage + b"\n")
        with pytest.raises(DataError, match=r"(line|row) 2\b"):
            read(str(file))


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_id": "1"}, {"language": None}, {"completions": "a"}, {"completions": [3]}, {"tokens": [4]},
        {"tokens": [[-4]]}, {"tokens": [["4"]]}, {"tokens": None}, {"rewards": ["0.5"]}, {"rewards": [float("nan")]},
        {"rewards": [True]}, {"rewards": 3}, {"rewards": [0.5, 0.5]},
    ],
)  # fmt: skip
def test_scored_responses_of_other_types(changes, tmp_path):
    file = tmp_path / "scored.jsonl"
    file.write_text(json.dumps(GROUP | changes) + "\n")
    with pytest.raises(DataError, match="line 1: "):
        read_groups(str(file))


def test_an_example_in_an_unknown_language(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(EXAMPLE | {"language": "xx"}))
    with pytest.raises(DataError, match="line 1: unknown language 'xx'. Known"):
        read_examples(str(file))
