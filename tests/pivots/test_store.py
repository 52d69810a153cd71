"""References survive killed writers, damage is named, and no key is shared by what differs."""

import hashlib
import json
import signal
import subprocess
import sys
import textwrap
import unicodedata

import pytest
from stored_references import ORIGIN, flip_text, keys, stored
from tiny_store import Store

from pbrl_jax import PivotConfig
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.records import Reference
from pbrl_jax.pivots import shards
from pbrl_jax.pivots.store import PivotStore, StoredReference, open_store


def filled(tmp_path, count: int = 3) -> tuple[PivotStore, list[StoredReference]]:
    store, rows = PivotStore(tmp_path / "pivots"), [stored(n) for n in range(count)]
    store.add_references(rows)
    return store, rows


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


def test_the_key_of_a_reference_is_a_digest_of_its_origin(tmp_path):
    _, rows = filled(tmp_path, 1)
    fields = [*rows[0].origin._replace(question="What is 0 + 1? — «é»")]
    content = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    assert rows[0].key == hashlib.sha256(content).hexdigest()[:32]


def test_spellings_of_one_question_share_a_reference(tmp_path):
    store, rows = filled(tmp_path, 1)
    spelled = unicodedata.normalize("NFD", "  What is 0 +\t1? — «é»\n")
    assert store.missing([rows[0].origin._replace(question=spelled).key]) == []
    assert store.missing([rows[0].origin._replace(question="what is 0 + 1? — «é»").key]) != []


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


def test_half_a_character_is_refused_and_nothing_is_lost(tmp_path):
    store, rows = filled(tmp_path)
    for bad in (rows[0]._replace(origin=ORIGIN._replace(question="\ud800")), stored(7)._replace(reasoning="\ud800")):
        with pytest.raises(DataError, match="One of 2 references is not text and numbers as expected: .*surrogates"):
            store.add_references([stored(9), bad])
    assert store.references() == {row.key: row for row in rows}


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


def shard_files(store) -> list:
    return sorted(store.path.glob("shard_*.parquet"))


