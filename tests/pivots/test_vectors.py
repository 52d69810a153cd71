"""Each text is embedded once per encoder; the cache is whole or a clear error, and survives a killed writer."""

import hashlib
import json
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pbrl_jax.core import paths
from pbrl_jax.core.errors import DataError
from pbrl_jax.pivots import store as store_module
from pbrl_jax.pivots import vectors as vectors_module
from pbrl_jax.pivots.store import EMBED_BATCH, PivotStore
from pbrl_jax.weights.safetensors_file import SafetensorsFile


class Encoder:
    """Embeds by the text's bytes and remembers what it was asked."""

    def __init__(self, width: int = 4, sign: float = 1.0, fail_at: int | None = None):
        self.width, self.sign, self.fail_at = width, sign, fail_at
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(texts)
        return np.array([self.vector(text) for text in texts])

    def vector(self, text: str) -> np.ndarray:
        raw = np.frombuffer(hashlib.md5(text.encode()).digest()[: self.width], np.uint8) + 1.0
        return self.sign * raw / np.linalg.norm(raw)

    @property
    def asked(self) -> list[str]:
        return [text for call in self.calls for text in call]


def expected(encoder: Encoder, texts) -> np.ndarray:
    return np.array([encoder.vector(text) for text in texts])


def test_vectors_are_float32_units_in_the_order_of_the_texts(tmp_path):
    store, encoder = PivotStore(tmp_path), Encoder()
    texts = ["b", "a", "b", "c", "a"]
    vectors = store.vectors("enc", texts, encoder)
    assert vectors.dtype == np.float32 and vectors.shape == (5, 4)
    np.testing.assert_allclose(vectors, expected(encoder, texts), atol=1e-7)
    assert encoder.calls == [["b", "a", "c"]], "equal texts are embedded once"


def test_a_second_call_embeds_only_what_is_new(tmp_path):
    first, second = Encoder(), Encoder()
    before = PivotStore(tmp_path).vectors("enc", ["a", "b"], first)
    after = PivotStore(tmp_path).vectors("enc", ["c", "b", "a"], second)
    assert second.calls == [["c"]]
    np.testing.assert_array_equal(after[[2, 1]], before)
    third = Encoder()
    np.testing.assert_array_equal(PivotStore(tmp_path).vectors("enc", ["c", "b", "a"], third), after)
    assert third.calls == []


def test_another_encoder_embeds_again_and_keeps_the_first(tmp_path):
    store, small, wide = PivotStore(tmp_path), Encoder(), Encoder(width=6)
    store.vectors("weights-mean-64-query: ", ["a", "b"], small)
    vectors = store.vectors("weights-mean-128-query: ", ["a", "b"], wide)
    np.testing.assert_allclose(vectors, expected(wide, ["a", "b"]), atol=1e-7)
    assert wide.calls == [["a", "b"]]
    again = Encoder()
    np.testing.assert_allclose(
        store.vectors("weights-mean-64-query: ", ["a", "b"], again), expected(small, ["a", "b"]), atol=1e-7
    )
    assert again.calls == []
    assert store.vector_folder("weights-mean-64-query: ").name.isalnum()


def test_the_encoder_is_given_batches(tmp_path):
    encoder, texts = Encoder(), [f"t{n}" for n in range(2 * EMBED_BATCH + 3)]
    vectors = PivotStore(tmp_path).vectors("enc", texts, encoder)
    assert [len(call) for call in encoder.calls] == [EMBED_BATCH, EMBED_BATCH, 3]
    np.testing.assert_allclose(vectors, expected(encoder, texts), atol=1e-7)


def test_lengths_become_one(tmp_path):
    vectors = PivotStore(tmp_path).vectors("enc", ["a", "b"], lambda texts: np.array([[3.0, 4.0], [0.0, -2.0]]))
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0.0, -1.0]], atol=1e-7)


