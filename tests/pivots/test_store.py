"""References survive killed writers, damage is named, and no key is shared by what differs."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from pbrl_jax import PivotConfig
from pbrl_jax.core import paths
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.records import Reference
from pbrl_jax.pivots.store import Origin, PivotStore, StoredReference, open_store

ORIGIN = Origin("How many are 3 bags of 6?", "expert", "r1", "{question}", 0.0, 64, 0)


def stored(number: int, **changes) -> StoredReference:
    origin = ORIGIN._replace(question=f"What is {number} + 1? — «é»\u2028", **changes)
    return StoredReference(origin, f"{number} + 1 = {number + 1}.", f"The answer is {number + 1}.", True)


def filled(tmp_path, count: int = 3) -> tuple[PivotStore, list[StoredReference]]:
    store, rows = PivotStore(tmp_path / "pivots"), [stored(n) for n in range(count)]
    store.add_references(rows)
    return store, rows


def keys(rows) -> list[str]:
    return [row.key for row in rows]


def test_an_empty_store_creates_nothing(tmp_path):
    store = PivotStore(tmp_path / "pivots")
    assert store.references(["k"]) == {} and store.missing(["k", "k"]) == ["k"]
    store.add_references([])
    assert not (tmp_path / "pivots").exists()


def test_what_was_added_comes_back_in_the_order_asked(tmp_path):
    store, rows = filled(tmp_path)
    found = PivotStore(tmp_path / "pivots").references(keys(rows)[::-1] + ["other"])
    assert list(found.items()) == [(row.key, row) for row in rows[::-1]]
    assert found[rows[0].key].reference == Reference("0 + 1 = 1.", "The answer is 1.")
    assert store.missing(["b", rows[1].key, "a", "b"]) == ["b", "a"]


def test_a_line_is_plain_json_with_key_and_checksum(tmp_path):
    store, rows = filled(tmp_path, 1)
    row = json.loads((tmp_path / "pivots" / "references.jsonl").read_text())
    assert row["question"] == rows[0].origin.question and row["verified"] is True
    fields = [*rows[0].origin]
    content = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    assert row["key"] == hashlib.sha256(content).hexdigest()[:32]
    checksum = row.pop("checksum")
    content = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    assert checksum == hashlib.sha256(content).hexdigest()[:32]


@pytest.mark.parametrize(
    "field, value",
    [
        ("question", "other"),
        ("expert", "other"),
        ("revision", "r2"),
        ("template", "Q: {question}"),
        ("temperature", 0.5),
        ("max_tokens", 65),
        ("seed", 1),
    ],
)
def test_every_field_of_the_origin_changes_the_key(field, value):
    assert ORIGIN._replace(**{field: value}).key != ORIGIN.key


def test_an_integer_temperature_is_the_same_temperature(tmp_path):
    store = PivotStore(tmp_path)
    row = stored(1, temperature=1)
    store.add_references([row])
    assert store.references([stored(1, temperature=1.0).key]) == {row.key: row}


def test_the_first_reference_of_a_key_stays(tmp_path):
    store, rows = filled(tmp_path, 1)
    store.add_references([rows[0]._replace(reasoning="later")])
    assert store.references(keys(rows)) == {rows[0].key: rows[0]}


def test_fingerprint_knows_content_and_no_order(tmp_path):
    rows = [stored(n) for n in range(4)]
    one, other = PivotStore(tmp_path / "a"), PivotStore(tmp_path / "b")
    one.add_references(rows)
    other.add_references(rows[2:])
    assert one.fingerprint() != other.fingerprint() == one.fingerprint(keys(rows[2:]))
    other.add_references(rows[1::-1])
    assert one.fingerprint() == other.fingerprint() == one.fingerprint(keys(rows[::-1]))
    third = PivotStore(tmp_path / "c")
    third.add_references([*rows[:3], rows[3]._replace(answer="The answer is 5.")])
    assert third.fingerprint() != one.fingerprint()


def test_the_fingerprint_ignores_repeated_lines_and_verified(tmp_path):
    store, rows = filled(tmp_path)
    before = store.fingerprint()
    store.add_references(rows)
    assert store.fingerprint() == before
    other = PivotStore(tmp_path / "other")
    other.add_references([row._replace(verified=None) for row in rows])
    assert other.fingerprint() == before


def test_a_torn_last_line_is_missing_said_and_written_again(tmp_path, caplog):
    store, rows = filled(tmp_path)
    whole = store.path.read_bytes()
    cut_inside_a_character = whole.rindex("é".encode()) + 1
    for size in (cut_inside_a_character, len(whole) - 2, whole.rindex(b"\n", 0, -1) + 2):
        store.path.write_bytes(whole[:size])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert store.missing(keys(rows)) == [rows[2].key]
        assert "references.jsonl, line 3, is cut short" in caplog.text and "written again" in caplog.text
        store.add_references([rows[2]])
        assert store.path.read_bytes() == whole


def test_a_last_line_that_only_lacks_its_newline_is_whole(tmp_path, caplog):
    store, rows = filled(tmp_path)
    store.path.write_bytes(store.path.read_bytes()[:-1])
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
    store, rows = filled(tmp_path)
    lines = store.path.read_text().split("\n")
    lines[1] = damage(lines[1])
    store.path.write_text("\n".join(lines))
    for call in (lambda: store.missing(keys(rows)), lambda: store.references(keys(rows)), store.fingerprint):
        with pytest.raises(DataError, match=rf"references.jsonl, line 2, .*{what}") as caught:
            call()
        assert "Delete that line" in str(caught.value) and "`pbrl pivots CONFIG`" in str(caught.value)


def test_bytes_that_are_no_text_are_a_broken_line(tmp_path):
    store, rows = filled(tmp_path)
    store.path.write_bytes(store.path.read_bytes().replace(b"0 + 1 =", b"0 \xff 1 ="))
    with pytest.raises(DataError, match="line 1, is not JSON"):
        store.missing(keys(rows))


def test_after_the_advised_deletion_only_that_reference_is_missing(tmp_path):
    store, rows = filled(tmp_path)
    lines = store.path.read_text().split("\n")
    store.path.write_text("\n".join([lines[0], "", *lines[2:]]))
    assert store.missing(keys(rows)) == [rows[1].key]


def test_a_process_that_does_not_write_reads_the_same(tmp_path):
    store, rows = filled(tmp_path, 2)
    reader = PivotStore(tmp_path / "pivots", writes=False)
    before = store.path.read_bytes()
    reader.add_references([stored(7)])
    assert store.path.read_bytes() == before
    assert reader.references(keys(rows)) == store.references(keys(rows))


def test_remote_folders_are_written_without_append_and_rename(tmp_path, monkeypatch):
    """Behind gs:// there is neither; the same code path on a local folder."""
    monkeypatch.setattr(paths, "is_remote", lambda path: True)
    monkeypatch.setattr("pbrl_jax.pivots.store.is_remote", lambda path: True)
    monkeypatch.setattr(os, "replace", None)
    store, rows = filled(tmp_path, 2)
    store.add_references([stored(2)])
    assert store.missing([*keys(rows), stored(2).key, "k"]) == ["k"]


