"""Encoders as sentence-transformers folders: what went out comes back, and gives the vectors of the original."""

import json

import jax
import numpy as np
import pytest
from tiny_hf import FIXTURES
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import canonical_responses, encoder_params, tokenizer
from tiny_world import encoder as own_encoder
from transformers import AutoTokenizer

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.models.specs import DenseSpec, tiny_encoder
from pbrl_jax.weights import encoder_export
from pbrl_jax.weights.encoder_export import export_encoder
from pbrl_jax.weights.encoders import Encoder, load_encoder, save_encoder

TOLERANCE = 3e-6


def expected(name: str) -> tuple[list[str], np.ndarray]:
    """Texts and what sentence-transformers' code makes of them."""
    with np.load(FIXTURES / name / "expected.npz") as data:
        return [str(text) for text in data["texts"]], data["vectors"]


def cut_vectors(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """Vectors of texts that are cut where they are too long, as the original cuts them."""
    return encoder.embed_ids(*encoder.tokenize(texts)[:2])


def same_bits(left, right) -> bool:
    def same(a, b) -> bool:
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return jax.tree.all(jax.tree.map(same, left, right))


@pytest.mark.parametrize("name", ["labse", "bge_m3", "qwen3_embedding", "embedding_gemma", "xlmr_xl", "gte"])
def test_released_encoders_go_back(name, tmp_path):
    encoder = load_encoder(str(FIXTURES / name), pooling="mean" if name == "xlmr_xl" else None)
    export_encoder(encoder._replace(prefix="query: "), str(tmp_path))
    found = load_encoder(str(tmp_path))
    assert (found.spec, found.max_length, found.prefix) == (encoder.spec, encoder.max_length, "query: ")
    assert same_bits(found.params, encoder.params)
    texts, vectors = expected(name)
    np.testing.assert_allclose(cut_vectors(found._replace(prefix=""), texts), vectors, atol=TOLERANCE)
    assert not (tmp_path / "generation_config.json").exists()


def test_named_prompts_go_back(tmp_path):
    """A search model that has lost its prompt for queries finds less, without an error."""
    encoder = load_encoder(str(FIXTURES / "qwen3_embedding"))
    save_encoder(encoder, str(tmp_path / "own"))
    places = {"hf": encoder, "again": load_encoder(str(tmp_path / "own")), "query": encoder._replace(
        prefix=encoder.prompts["query"])}  # fmt: skip
    for name, one in places.items():
        export_encoder(one, str(tmp_path / name))
        written = json.loads((tmp_path / name / "config_sentence_transformers.json").read_text())
        assert encoder.prompts["query"] and written["prompts"] == encoder.prompts
        assert written["default_prompt_name"] == ("query" if name == "query" else None)
        assert load_encoder(str(tmp_path / name), prompt="query").prefix == encoder.prompts["query"]


def test_an_encoder_born_here(tmp_path):
    """Its projection becomes a Dense module, its vocabulary a tokenizer.json without special tokens."""
    export_encoder(own_encoder(48), str(tmp_path))
    found, text = load_encoder(str(tmp_path)), "Lina has 12 cards."
    assert [one["type"].rpartition(".")[2] for one in json.loads((tmp_path / "modules.json").read_text())] == [
        "Transformer", "Pooling", "Dense", "Normalize",
    ]  # fmt: skip
    assert (found.spec.dense, found.spec.projection, found.max_length) == ((DenseSpec(16),), 0, 48)
    texts = canonical_responses(2)
    np.testing.assert_allclose(found.embed(texts), own_encoder(48).embed(texts), atol=1e-6)
    assert AutoTokenizer.from_pretrained(str(tmp_path))(text)["input_ids"] == tokenizer().encode(text)


def test_what_is_refused(tmp_path, monkeypatch):
    save_encoder(own_encoder(), str(tmp_path / "own"))
    with pytest.raises(CheckpointError, match="holds an encoder of this package"):
        export_encoder(own_encoder(), str(tmp_path / "own"))
    spec = tiny_encoder(vocab_size=tokenizer().vocab_size, pre_norm=True)
    nobodys = Encoder(spec, encoder_params(spec), tokenizer(), "x", 64)
    with pytest.raises(CheckpointError, match="No family of transformers has pre_norm=True with position_offset=0"):
        export_encoder(nobodys, str(tmp_path / "a"))
    monkeypatch.setitem(encoder_export.TORCH_CLASSES, "identity", "torch.nn.modules.activation.Tanh")
    with pytest.raises(CheckpointError, match="reads back differently: vectors differ by"):
        export_encoder(own_encoder(), str(tmp_path / "b"))
    assert not (tmp_path / "b" / "modules.json").exists()