def test_white_space_has_the_zero_vector_and_is_not_embedded(tmp_path):
    encoder = Encoder()
    vectors = PivotStore(tmp_path).vectors("enc", ["", "a", " \n"], encoder)
    assert encoder.calls == [["a"]]
    np.testing.assert_allclose(vectors, [np.zeros(4), encoder.vector("a"), np.zeros(4)], atol=1e-7)


def test_no_texts(tmp_path):
    store = PivotStore(tmp_path)
    assert store.vectors("enc", [], Encoder()).shape == (0, 0)
    store.vectors("enc", ["a"], Encoder())
    assert store.vectors("enc", [], Encoder()).shape == (0, 4)
    assert store.vectors("enc", [""], Encoder()).tolist() == [[0.0] * 4]


def test_an_interrupted_embedding_keeps_its_finished_batches(tmp_path):
    store, texts = PivotStore(tmp_path), [f"t{n}" for n in range(3 * EMBED_BATCH)]
    with pytest.raises(KeyboardInterrupt):
        store.vectors("enc", texts, Encoder(fail_at=2))
    encoder = Encoder()
    vectors = store.vectors("enc", texts, encoder)
    assert encoder.asked == texts[2 * EMBED_BATCH :]
    np.testing.assert_allclose(vectors, expected(encoder, texts), atol=1e-7)


