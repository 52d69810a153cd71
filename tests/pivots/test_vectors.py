"""Each text is embedded once per encoder; the cache is whole or a clear error."""

import hashlib
import io

import numpy as np
import pytest

from pbrl_jax.core.errors import DataError
from pbrl_jax.pivots import store as store_module
from pbrl_jax.pivots.store import EMBED_BATCH, PivotStore


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
    assert store.vector_path("weights-mean-64-query: ").name.removesuffix(".npz").isalnum()


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


def test_long_work_is_saved_on_the_way_and_not_at_every_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "SAVE_EVERY", EMBED_BATCH)
    sizes = []
    save = store_module._save_vectors

    def counted(path, blocks):
        sizes.append(sum(len(block[0]) for block in blocks) // EMBED_BATCH)
        save(path, blocks)

    monkeypatch.setattr(store_module, "_save_vectors", counted)
    PivotStore(tmp_path).vectors("enc", [f"t{n}" for n in range(9 * EMBED_BATCH)], Encoder())
    assert sizes == [1, 2, 4, 8, 9], "in batches: each save doubles the file, the last one is the rest"


@pytest.mark.parametrize("kill_at", [1, 2, 3])
@pytest.mark.parametrize("before", [[], ["a"]])
def test_a_writer_killed_between_its_files_leaves_a_good_cache(tmp_path, monkeypatch, kill_at, before):
    """Checksums, vectors, checksums: whichever of the three writes never happens, the cache can be read."""
    store = PivotStore(tmp_path)
    if before:
        store.vectors("enc", before, Encoder())
    writes, write = [], store_module.write_atomic

    def killed(path, content):
        writes.append(path)
        if len(writes) == kill_at:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_module, "write_atomic", killed)
        store.vectors("enc", ["a", "b"], Encoder())
    encoder = Encoder()
    np.testing.assert_allclose(store.vectors("enc", ["a", "b"], encoder), expected(encoder, "ab"), atol=1e-7)
    lost = [text for text in ("a", "b") if text not in before] if kill_at < 3 else []
    assert encoder.asked == lost


def damaged(tmp_path, change, checksum: bool) -> PivotStore:
    """A cache of two texts whose content was changed, with its checksum set right or not."""
    store = PivotStore(tmp_path)
    store.vectors("enc", ["a", "b"], Encoder())
    path = store.vector_path("enc")
    path.write_bytes(change(path.read_bytes()))
    if checksum:
        (path.parent / f"{path.name}.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    return store


def arrays(**changes):
    def change(content: bytes) -> bytes:
        with np.load(io.BytesIO(content)) as stored:
            values = {name: stored[name] for name in stored.files}
        buffer = io.BytesIO()
        np.savez(buffer, **{name: value for name, value in (values | changes).items() if value is not None})
        return buffer.getvalue()

    return change


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


NAN = np.array([[np.nan, 0, 0, 0], [1, 0, 0, 0]], np.float32)


@pytest.mark.parametrize(
    "change, checksum, what",
    [
        (lambda content: content[:-20], False, "does not match its checksum in .*sha256"),
        (flipped, False, "does not match its checksum"),
        (lambda content: content[:-20], True, "cannot be read"),
        (lambda content: b"", True, "cannot be read"),
        (lambda content: b"PK", True, "cannot be read"),
        (arrays(vectors=None), True, "cannot be read"),
        (arrays(vectors=NAN), True, "not finite or not of length 1"),
        (arrays(vectors=np.full((2, 4), 2, np.float32)), True, "not finite or not of length 1"),
        (arrays(vectors=np.eye(4)[:2]), True, r"vectors float64\[2, 4\], expected float32\[2, E\]"),
        (arrays(vectors=np.eye(4, dtype=np.float32)[:1]), True, r"expected float32\[2, E\]"),
        (arrays(digests=np.zeros((2, 16), np.uint8)), True, r"digests uint8\[2, 16\], expected uint8\[N, 32\]"),
        (arrays(digests=np.array(["a", {}], object)), True, "cannot be read"),
    ],
)
def test_a_damaged_cache_is_one_error_and_the_advice_helps(tmp_path, change, checksum, what):
    store, encoder = damaged(tmp_path, change, checksum), Encoder()
    path = store.vector_path("enc")
    with pytest.raises(DataError, match=what) as caught:
        store.vectors("enc", ["a", "b"], encoder)
    assert str(caught.value).startswith(str(path)) and "Delete that file" in str(caught.value)
    assert encoder.calls == []
    path.unlink()
    np.testing.assert_allclose(store.vectors("enc", ["a", "b"], encoder), expected(encoder, "ab"), atol=1e-7)


def test_a_lost_checksum_is_no_checksum(tmp_path):
    store = PivotStore(tmp_path)
    store.vectors("enc", ["a"], Encoder())
    path = store.vector_path("enc")
    (path.parent / f"{path.name}.sha256").unlink()
    with pytest.raises(DataError, match="does not match its checksum"):
        store.vectors("enc", ["a"], Encoder())


def test_another_width_under_one_key_is_refused_and_not_saved(tmp_path):
    store = PivotStore(tmp_path)
    store.vectors("enc", ["a"], Encoder())
    content = store.vector_path("enc").read_bytes()
    with pytest.raises(DataError, match="has vectors of width 4, but the encoder gives 6. Delete that file"):
        store.vectors("enc", ["a", "b"], Encoder(width=6))
    assert store.vector_path("enc").read_bytes() == content


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
