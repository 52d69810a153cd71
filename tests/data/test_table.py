"""Tables of prompts: every kind of file, named columns, and rows that cannot be used."""

import gzip
import json

import pytest
from etils import epath

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.sources import table
from pbrl_jax.data.sources.common import prompt_id
from pbrl_jax.data.tables import read_hub, read_rows

ROWS = [
    {
        "prompt": "Ngapi?",
        "label": 18,
        "lang": "sw",
        "english": "How many?",
        "why": "6 * 3 = 18.",
        "so": "The answer is 18.",
    },
    {"prompt": "How much?", "label": "2.5", "lang": "en", "english": None, "why": None, "so": None},
    {"prompt": "Wie viele?", "label": 7.0, "lang": "de", "english": "How many?", "why": "Count.", "so": "It is 7."},
]
COLUMNS = (
    "question=prompt", "answer=label", "language=lang", "question_en=english", "reference_reasoning=why",
    "reference_answer=so",
)  # fmt: skip
EXPECTED = [
    Prompt(prompt_id(0, "sw"), "sw", "Ngapi?", "How many?", "18", Reference("6 * 3 = 18.", "The answer is 18.")),
    Prompt(prompt_id(1, "en"), "en", "How much?", "How much?", "2.5", None),
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def write(kind, folder):
    path = folder / f"train.{kind}"
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        rows = [row | {"label": str(row["label"])} for row in ROWS]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "jsonl":
        jsonl(path, ROWS)
    else:
        jsonl(folder / "plain", ROWS)
        path.write_bytes(gzip.compress((folder / "plain").read_bytes()))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_kinds_of_files(kind, as_folder, tmp_path):
    path = write(kind, tmp_path)
    source = tmp_path if as_folder else path
    rows = table.rows(str(source), "train", ("sw", "en"), 0, 0, COLUMNS)
    assert [row._replace(columns=()) for row in rows] == EXPECTED
    assert [dict(row.columns)["so"] for row in rows] == ["The answer is 18.", None]


@pytest.mark.parametrize(("ending", "mark"), [("csv", ","), ("tsv", "\t")])
def test_separated_text(ending, mark, tmp_path):
    lines = [["question", "language", "answer"], ['"a, b"', "en", "1"], ["c", "sw", "2"]]
    path = tmp_path / f"x.{ending}"
    path.write_text("\ufeff" + "\n".join(mark.join(line) for line in lines) + "\n", encoding="utf-8")
    rows = table.rows(str(path), "train", ("en", "sw"), 0, 0)
    assert [(row.question, row.language, row.answer) for row in rows] == [("a, b", "en", "1"), ("c", "sw", "2")]
    assert rows[1].question_en == ""


def test_an_empty_cell_is_a_missing_value(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("question,question_en\nq,\nr,s\n")
    assert [row.question_en for row in table.rows(str(path), "train", ("sw",), 0, 0)] == ["", "s"]
    path.write_text("question,question_en\n,s\n")
    with pytest.raises(DataError, match="row 1: question is missing"):
        table.rows(str(path), "train", ("sw",), 0, 0)
    path.write_text("question\nq,s\n")
    with pytest.raises(DataError, match="row 1: has 1 fields more"):
        table.rows(str(path), "train", ("sw",), 0, 0)


def test_a_whole_reference_is_split_at_its_answer(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"question": "q", "reference": "6 * 3 = 18. The answer is 18."}])
    assert table.rows(path, "train", ("sw",), 0, 0)[0].reference == Reference("6 * 3 = 18.", "The answer is 18.")


def test_text_is_normalised_to_nfc(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"question": "Re\u0301ponse"}])
    assert table.rows(path, "train", ("fr",), 0, 0)[0].question == "R\u00e9ponse"


def test_limit_is_per_language_and_keeps_the_order(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"question": f"q{i}", "language": ("en", "sw")[i % 2]} for i in range(40)])
    rows = table.rows(path, "train", ("en", "sw"), 5, 1)
    assert [sum(row.language == code for row in rows) for code in ("en", "sw")] == [5, 5]
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert rows == table.rows(path, "train", ("en", "sw"), 5, 1) != table.rows(path, "train", ("en", "sw"), 5, 2)


def test_bad_rows_are_named_up_to_five(tmp_path):
    rows = [
        {"question": None, "language": "en"},
        {"question": "", "language": "en"},
        {"question": 12, "language": "en"},
        {"question": "q", "language": "xx"},
        {"question": "q", "language": None},
        {"question": "q", "language": "en", "reference": ""},
        {"question": "q", "language": "en"},
    ]
    with pytest.raises(DataError) as caught:
        table.rows(jsonl(tmp_path / "x.jsonl", rows), "train", ("en",), 0, 0)
    message = str(caught.value)
    for part in (
        "x.jsonl: row 1: question is missing",
        "row 2: question is empty",
        "row 3: question is int",
        "row 4: unknown language 'xx'",
        "row 5: language is missing",
        "and 1 more",
    ):
        assert part in message


