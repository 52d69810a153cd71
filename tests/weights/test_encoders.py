"""Encoders: on disk bit for bit, and from strings to unit vectors."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load, save
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import canonical_responses, encoder, encoder_params, tokenizer

from pbrl_jax.core.batching import length_bucket
from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.models.encoder import encode
from pbrl_jax.models.specs import tiny_encoder
from pbrl_jax.weights import encoders, folders
from pbrl_jax.weights.encoders import EMBED_BATCH, Encoder, embed_tokens, load_encoder, save_encoder

TEXTS = canonical_responses(3)


@pytest.fixture
def folder(tmp_path):
    save_encoder(encoder(), str(tmp_path / "encoder"))
    return tmp_path / "encoder"


def test_round_trip_bit_for_bit(folder):
    loaded = load_encoder(str(folder), 64)
    assert loaded.spec == encoder().spec
    assert jax.tree.structure(loaded.params) == jax.tree.structure(encoder().params)
    pairs = zip(jax.tree.leaves(loaded.params), jax.tree.leaves(encoder().params), strict=True)
    assert all(np.asarray(found).tobytes() == np.asarray(wanted).tobytes() for found, wanted in pairs)
    assert loaded.tokenizer.fingerprint == tokenizer().fingerprint
    np.testing.assert_array_equal(load_encoder(str(folder.parent), 64).embed(TEXTS[:2]), encoder().embed(TEXTS[:2]))


def test_length_and_prefix_are_those_asked_for(folder):
    assert (load_encoder(str(folder)).max_length, load_encoder(str(folder)).prefix) == (64, "")
    save_encoder(encoder(32, "query: "), str(folder))
    assert (load_encoder(str(folder)).max_length, load_encoder(str(folder)).prefix) == (32, "query: ")
    loaded = load_encoder(str(folder), 20, "query: ")
    assert (loaded.max_length, loaded.prefix) == (20, "query: ")
    with pytest.raises(ConfigError, match="encoder.max_length=129 but this encoder has 128 positions. Use 128."):
        load_encoder(str(folder), 129)


def test_positions_before_the_first_token_are_no_room(tmp_path):
    """XLM-R's first token has position 2: of 16 positions 14 hold tokens."""
    spec = tiny_encoder(vocab_size=tokenizer().vocab_size, max_positions=16, position_offset=2)
    save_encoder(Encoder(spec, encoder_params(spec), tokenizer(), "x", 14), str(tmp_path))
    assert load_encoder(str(tmp_path)).max_length == 14
    with pytest.raises(ConfigError, match="14 positions"):
        load_encoder(str(tmp_path), 15)


def test_damage_and_misfits_are_refused(folder):
    data = bytearray((folder / folders.WEIGHTS).read_bytes())
    data[-100] ^= 1
    (folder / folders.WEIGHTS).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_encoder(str(folder))
    data[-100] ^= 1
    tensors = load(bytes(data))
    tensors["type_embed"] = np.zeros((2, 32), np.float32)
    data = save(tensors)
    (folder / folders.WEIGHTS).write_bytes(data)
    record = (folder / "pbrl_encoder.json").read_text()
    old = json.loads(record)["weights_sha256"]
    (folder / "pbrl_encoder.json").write_text(record.replace(old, hashlib.sha256(data).hexdigest()))
    with pytest.raises(CheckpointError, match=r"type_embed: expected \(1, 32\), found \(2, 32\)"):
        load_encoder(str(folder))


def test_a_policy_is_no_encoder(tmp_path):
    (tmp_path / "pbrl_policy.json").write_text("{}")
    with pytest.raises(CheckpointError, match="No encoder in"):
        load_encoder(str(tmp_path))


