"""Folders of sentence-transformers: the vectors of its own code, and one clear error for whatever is not understood.

The fixtures and their vectors were written by tests/fixture_makers/encoders.py.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.models.specs import DecoderEncoderSpec, DenseSpec, EncoderSpec
from pbrl_jax.plan.shapes import run_encoder_spec
from pbrl_jax.run.assemble import run_encoder
from pbrl_jax.text.tokenizers import load_tokenizer
from pbrl_jax.weights.encoders import Encoder, load_encoder, save_encoder, special_ids
from pbrl_jax.weights.sentence_transformers import read_chain

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hf"
CHAINS = ("labse", "bge_m3", "qwen3_embedding", "embedding_gemma", "gte")
TOLERANCE = 3e-6


def expected(name: str) -> tuple[list[str], dict[str, np.ndarray]]:
    with np.load(FIXTURES / name / "expected.npz") as data:
        arrays = dict(data)
    return [str(text) for text in arrays.pop("texts")], arrays


def cut_vectors(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """Vectors as sentence-transformers makes them: what is too long is cut before the special tokens are added."""
    tokens, mask, _ = encoder.tokenize(texts)
    return encoder.embed_ids(tokens, mask)


@pytest.mark.parametrize("name", CHAINS)
def test_vectors(name):
    encoder = load_encoder(str(FIXTURES / name))
    texts, arrays = expected(name)
    assert np.abs(arrays["vectors"][0] @ arrays["vectors"][1]) < 0.999
    np.testing.assert_allclose(cut_vectors(encoder, texts), arrays["vectors"], atol=TOLERANCE)
    np.testing.assert_allclose(encoder.embed(texts[:-1]), arrays["vectors"][:-1], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["bge_m3", "qwen3_embedding"])
def test_named_prompts(name):
    texts, arrays = expected(name)
    encoder = load_encoder(str(FIXTURES / name), prompt="query")
    np.testing.assert_allclose(cut_vectors(encoder, texts), arrays["query"], atol=TOLERANCE)
    assert np.abs(arrays["query"] - arrays["vectors"]).max() > 1e-2
    assert encoder.key == load_encoder(str(FIXTURES / name), prefix=encoder.prefix).key
    with pytest.raises(CheckpointError, match="no prompt 'qurey'.*Did you mean 'query'"):
        load_encoder(str(FIXTURES / name), prompt="qurey")
    with pytest.raises(ConfigError, match="Both prefix 'a' and prompt 'query'"):
        load_encoder(str(FIXTURES / name), prefix="a", prompt="query")


def test_the_default_prompt_is_used(tmp_path):
    folder = copied("bge_m3", tmp_path)
    edit(folder / "config_sentence_transformers.json", default_prompt_name="passage")
    assert load_encoder(str(folder)).prefix == "passage: "
    assert load_encoder(str(folder), prefix="query: ").prefix == "query: "
    edit(folder / "config_sentence_transformers.json", default_prompt_name="absent")
    with pytest.raises(CheckpointError, match="default_prompt_name 'absent'"):
        load_encoder(str(folder))


def test_vectors_that_are_cut_are_refused(tmp_path):
    """sentence-transformers keeps the first `truncate_dim` channels (Matryoshka), which gives other cosines."""
    folder = copied("bge_m3", tmp_path)
    edit(folder / "config_sentence_transformers.json", truncate_dim=None)
    load_encoder(str(folder))
    edit(folder / "config_sentence_transformers.json", truncate_dim=8)
    with pytest.raises(CheckpointError, match="truncate_dim is 8, which changes the model"):
        load_encoder(str(folder))


def test_specs_are_those_of_the_folders():
    labse, gemma = (load_encoder(str(FIXTURES / name)) for name in ("labse", "embedding_gemma"))
    assert isinstance(labse.spec, EncoderSpec) and labse.spec.position_offset == 0
    assert labse.spec.dense == (DenseSpec(12, "tanh"),) and labse.spec.pooling == "cls"
    assert labse.max_length == 24 - 2, "sentence-transformers counts [CLS] and [SEP]"
    assert isinstance(gemma.spec, DecoderEncoderSpec) and gemma.spec.bidirectional and gemma.spec.decoder.window == 5
    assert gemma.spec.dense == (DenseSpec(20, bias=False), DenseSpec(16, bias=False)) and gemma.spec.pooling == "mean"
    qwen = load_encoder(str(FIXTURES / "qwen3_embedding"))
    assert (qwen.spec.pooling, qwen.spec.begin_ids, len(qwen.spec.end_ids), qwen.max_length) == ("last", (), 1, 63)


def test_long_texts_are_chunked():
    """By hand: chunks of 22 tokens, each between [CLS] and [SEP], and the last as short as it is."""
    encoder = load_encoder(str(FIXTURES / "labse"))
    long = expected("labse")[0][-1]
    ids = encoder.tokenizer.encode(long)
    pieces = [ids[at : at + 22] for at in range(0, len(ids), 22)]
    assert len(pieces) > 1
    alone = [encoder.embed_ids(np.array([piece]), np.ones((1, len(piece)), bool))[0] for piece in pieces]
    total = sum(len(piece) * vector for piece, vector in zip(pieces, alone, strict=True))
    np.testing.assert_allclose(encoder.embed([long])[0], total / np.linalg.norm(total), atol=TOLERANCE)


def test_a_plain_folder_is_told_how_to_pool():
    texts, arrays = expected("xlmr_xl")
    encoder = load_encoder(str(FIXTURES / "xlmr_xl"), pooling="mean")
    np.testing.assert_allclose(cut_vectors(encoder, texts), arrays["vectors"], atol=TOLERANCE)
    with pytest.raises(CheckpointError, match="no modules.json.*pooling='mean'"):
        load_encoder(str(FIXTURES / "xlmr_xl"))
    with pytest.raises(CheckpointError, match="--encoder.pooling mean.*pbrl convert --pooling"):
        load_encoder(str(FIXTURES / "xlmr_xl"))
    config = with_values(Config(), encoder={"source": str(FIXTURES / "xlmr_xl"), "max_length": 8, "pooling": "cls"})
    assert run_encoder(config, encoder.tokenizer).spec.pooling == "cls"
    random = run_encoder(with_values(config, encoder={"source": "random"}), encoder.tokenizer)
    assert random.spec.pooling == "cls" and random.spec.dtype == "float32"
    config = with_values(Config(), encoder={"source": "random", "dtype": "bfloat16"})
    made = run_encoder(config, encoder.tokenizer).spec
    assert made.dtype == run_encoder_spec(config, made.vocab_size).dtype == "bfloat16"


def test_the_number_of_positions_counts_special_tokens(capsys):
    """512 means 510 tokens of text to an XLM-R encoder, as in sentence-transformers."""
    room = load_encoder(str(FIXTURES / "bge_m3")).spec.text_tokens
    assert load_encoder(str(FIXTURES / "bge_m3"), room).max_length == room and not capsys.readouterr().out
    assert load_encoder(str(FIXTURES / "bge_m3"), room + 2).max_length == room
    assert f"encoder.max_length {room + 2} counts special tokens; it reads {room}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=f"max_length={room + 3} but this encoder has {room} positions"):
        load_encoder(str(FIXTURES / "bge_m3"), room + 3)


def test_pooling_refused_where_a_folder_says_it():
    with pytest.raises(ConfigError, match="says itself how it pools"):
        load_encoder(str(FIXTURES / "bge_m3"), pooling="mean")


@pytest.mark.parametrize("name", ["labse", "embedding_gemma"])
def test_saved_in_our_own_format_and_back(name, tmp_path):
    encoder = load_encoder(str(FIXTURES / name), prefix="a ")
    save_encoder(encoder, str(tmp_path))
    again = load_encoder(str(tmp_path))
    assert (again.spec, again.max_length, again.prefix) == (encoder.spec, encoder.max_length, "a ")
    texts, _ = expected(name)
    np.testing.assert_array_equal(again.embed(texts), encoder.embed(texts))
    with pytest.raises(ConfigError, match="leave prompt and pooling out"):
        load_encoder(str(tmp_path), pooling="mean")


def test_bfloat16_stays_close():
    encoder = load_encoder(str(FIXTURES / "bge_m3"), dtype="bfloat16")
    assert encoder.params["word_embed"].dtype == "bfloat16"
    texts, arrays = expected("bge_m3")
    vectors = cut_vectors(encoder, texts)
    assert vectors.dtype == np.float32
    assert ((vectors * arrays["vectors"]).sum(axis=1) > 0.995).all()


def test_what_tells_encoders_apart(tmp_path):
    base = load_encoder(str(FIXTURES / "bge_m3"))
    folder = copied("bge_m3", tmp_path)
    assert load_encoder(str(folder)).key == base.key
    edit(folder / "1_Pooling" / "config.json", pooling_mode="mean")
    changed = load_encoder(str(folder))
    others = [base, changed, load_encoder(str(FIXTURES / "bge_m3"), 8), load_encoder(str(FIXTURES / "bge_m3"), 8, "q ")]
    assert len({other.key for other in others}) == 4 and base.fingerprint != changed.fingerprint


def test_special_ids_come_from_the_template():
    tokenizer = load_tokenizer(str(FIXTURES / "labse"))
    named = tokenizer.tokenizer
    assert special_ids(tokenizer) == ((named.cls_token_id,), (named.sep_token_id,))


# Whatever is not understood


def copied(name: str, tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURES / name, tmp_path / "copy"))


def edit(path: Path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_module(folder: Path, index: int, **changes):
    modules = json.loads((folder / "modules.json").read_text())
    modules[index] |= changes
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    "file, changes, message",
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling max; supported is one of cls, mean, lasttoken"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, r"pooling cls \+ mean"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "pooling none"),
        ("1_Pooling/config.json", {"pooling_mode": None}, "pooling None"),
        ("sentence_bert_config.json", {"max_seq_length": "128"}, "max_seq_length is .128.; expected a number"),
        ("1_Pooling/config.json", {"heads": 3}, "not understood: heads=3"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case is True"),
        ("sentence_bert_config.json", {"query_length": 3}, "not understood: query_length=3"),
        ("config.json", {"model_type": "t5"}, "model_type is 't5', which no encoder here has. Supported are bert"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("config.json", {"vocab_size": 50}, "word_embeddings.weight has shape .* expected"),
    ],
)
def test_a_setting_that_is_not_known_is_named(file, changes, message, tmp_path):
    folder = copied("bge_m3", tmp_path)
    edit(folder / file, **changes)
    if "vocab_size" in changes:
        message = f"{message}|the embedding has 50 rows"
    with pytest.raises(CheckpointError, match=message):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"activation_function": "torch.nn.modules.activation.Mish"}, "activation_function 'mish'. Known: .*tanh"),
        ({"use_residual": True}, "use_residual is True"),
        ({"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings'"),
        ({"out_features": 13}, "expected one that read as its transpose is|expected one that"),
    ],
)
def test_a_dense_that_is_not_known_is_named(changes, message, tmp_path):
    folder = copied("labse", tmp_path)
    edit(folder / "2_Dense" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    "index, kind, message",
    [
        (2, "a.b.CNN", "module 'CNN' that is not known. Known: Dense"),
        (1, "a.Normalize", "lists Transformer, Normalize, Dense, Normalize"),
        (2, "a.Pooling", "expected Transformer, Pooling, any number of Dense"),
        (3, "a.Dense", "config.json"),
    ],
)
def test_a_chain_of_another_shape_is_refused(index, kind, message, tmp_path):
    folder = copied("labse", tmp_path)
    edit_module(folder, index, type=kind)
    with pytest.raises(CheckpointError, match=message):
        read_chain(str(folder))


def test_dense_before_pooling_is_refused(tmp_path):
    folder = copied("labse", tmp_path)
    edit_module(folder, 1, idx=2)
    edit_module(folder, 2, idx=1)
    with pytest.raises(CheckpointError, match="Dense, Pooling.*; expected Transformer, Pooling, any number of Dense"):
        read_chain(str(folder))


def test_damaged_lists_are_refused(tmp_path):
    folder = copied("labse", tmp_path)
    (folder / "modules.json").write_text('{"a": 1}')
    with pytest.raises(CheckpointError, match="not the list of modules"):
        read_chain(str(folder))
    (folder / "modules.json").unlink()
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="No encoder in .*nor config.json"):
        load_encoder(str(folder))


def test_prompts_that_are_not_pooled_are_refused(tmp_path):
    folder = copied("bge_m3", tmp_path)
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    assert load_encoder(str(folder)).prefix == ""
    with pytest.raises(CheckpointError, match="leaves prompts out of its pooling"):
        load_encoder(str(folder), prefix="query: ")