def test_columns_that_do_not_exist(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"prompts": "q", "lang": "en"}])
    with pytest.raises(DataError, match="no column 'question'. It has prompts, lang"):
        table.rows(path, "train", ("en",), 0, 0)
    path = jsonl(tmp_path / "x.jsonl", [{"prompt": "q", "lang": "en"}])
    with pytest.raises(DataError, match="no column 'promt' for question.*Did you mean 'prompt'"):
        table.rows(path, "train", ("en",), 0, 0, ("question=promt",))
    with pytest.raises(ConfigError, match="unknown field 'querstion'.*Did you mean 'question'"):
        table.rows(path, "train", ("en",), 0, 0, ("querstion=prompt",))
    with pytest.raises(ConfigError, match="is no pair"):
        table.rows(path, "train", ("en",), 0, 0, ("question",))
    with pytest.raises(ConfigError, match="two columns for question"):
        table.rows(path, "train", ("en",), 0, 0, ("question=prompt", "question=lang"))
    with pytest.raises(DataError, match="no column 'language'"):
        table.rows(path, "train", ("en", "sw"), 0, 0, ("question=prompt",))
    assert len(table.rows(path, "train", ("sw",), 0, 0, ("question=prompt",))) == 1


def test_places_that_hold_no_table(tmp_path):
    with pytest.raises(DataError, match="needs data.path"):
        table.rows("", "train", ("en",), 0, 0)
    with pytest.raises(DataError, match="No file"):
        table.rows(str(tmp_path / "none.jsonl"), "train", ("en",), 0, 0)
    with pytest.raises(DataError, match="has no file train"):
        table.rows(str(tmp_path), "train", ("en",), 0, 0)
    (tmp_path / "x.txt").write_text("q")
    with pytest.raises(DataError, match="unknown kind of table"):
        table.rows(str(tmp_path / "x.txt"), "train", ("en",), 0, 0)
    (tmp_path / "y.jsonl").write_text('{"question": "q"}\n[1]\n')
    with pytest.raises(DataError, match="row 2: is list"):
        table.rows(str(tmp_path / "y.jsonl"), "train", ("en",), 0, 0)
    (tmp_path / "z.jsonl").write_text('{"question": "q"}\n\n')
    with pytest.raises(DataError, match="row 2: is no JSON"):
        table.rows(str(tmp_path / "z.jsonl"), "train", ("en",), 0, 0)
    path = jsonl(tmp_path / "w.jsonl", [{"question": "q", "language": "sw"}])
    with pytest.raises(DataError, match="none of them in en"):
        table.rows(path, "train", ("en",), 0, 0)