def test_long_work_is_saved_on_the_way_in_shards_that_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "SAVE_EVERY", 2 * EMBED_BATCH)
    store, texts = PivotStore(tmp_path), [f"t{n}" for n in range(5 * EMBED_BATCH)]
    store.vectors("enc", texts, Encoder())
    folder = store.vector_folder("enc")
    index = json.loads((folder / "index.json").read_text())
    assert [shard["rows"] // EMBED_BATCH for shard in index["shards"]] == [2, 2, 1]
    assert index["encoder"] == "enc" and index["width"] == 4
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "index.json"}
    assert before.keys() == {shard["file"] for shard in index["shards"]}
    encoder = Encoder()
    vectors = store.vectors("enc", [*texts, "new"], encoder)
    assert encoder.asked == ["new"]
    np.testing.assert_allclose(vectors, expected(encoder, [*texts, "new"]), atol=1e-7)
    for name, content in before.items():
        assert (folder / name).read_bytes() == content
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        assert hashlib.sha256((folder / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
        assert len(SafetensorsFile(folder / shard["file"])["vectors"]) == shard["rows"]


def test_only_the_rows_that_are_asked_for_are_read(tmp_path, monkeypatch):
    store, texts = PivotStore(tmp_path), [f"t{n}" for n in range(1000)]
    wide = Encoder(width=16)
    store.vectors("enc", texts, wide)
    read, taken = vectors_module._read, []

    def counted(*arguments):
        taken.append(read(*arguments))
        return taken[-1]

    monkeypatch.setattr(vectors_module, "_read", counted)
    some = ["t7", "t999", "t8", "t7"]
    np.testing.assert_allclose(store.vectors("enc", some, wide), expected(wide, some), atol=1e-7)
    digests_and_checksums = [32 * 1000, 4 * 1000]
    assert [len(content) for content in taken] == [*digests_and_checksums, 2 * 64, 64], "t7 and t8 are neighbours"


@pytest.mark.parametrize("before", [[], ["a"]])
@pytest.mark.parametrize("killed_at", ["write_safetensors", "write_atomic"])
def test_a_writer_stopped_between_its_files_leaves_a_good_cache(tmp_path, monkeypatch, killed_at, before):
    """The shard, then the index: whichever is never written, or half, the cache can be read and goes on."""
    store = PivotStore(tmp_path)
    if before:
        store.vectors("enc", before, Encoder())

    def killed(path, *arguments):
        paths.as_path(path).write_bytes(b"half a shard") if killed_at == "write_safetensors" else None
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(vectors_module, killed_at, killed)
        store.vectors("enc", ["a", "b"], Encoder())
    encoder = Encoder()
    np.testing.assert_allclose(store.vectors("enc", ["a", "b"], encoder), expected(encoder, "ab"), atol=1e-7)
    assert encoder.asked == [text for text in ("a", "b") if text not in before]
    again = Encoder()
    np.testing.assert_allclose(store.vectors("enc", ["a", "b"], again), expected(encoder, "ab"), atol=1e-7)
    assert again.asked == []


KILLED_WRITER = textwrap.dedent("""
    import hashlib, sys
    import numpy as np
    from pbrl_jax.pivots import store
    store.SAVE_EVERY = store.EMBED_BATCH = 4

    def embed(texts):
        print(texts[-1], flush=True)
        return [np.frombuffer(hashlib.sha512(text.encode()).digest() * 32, np.uint8) + 1.0 for text in texts]

    store.PivotStore(sys.argv[1]).vectors("enc", [f"{n:06d}" for n in range(10**5)], embed)
""")


@pytest.mark.serial
def test_sigkill_at_any_point_loses_no_listed_vector_and_blocks_no_later_writer(tmp_path):
    """SIGKILL while shards are written, twice over; the next writer goes on where the index ends."""
    store, texts, kept = PivotStore(tmp_path), [f"{n:06d}" for n in range(10**5)], 0
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED_WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(12):
            said = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        cache = vectors_module.read_cache(store.vector_folder("enc"), "enc")
        count = len(cache.places)
        assert count > kept and count % 4 == 0 and count >= said - 3, "what was saved before the last batch is there"
        kept = count
        found = vectors_module.gather(cache, [hashlib.sha256(text.encode()).digest() for text in texts[:count]])
        raw = [np.frombuffer(hashlib.sha512(text.encode()).digest() * 32, np.uint8) + 1.0 for text in texts[:count]]
        np.testing.assert_allclose(found, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)


def cut(content: bytes) -> bytes:
    return content[:-20]


def flipped(content: bytes) -> bytes:
    """One bit of the first vector."""
    start = 8 + int.from_bytes(content[:8], "little")
    return content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :]


def renamed(content: bytes) -> bytes:
    return content.replace(b'"encoder": "enc"', b'"encoder": "oth"')


@pytest.mark.parametrize(
    "name, change, what",
    [
        ("shard_00000.safetensors", cut, r"cannot be read \(CheckpointError: .* is truncated"),
        ("shard_00000.safetensors", lambda content: b"", "cannot be read"),
        ("shard_00000.safetensors", None, r"cannot be read \(FileNotFoundError"),
        ("shard_00000.safetensors", flipped, "row 0 of shard_00000.safetensors does not match its checksum"),
        ("shard_00000.safetensors", lambda content: content.replace(b"digests", b"digestz"), "KeyError: 'digests'"),
        ("index.json", lambda content: content[:-20], "has a damaged index.json"),
        ("index.json", renamed, "index.json that does not match its fingerprint"),
        ("index.json", lambda content: b"{}", "does not match its fingerprint"),
        ("index.json", lambda content: b"[]", "does not match its fingerprint"),
    ],
)
def test_a_damaged_cache_is_one_error_and_the_advice_helps(tmp_path, name, change, what):
    store, encoder = PivotStore(tmp_path), Encoder()
    store.vectors("enc", ["a", "b"], Encoder())
    folder = store.vector_folder("enc")
    path = folder / name
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    with pytest.raises(DataError, match=what) as caught:
        store.vectors("enc", ["a", "b"], encoder)
    assert str(caught.value).startswith(str(folder)) and "Delete that folder" in str(caught.value)
    assert encoder.calls == []
    folder.rmtree()
    np.testing.assert_allclose(store.vectors("enc", ["a", "b"], encoder), expected(encoder, "ab"), atol=1e-7)


def test_a_shard_of_another_cache_is_refused(tmp_path):
    store = PivotStore(tmp_path)
    store.vectors("enc", ["a", "b"], Encoder())
    store.vectors("wide", ["a", "b"], Encoder(width=6))
    one, other = (store.vector_folder(key) / "shard_00000.safetensors" for key in ("enc", "wide"))
    one.write_bytes(other.read_bytes())
    with pytest.raises(DataError, match=r"other tensors than its index.json says .*\(2, 6\)"):
        store.vectors("enc", ["a"], Encoder())


def test_the_cache_of_another_encoder_is_refused(tmp_path):
    store = PivotStore(tmp_path)
    store.vectors("enc", ["a"], Encoder())
    store.vector_folder("enc").rename(store.vector_folder("other"))
    encoder = Encoder()
    with pytest.raises(DataError, match="holds the vectors of encoder 'enc', but this run has 'other'. Delete that"):
        store.vectors("other", ["a"], encoder)
    assert encoder.calls == []


def test_a_file_of_an_earlier_version_is_refused_with_the_command_that_helps(tmp_path):
    store, encoder = PivotStore(tmp_path), Encoder()
    old = store.vector_folder("enc").parent / f"{store.vector_folder('enc').name}.npz"
    old.parent.mkdir(parents=True)
    np.savez(old, digests=np.zeros((1, 32), np.uint8), vectors=np.ones((1, 4), np.float32))
    with pytest.raises(DataError, match=f"no longer read.*Type `rm {old}`"):
        store.vectors("enc", ["a"], encoder)
    assert encoder.calls == []
    old.unlink()
    np.testing.assert_allclose(store.vectors("enc", ["a"], encoder), expected(encoder, "a"), atol=1e-7)


def test_two_writers_take_turns(tmp_path):
    """Both began before either had saved: all vectors are kept, whatever the order."""
    store, late = PivotStore(tmp_path), Encoder()

    def embed(texts):
        PivotStore(tmp_path).vectors("enc", ["b", "c"], Encoder())
        return late(texts)

    store.vectors("enc", ["a", "b"], embed)
    encoder = Encoder()
    np.testing.assert_allclose(store.vectors("enc", ["c", "a", "b"], encoder), expected(late, "cab"), atol=1e-7)
    assert encoder.calls == []


def test_another_width_under_one_key_is_refused_and_not_saved(tmp_path):
    store = PivotStore(tmp_path)
    store.vectors("enc", ["a"], Encoder())
    folder = store.vector_folder("enc")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DataError, match="has vectors of width 4, but the encoder gives 6. Delete that folder"):
        store.vectors("enc", ["a", "b"], Encoder(width=6))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_remote_folders_are_written_without_rename(tmp_path, monkeypatch):
    """Behind gs:// there is none, nor a lock; the same code path on a local folder."""
    for module in (paths, store_module, vectors_module):
        monkeypatch.setattr(module, "is_remote", lambda path: True)
    store = PivotStore(tmp_path)
    store.vectors("enc", ["a"], Encoder())
    store.vectors("enc", ["b"], Encoder())
    encoder = Encoder()
    np.testing.assert_allclose(store.vectors("enc", ["b", "a"], encoder), expected(encoder, "ba"), atol=1e-7)
    assert encoder.calls == [] and not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob(".lock"))


@pytest.mark.parametrize(
    "given, what",
    [
        ([[1.0, 0.0], [np.nan, 0.0]], "1 vectors of 2 that are not finite or zero"),
        ([[np.inf, 0.0], [0.0, 0.0]], "2 vectors of 2"),
        ([[1.0, 0.0]], r"an array \[1, 2\] for 2 texts, expected \[2, E\]"),
        ([1.0, 0.0], r"an array \[2\]"),
    ],
)
def test_what_is_no_vector_is_refused_and_not_saved(tmp_path, given, what):
    store = PivotStore(tmp_path / "pivots")
    with pytest.raises(DataError, match=what):
        store.vectors("enc", ["a", "b"], lambda texts: np.array(given))
    assert not (tmp_path / "pivots").exists()


def test_a_process_that_does_not_write_embeds_and_saves_nothing(tmp_path):
    encoder = Encoder()
    vectors = PivotStore(tmp_path / "pivots", writes=False).vectors("enc", ["a"], encoder)
    np.testing.assert_allclose(vectors, expected(encoder, ["a"]), atol=1e-7)
    assert not (tmp_path / "pivots").exists()
