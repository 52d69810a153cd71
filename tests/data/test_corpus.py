"""Bulk encoding through tensorflow-text: the same ids as sentencepiece, on all eight languages and on real text."""

import os

import numpy as np
import pytest

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data import corpus
from pbrl_jax.data.corpus import encode_corpus, stream_corpus
from pbrl_jax.data.sources import mgsm, mgsm8k, quickstart
from pbrl_jax.text.tokenizers import train_sentencepiece

ODD = ["", " ", "  two  spaces ", "line\n", "🎉 12", "\u200bzero width", "คำตอบ", "<s> </s>", "a" * 300, "١٢", "½ m²"]


@pytest.fixture(scope="module")
def sentences():
    both = (quickstart.question, quickstart.response)
    return [make(p, c) for p in quickstart.problems("sft", 400, seed=0) for c in quickstart.LANGUAGES for make in both]


@pytest.fixture(scope="module")
def tokenizer(sentences):
    return train_sentencepiece(sentences, 1500, user_symbols=quickstart.USER_SYMBOLS)


@pytest.fixture
def bulk(monkeypatch):
    """Every text goes through TensorFlow, in several batches."""
    monkeypatch.setattr(corpus, "BULK", 1)
    monkeypatch.setattr(corpus, "BATCH", 500)


def by_hand(texts, tokenizer, length, prefix=(), suffix=()):
    room = length - len(prefix) - len(suffix)
    rows = [[*prefix, *ids[:room], *suffix] for ids in tokenizer.encode_batch(texts)]
    tokens = np.full((len(texts), length), tokenizer.pad_id, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens, [len(ids) for ids in rows], [len(ids) > room for ids in tokenizer.encode_batch(texts)]


def check_equal(encoded, texts, tokenizer, length, prefix=(), suffix=()):
    tokens, lengths, cut = by_hand(texts, tokenizer, length, prefix, suffix)
    assert encoded.tokens_NS.dtype == encoded.lengths_N.dtype == np.int32 and encoded.cut_N.dtype == bool
    np.testing.assert_array_equal(encoded.lengths_N, lengths)
    np.testing.assert_array_equal(encoded.cut_N, cut)
    np.testing.assert_array_equal(encoded.tokens_NS, tokens)


@pytest.mark.parametrize("around", [((), ()), ((1,), (2,))])
def test_ids_equal_sentencepiece_in_all_languages(sentences, tokenizer, bulk, around):
    texts = sentences[:1600] + ODD
    encoded = encode_corpus(texts, tokenizer, 24, prefix=around[0], suffix=around[1])
    assert 0 < encoded.cut_N.sum() < len(texts)
    check_equal(encoded, texts, tokenizer, 24, *around)


def test_byte_fallback_and_unknown_characters(tokenizer, bulk):
    spelled = train_sentencepiece(["Answer 12.", "Jibu ni 12."] * 9, 400, byte_fallback=True)
    for model in (spelled, tokenizer):
        check_equal(encode_corpus(ODD, model, 40), ODD, model, 40)


def test_few_texts_stay_on_the_host_with_the_same_outcome(sentences, tokenizer, monkeypatch):
    texts = sentences[:300] + ODD
    few = encode_corpus(texts, tokenizer, 24, suffix=(2,))
    check_equal(few, texts, tokenizer, 24, (), (2,))
    monkeypatch.setattr(corpus, "BULK", 1)
    for one, other in zip(few, encode_corpus(texts, tokenizer, 24, suffix=(2,)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_stream_comes_in_batches_and_in_order(sentences, tokenizer, bulk):
    texts = sentences[:1200]
    pieces = list(stream_corpus(texts, tokenizer, 32))
    assert [len(piece.lengths_N) for piece in pieces] == [500, 500, 200]
    check_equal(pieces[1], texts[500:1000], tokenizer, 32)


def test_nothing_gives_empty_arrays(tokenizer):
    assert encode_corpus([], tokenizer, 8).tokens_NS.shape == (0, 8)


def test_bad_input(tokenizer):
    with pytest.raises(ConfigError, match="max_length 2 leaves no room"):
        encode_corpus(["a"], tokenizer, 2, prefix=(1,), suffix=(2,))


def test_tensorflow_does_not_see_an_accelerator(tokenizer, bulk):
    encode_corpus(["a"], tokenizer, 8)
    import tensorflow as tf

    assert tf.config.get_visible_devices("GPU") == []


@pytest.mark.skipif(not os.environ.get("PBRL_DATA"), reason="PBRL_DATA is not set: no real benchmark text")
@pytest.mark.parametrize("byte_fallback", [False, True])
def test_real_text(bulk, byte_fallback):
    train = mgsm8k.rows("", "train", mgsm8k.LANGUAGES, 150, 0)
    model = train_sentencepiece([row.question for row in train], 4000, byte_fallback=byte_fallback)
    texts = [row.question for row in mgsm.rows("", "test", mgsm.LANGUAGES, 40, 0)] + ODD
    check_equal(encode_corpus(texts, model, 96), texts, model, 96)