def test_hub_ids_go_through_datasets(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, configuration, split):
        asked.append((name, configuration, split))
        return datasets.Dataset.from_list([{"question": "q", "answer": 3}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = table.rows("owner/data:main", "test", ("sw",), 0, 0)
    assert asked == [("owner/data", "main", "test")]
    assert rows == [Prompt(prompt_id(0, "sw"), "sw", "q", "", "3", None)]

    def fails(*_, **__):
        raise ConnectionError("offline\ndetails")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(DataError, match="hub data set 'owner/data' with split 'test': offline. Give"):
        table.rows("owner/data", "test", ("sw",), 0, 0)


def test_the_configurations_of_a_hub_data_set_are_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for code in ("sw", "th"):
        (tmp_path / code).mkdir()
        jsonl(tmp_path / code / "train.jsonl", [{"question": code}])
    files = "\n".join(f"- config_name: {code}\n  data_files: {code}/train.jsonl" for code in ("sw", "th"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{files}\n---\n")
    with pytest.raises(DataError, match=r"^Config name is missing\. Please pick .*'sw', 'th'\]$"):
        read_hub(str(tmp_path), None, "train")


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_quotation_marks_between_tabs_are_text(tmp_path, line_end):
    """Unless a whole cell is in quotation marks, as spreadsheets write it; no cell swallows the next line."""
    lines = ['"Lina ana 4', '"Asha" ana 6?', 'Juma "ana" 5"', '"said ""no"" to\ta"', '""', "", '"two\nlines"']
    path = tmp_path / "x.tsv"
    path.write_bytes(line_end.join(["question\tnote", *(f"{line}\tn" for line in lines if line), ""]).encode())
    rows = table.read_rows(epath.Path(path), RowErrors("x"))
    found = ['"Lina ana 4', '"Asha" ana 6?', 'Juma "ana" 5"', 'said "no" to\ta', None, "two\nlines"]
    assert [(number, row["question"]) for number, row in rows] == list(enumerate(found, start=1))
    assert all(row["note"] == "n" for _, row in rows)


@pytest.mark.parametrize(
    "ending, text, row",
    [
        ("csv", 'question,answer\na,1\n"b,2\nc,3\n', 2),
        ("csv", 'question,answer\n"Asha" ana,1\n', 1),
        ("tsv", 'question\tanswer\na\t1\n"b\t2\nc\t"\n', 2),
    ],
)
def test_quotation_marks_that_close_nothing_are_an_error_with_the_row(tmp_path, ending, text, row):
    path = tmp_path / f"x.{ending}"
    path.write_text(text)
    with pytest.raises(DataError, match=f"x.{ending}: row {row}: has a cell"):
        table.rows(str(path), "train", ("sw",), 0, 0)


def test_a_long_cell_and_blank_lines(tmp_path):
    (tmp_path / "x.csv").write_text(f'question,answer\r\n\r\n"{"a " * 200_000}b",7')
    (row,) = table.rows(str(tmp_path / "x.csv"), "train", ("sw",), 0, 0)
    assert len(row.question) == 400_001 and row.answer == "7"


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_half_of_a_character_is_an_error_with_its_row(tmp_path, kind):
    """A whole one, written as two escapes, is text; in a further column it would stop the fingerprint later."""
    rows = [{"question": "a \U0001f600"}, {"question": "b \ud83d"}, {"question": "c", "more": {"x": ["\udc00"]}}]
    text = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
    (tmp_path / f"x.{kind}").write_text(text)
    with pytest.raises(DataError, match="row 2: question holds half.*row 3: more holds half"):
        table.rows(str(tmp_path / f"x.{kind}"), "train", ("sw",), 0, 0)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
WHOLE = gzip.compress(b'{"question": "q"}\n' * 500, mtime=0)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.parquet", POINTER, "Git LFS pointer.*git lfs pull"),
        ("a.jsonl", POINTER, "Git LFS pointer"),
        ("a.jsonl.gz", POINTER, "Git LFS pointer"),
        ("a.parquet", b"PAR1xxxxPAR1", "no parquet file.*again"),
        ("a.parquet", b"", "no parquet file"),
        ("a.jsonl.gz", WHOLE[:-9], "cut off.*again"),
        ("a.jsonl.gz", WHOLE[:12] + bytes(8) + WHOLE[20:], "damaged"),
        ("a.tsv.gz", b"question\nq\n", "damaged"),
    ],
)
def test_files_that_are_not_whole_say_so(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        table.rows(str(tmp_path / name), "train", ("sw",), 0, 0)


@pytest.mark.parametrize("kind", ["jsonl.gz", "csv.gz", "parquet"])
def test_a_file_that_unpacks_to_far_too_much_is_refused(kind, tmp_path, monkeypatch):
    """Zeros, a thousand times as large as their file; what text does is read."""
    import pyarrow.parquet

    monkeypatch.setattr("pbrl_jax.data.tables.UNPACKED_FREE", 1 << 12)
    path = tmp_path / f"bomb.{kind}"
    for cells, refused in ((["0" * 1_000_000] * 5, True), ([f"question {n * 7919 % 1000}" for n in range(100)], False)):
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.table({"question": cells}), path, compression="zstd")
        else:
            cells = cells if kind == "csv.gz" else [json.dumps({"question": cell}) for cell in cells]
            path.write_bytes(gzip.compress("\n".join(["question"] * (kind == "csv.gz") + cells).encode()))
        errors = RowErrors(str(path))
        if refused:
            with pytest.raises(DataError, match="unpacks to more than .* MiB, which no text does"):
                read_rows(epath.Path(path), errors)
        else:
            assert len(read_rows(epath.Path(path), errors)) == 100 and not errors.found


def test_other_separators_and_columns_without_a_name(tmp_path):
    """As spreadsheets of other countries, and pandas with its index, write them."""
    tables = {
        "a.csv": 'question;answer\nNgapi, basi?;"1.5"\n', "b.csv": "question\tanswer\nNgapi, basi?\t1.5\n",
        "c.csv": ',question,answer\n0,"Ngapi, basi?", "1.5"\n',
    }  # fmt: skip
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
        (row,) = table.rows(str(tmp_path / name), "train", ("sw",), 0, 0)
        assert (row.question, row.answer, row.columns) == ("Ngapi, basi?", "1.5", ())


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.jsonl").write_text('{"question": "q"}')
    assert [row.question for row in table.rows("~/x.jsonl", "train", ("sw",), 0, 0)] == ["q"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_two_columns_of_one_name(tmp_path, kind):
    import pyarrow.parquet

    path = tmp_path / f"x.{kind}"
    path.write_text("question,question\na,b\n")
    if kind == "parquet":
        columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["question", "question"]), path)
    with pytest.raises(DataError, match="two columns are named 'question'"):
        table.rows(str(path), "train", ("sw",), 0, 0)


def test_a_carriage_return_inside_a_cell(tmp_path):
    """As pandas writes it, without quotation marks; files of old Macintoshes have it at the ends of lines."""
    for text, question in (("question,answer\na\rb,7\n", "a\rb"), ('question,answer\r\n"a\rb",7\r\n', "a\rb"),
                           ("question,answer\ra b,7\r", "a b")):  # fmt: skip
        (tmp_path / "x.csv").write_bytes(text.encode())
        (row,) = table.rows(str(tmp_path / "x.csv"), "train", ("sw",), 0, 0)
        assert (row.question, row.answer) == (question, "7")