def test_a_bucket_keeps_its_name():
    assert str(PivotStore("gs://bucket/run/pivots").path) == "gs://bucket/run/pivots/references.jsonl"


@pytest.mark.parametrize(
    "source, field, path, folder",
    [
        ("policy", "store", "", "w/pivots"),
        ("policy", "store", "shared", "shared"),
        ("file", "file", "r.jsonl", "w/pivots"),
        ("file", "store", "shared", "shared"),
    ],
)
def test_where_the_store_of_a_run_is(tmp_path, source, field, path, folder):
    settings = PivotConfig(source=source, **{field: str(tmp_path / path)} if path else {})
    store = open_store(settings, tmp_path / "w", writes=False)
    assert str(store.directory) == str(tmp_path / folder) and not store.writes


@pytest.mark.serial
def test_a_killed_writer_loses_at_most_its_last_line(tmp_path):
    """SIGKILL while references are appended, three times over; each next writer goes on where the file ends."""
    writer = textwrap.dedent("""
        import sys
        from pbrl_jax.pivots.store import Origin, PivotStore, StoredReference
        store = PivotStore(sys.argv[1])
        print("ready", flush=True)
        for n in range(int(sys.argv[2]), 10**6):
            origin = Origin(f"q{n}", "e", "r", "{question}", 0.0, 64, 0)
            store.add_references([StoredReference(origin, "x" * 20000, f"The answer is {n}.")])
            if n % 10 == 0:
                print(n, flush=True)
    """)
    store = PivotStore(tmp_path)
    origins = [ORIGIN._replace(question=f"q{n}", expert="e", revision="r") for n in range(10**4)]
    written = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", writer, str(tmp_path), str(written)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4):
            said = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = store.references([origin.key for origin in origins])
        assert len(found) >= int(said) + 1
        assert [row.origin.question for row in found.values()] == [f"q{n}" for n in range(len(found))]
        written = len(found)