def test_embed_is_encode_of_each_text_in_order():
    vectors = encoder().embed(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (9, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    for row in (0, 4, 8):
        ids = jnp.asarray([tokenizer().encode(TEXTS[row])])
        alone = encode(encoder().params, ids, jnp.ones(ids.shape, bool), spec=encoder().spec)
        np.testing.assert_allclose(vectors[row], alone[0], atol=1e-5)
    assert np.abs(vectors[0] - vectors[4]).max() > 1e-3


def test_more_texts_than_a_batch_keep_their_order():
    """The second batch is short and its rows lie in another length bucket."""
    texts = [*TEXTS * (EMBED_BATCH // len(TEXTS) + 1)][:EMBED_BATCH] + ["Jibu ni 7.", TEXTS[1]]
    vectors = encoder().embed(texts)
    few = encoder().embed(["Jibu ni 7.", *TEXTS])
    np.testing.assert_allclose(vectors[-2], few[0], atol=1e-5)
    np.testing.assert_allclose(vectors[-1], few[2], atol=1e-5)
    np.testing.assert_allclose(vectors[: len(TEXTS)], few[1:], atol=1e-5)
    assert encoder().embed([]).shape == (0, 16)


@pytest.mark.parametrize("short, long, most", [(8, 0, 1.0), (7, 1, 1.0), (61, 3, 1.25), (300, 20, 1.25)])
def test_embedding_computes_little_padding(monkeypatch, short, long, most):
    """Slots that the encoder computes, of those of each text alone in its length bucket: no batch is filled up to its
    largest size, and a long text does not lengthen the others. The vectors are those of each text alone."""
    texts = [f"Jibu ni {n}." for n in range(short)] + [" ".join(TEXTS[n % 4 : n % 4 + 3]) for n in range(long)]
    texts = [texts[row] for row in np.random.default_rng(0).permutation(len(texts))]
    shapes, program = [], embed_tokens(encoder().spec)

    def counted(params, tokens, mask):
        shapes.append(tokens.shape)
        return program(params, tokens, mask)

    monkeypatch.setattr(encoders, "embed_tokens", lambda spec: counted)
    found = encoder().embed(texts)
    lengths = [len(ids) for ids in tokenizer().encode_batch(texts)]
    least = sum(length_bucket(length, encoder().max_length) for length in lengths)
    assert least <= sum(rows * tokens for rows, tokens in shapes) <= most * least
    for row in range(0, len(texts), 7):
        np.testing.assert_allclose(
            found[row], program(encoder().params, *encoder().tokenize([texts[row]])[:2])[0], atol=1e-6
        )


def test_long_texts_are_cut_and_marked():
    short = encoder(max_length=8)
    long = TEXTS[0] + " " + TEXTS[3]
    tokens, mask, cut = short.tokenize([long, "Jibu ni 7."])
    assert cut.tolist() == [True, False] and tokens.shape == (2, 8)
    assert mask.sum(axis=1).tolist() == [8, len(tokenizer().encode("Jibu ni 7."))]
    assert tokens[0].tolist() == tokenizer().encode(long)[:8]


@pytest.mark.parametrize("prefix", ["", "1 + "])
def test_long_texts_are_embedded_in_chunks(prefix):
    """The mean of the chunks' vectors, weighted by their tokens; every chunk begins with the prefix."""
    short = encoder(max_length=8, prefix=prefix)
    long, again = TEXTS[0] + " " + TEXTS[3], tokenizer().encode(prefix)
    ids = tokenizer().encode(prefix + long)
    pieces = [ids[:8]] + [again + ids[at : at + 8 - len(again)] for at in range(8, len(ids), 8 - len(again))]
    assert len(pieces) > 2 and len(pieces[-1]) < 8
    alone = [
        encode(short.params, jnp.asarray([piece]), jnp.ones((1, len(piece)), bool), spec=short.spec)[0]
        for piece in pieces
    ]
    total = sum(len(piece) * np.asarray(vector, np.float64) for piece, vector in zip(pieces, alone, strict=True))
    found = short.embed(["Jibu ni 7.", long, TEXTS[1]])
    np.testing.assert_allclose(found[1], total / np.linalg.norm(total), atol=1e-5)
    np.testing.assert_allclose(found[[0, 2]], [short.embed([text])[0] for text in ("Jibu ni 7.", TEXTS[1])], atol=1e-5)
    assert np.abs(found[1] - short.embed([tokenizer().decode(ids[:8])])[0]).max() > 1e-3


def test_a_prefix_that_fills_the_encoder_is_refused():
    with pytest.raises(ConfigError, match="max_length=2 holds no text beside the"):
        encoder(max_length=2, prefix="1 + 1 + ").embed([TEXTS[0]])


def test_the_key_tells_apart_all_that_changes_vectors():
    """Also two new encoders whose names agree in their first letters."""
    base = encoder()
    others = [
        base, base._replace(fingerprint="random-quickstart-0-ab"), base._replace(fingerprint="random-quickstart-1-ab"),
        base._replace(max_length=32), base._replace(prefix="query: "), encoder(pooling="cls"),
    ]  # fmt: skip
    assert len({other.key for other in others}) == len(others)