def test_a_torn_shard_is_named_missing_and_written_again(tmp_path, caplog):
    store, rows = filled(tmp_path, 2)
    store.add_references([stored(n) for n in range(2, 5)])
    rows += [stored(n) for n in range(2, 5)]
    whole, before = shard_files(store)[1].read_bytes(), store.fingerprint()
    for damage in (whole[:-40], whole[: len(whole) // 2], b"", None):
        last = shard_files(store)[1]
        last.unlink() if damage is None else last.write_bytes(damage)
        caplog.clear()
        assert PivotStore(store.directory, writes=False).missing(keys(rows)) == keys(rows[2:])
        again = PivotStore(store.directory)
        assert again.missing(keys(rows)) == keys(rows[2:])
        assert f"{last} is damaged or gone" in caplog.text and "its 3 references count as missing" in caplog.text
        assert again.fingerprint() != before and again.references(keys(rows)).keys() == set(keys(rows[:2]))
        again.add_references(rows)
        assert again.fingerprint() == before and store.references(keys(rows)) == {row.key: row for row in rows}


def test_a_flipped_bit_is_found_when_the_text_is_read(tmp_path, caplog):
    store, rows = filled(tmp_path, 1)
    store.add_references([stored(1)._replace(reasoning="A long reasoning. " * 30)])
    (_, file), known = shard_files(store), PivotStore(store.directory)
    flip_text(file)
    assert known.missing([stored(1).key]) == []
    assert list(known.references([rows[0].key, stored(1).key])) == [rows[0].key]
    assert "1 references count as missing" in caplog.text and file.with_name(f"{file.name}.damaged").exists()
    assert PivotStore(store.directory).missing([stored(1).key]) == [stored(1).key], "the next command writes it again"


def test_without_its_index_the_shards_tell_what_is_there(tmp_path, caplog):
    store, rows = filled(tmp_path, 1)
    for row in (extra := [stored(n) for n in range(1, 20)]):
        store.add_references([row])
    before, rows = store.fingerprint(), rows + extra
    index = store.path / "index.json"
    index.write_text(index.read_text()[:-9])
    (store.path / "shard_99999999.parquet").write_bytes(b"PAR1 torn")
    again = PivotStore(store.directory)
    assert again.references(keys(rows)) == {row.key: row for row in rows} and again.fingerprint() == before
    assert "index.json is damaged" in caplog.text and "shard_99999999.parquet is not whole" in caplog.text
    index.unlink()
    again.add_references([stored(20)])
    assert PivotStore(store.directory).missing(keys([*rows, stored(20)])) == [] and index.exists()


def test_shards_are_merged_and_readers_go_on(tmp_path, monkeypatch):
    """Few files, each row written few times, the order of rows and the fingerprint kept."""
    monkeypatch.setattr(shards, "MERGED", 3)
    monkeypatch.setattr(shards, "GROUP_ROWS", 4)
    store, rows, written = PivotStore(tmp_path), [stored(n) for n in range(60)], []
    reader = PivotStore(tmp_path, writes=False)
    append = shards.write_synced
    monkeypatch.setattr(shards, "write_synced", lambda path, content: (written.append(path), append(path, content)))
    for n, row in enumerate(rows):
        store.add_references([row, rows[0]])
        assert reader.missing(keys(rows[: n + 2])) == keys(rows[n + 1 : n + 2])
        assert len(json.loads((tmp_path / "references" / "index.json").read_text())["shards"]) <= 9
    assert len(shard_files(store)) <= 12 and 60 < len(written) < 90, "a row is written once a level"
    assert reader.references() == store.references() == {row.key: row for row in rows}
    one = PivotStore(tmp_path / "one")
    one.add_references(rows[::-1])
    assert one.fingerprint() == store.fingerprint() == reader.fingerprint(keys(rows))


def test_a_reader_that_is_overtaken_by_a_merge_reads_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shards, "MERGED", 2)
    store, rows = filled(tmp_path, 1)
    reader = PivotStore(store.directory, writes=False)
    assert reader.missing(keys(rows)) == []
    refresh = reader._shards.refresh
    monkeypatch.setattr(reader._shards, "refresh", lambda: None)  # it has looked already
    store.add_references([stored(1)])
    store.add_references([stored(2)])  # now the first file is gone
    lookup = reader._shards.drop_damaged
    monkeypatch.setattr(
        reader._shards,
        "drop_damaged",
        lambda writes: (monkeypatch.setattr(reader._shards, "refresh", refresh), lookup(writes)),
    )
    assert reader.references(keys(rows)) == {rows[0].key: rows[0]} and not caplog.records


def test_appending_and_looking_up_do_not_read_what_is_there(bucket):
    """Behind gs://, where every batch is an object of its own: none is read or written again."""
    store, rows = PivotStore("gs://bucket/pivots"), [stored(n)._replace(reasoning=f"{n} " * 9999) for n in range(9)]
    for row in rows[:8]:
        store.add_references([row])
    first = {path.name: path.stat().st_mtime_ns for path in bucket.rglob("*.parquet")}
    Store.reads.clear()
    store.add_references(rows[8:])
    assert not [name for name in Store.reads if name.endswith(".parquet")]
    assert first.items() < {path.name: path.stat().st_mtime_ns for path in bucket.rglob("*.parquet")}.items()
    other = PivotStore("gs://bucket/pivots")
    assert other.fingerprint() == store.fingerprint()
    assert other.missing([*keys(rows), "k"]) == ["k"] and other.references(keys(rows)) == store.references()


def test_a_process_that_does_not_write_reads_the_same(tmp_path):
    store, rows = filled(tmp_path, 2)
    reader = PivotStore(tmp_path / "pivots", writes=False)
    before = {file: file.read_bytes() for file in store.path.iterdir()}
    reader.add_references([stored(7)])
    assert {file: file.read_bytes() for file in store.path.iterdir()} == before
    assert reader.references(keys(rows)) == store.references(keys(rows))


def test_a_bucket_keeps_its_name():
    assert str(PivotStore("gs://bucket/run/pivots").path) == "gs://bucket/run/pivots/references"


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
def test_a_killed_writer_loses_at_most_its_last_batch(tmp_path, caplog):
    """SIGKILL while references are appended and shards merged, three times over; each next writer goes on there."""
    writer = textwrap.dedent("""
        import sys
        from pbrl_jax.pivots import shards
        shards.MERGED = 3
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
    assert not caplog.records, "nothing damaged"
