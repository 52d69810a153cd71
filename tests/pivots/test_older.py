"""The store of an earlier version: converted once, said in one line, and read as it is where nobody may write."""

import hashlib
import json
import logging
import shutil

import pytest
from source_tree import ROOT
from stored_references import keys, stored

from pbrl_jax.core.errors import DataError
from pbrl_jax.pivots.references import sha256
from pbrl_jax.pivots.store import PivotStore, StoredReference


def older_line(row: StoredReference) -> str:
    """A line as 0.1.0 and 0.2.0 wrote it."""
    fields = {"key": sha256([*row.origin])[:32], **row.origin._asdict()}
    fields |= {"reasoning": row.reasoning, "answer": row.answer, "verified": row.verified}
    return json.dumps(fields | {"checksum": sha256(fields)[:32]}, ensure_ascii=False)


def older(tmp_path, count: int = 3) -> tuple:
    """The file of an earlier version, and what it holds."""
    file, rows = tmp_path / "pivots" / "references.jsonl", [stored(n) for n in range(count)]
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(older_line(row) + "\n" for row in rows))
    return file, rows


def test_a_file_of_an_earlier_version_is_converted_once_and_stays(tmp_path, capsys):
    file, rows = older(tmp_path)
    content = file.read_bytes()
    reader = PivotStore(file.parent, writes=False)
    assert reader.references(keys(rows)) == {row.key: row for row in rows} and reader.missing(["a"]) == ["a"]
    print_of_reader = reader.fingerprint()
    assert print_of_reader == reader.fingerprint(keys(rows)) and [*file.parent.iterdir()] == [file]
    store = PivotStore(file.parent)
    assert store.missing([*keys(rows), "a"]) == ["a"] and store.references() == {row.key: row for row in rows}
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "Converted" in said and "3 references are now in" in said
    assert file.read_bytes() == content and store.fingerprint() == print_of_reader
    assert PivotStore(file.parent).missing(keys(rows)) == [] and not capsys.readouterr().out
    file.write_bytes(content + (older_line(stored(7)) + "\n").encode())  # by that version, gone back to
    assert PivotStore(file.parent).missing(keys([*rows, stored(7)])) == []
    assert "1 references are now in" in capsys.readouterr().out


def test_an_old_store_that_cannot_be_written_is_read(tmp_path, monkeypatch, capsys):
    file, rows = older(tmp_path)

    def refused(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("pbrl_jax.pivots.store.locked", refused)
    assert PivotStore(file.parent).references() == {row.key: row for row in rows} and not capsys.readouterr().out


def test_the_stores_of_released_versions_convert(tmp_path):
    for old in sorted((ROOT / "tests" / "fixtures" / "versions").glob("*/shared/references.jsonl")):
        store = PivotStore(tmp_path / old.parts[-3])
        store.directory.mkdir()
        shutil.copy(old, store.directory)
        lines = [json.loads(line) for line in old.read_text().splitlines()]
        found = store.references()
        assert [row.reasoning for row in found.values()] == [line["reasoning"] for line in lines] != []


def test_a_torn_last_line_of_an_earlier_version_is_missing_and_said(tmp_path, caplog):
    file, rows = older(tmp_path)
    whole = file.read_bytes()
    cut_inside_a_character = whole.rindex("é".encode()) + 1
    for size in (cut_inside_a_character, len(whole) - 2, whole.rindex(b"\n", 0, -1) + 2):
        file.write_bytes(whole[:size])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert PivotStore(file.parent, writes=False).missing(keys(rows)) == [rows[2].key]
        assert "references.jsonl, line 3, is cut short" in caplog.text and "written again" in caplog.text


def test_a_last_line_that_only_lacks_its_newline_is_whole(tmp_path, caplog):
    file, rows = older(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    store = PivotStore(file.parent)
    assert store.missing(keys(rows)) == [] and not caplog.records
    store.add_references([stored(9)])
    assert store.missing([*keys(rows), stored(9).key]) == []


def rewritten(row: dict, **changes) -> str:
    """A line with other values and a checksum that fits them."""
    row = {name: value for name, value in row.items() if name != "checksum"} | changes
    content = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return json.dumps(row | {"checksum": hashlib.sha256(content.encode()).hexdigest()[:32]})


@pytest.mark.parametrize(
    "damage, what",
    [
        (lambda line: line[:-9], "is not JSON"),
        (lambda line: "[1]", r"has list, expected an object of .*'reasoning'"),
        (lambda line: line.replace('"seed"', '"sed"'), "'sed'"),
        (lambda line: line.replace("The answer is 2.", "The answer is 3."), "does not match its checksum"),
        (lambda line: rewritten(json.loads(line), seed=7), "its fields have the key"),
        (lambda line: rewritten(json.loads(line), answer=2), "another type"),
        (lambda line: rewritten(json.loads(line), verified="yes"), "another type"),
    ],
)
def test_a_broken_line_is_one_error_that_says_what_to_do(tmp_path, damage, what):
    file, rows = older(tmp_path)
    store, lines = PivotStore(file.parent), file.read_text().split("\n")
    lines[1] = damage(lines[1])
    file.write_text("\n".join(lines))
    for call in (lambda: store.missing(keys(rows)), lambda: store.references(keys(rows)), store.fingerprint):
        with pytest.raises(DataError, match=rf"references.jsonl, line 2, .*{what}") as caught:
            call()
        assert "Delete that line" in str(caught.value) and "`pbrl pivots CONFIG`" in str(caught.value)


def test_bytes_that_are_no_text_are_a_broken_line(tmp_path):
    file, rows = older(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"0 + 1 =", b"0 \xff 1 ="))
    with pytest.raises(DataError, match="line 1, is not JSON"):
        PivotStore(file.parent).missing(keys(rows))


def test_after_the_advised_deletion_only_that_reference_is_missing(tmp_path):
    file, rows = older(tmp_path)
    lines = file.read_text().split("\n")
    file.write_text("\n".join([lines[0], "", *lines[2:]]))
    assert PivotStore(file.parent).missing(keys(rows)) == [rows[1].key]
