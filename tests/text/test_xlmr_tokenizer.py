"""XLM-R's ids from its SentencePiece model: those of transformers, one text at a time and in bulk."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import sentencepiece

from pbrl_jax.core.errors import DataError
from pbrl_jax.data import corpus
from pbrl_jax.text.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    XlmrTokenizer,
    load_tokenizer,
    train_sentencepiece,
)
from pbrl_jax.weights.encoders import encoder_tokenizer, special_ids

TEXTS = [
    "The answer is 12.", "Jibu ni 12, kwa sababu 3 mara 4 ni 12.", "答案是 12。", "ఆమె దగ్గర 5 ఆపిల్స్ ఉన్నాయి.",
    "คำตอบคือ 12", "She has 5 apples, buys 7 more and gives 3 of them to her friend.",
]  # fmt: skip
#: Whitespace at the ends and within, compatibility characters, characters outside the vocabulary, nothing.
ODD = ["  The answer  is\n12. ", "ﬁne １２", "Ж ni 12 Ж", "a\u200bb", "", " "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As the hub has it: the model with XLM-R's settings, and the class that reads it."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5), model_writer=written, model_type="unigram", vocab_size=120,
        hard_vocab_limit=False, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("xlmr")
    (path / "sentencepiece.bpe.model").write_bytes(written.getvalue())
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return encoder_tokenizer(str(folder))


def test_ids_are_those_of_transformers(folder, tokenizer):
    theirs = HuggingFaceTokenizer(str(folder))
    assert isinstance(tokenizer, XlmrTokenizer) and tokenizer.vocab_size == theirs.vocab_size
    assert tokenizer.encode_batch(TEXTS + ODD) == theirs.encode_batch(TEXTS + ODD)
    assert 3 in tokenizer.encode("Ж ni 12 Ж"), "an unknown character is among them"
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_ids) == (theirs.pad_id, theirs.bos_id, theirs.eos_ids)
    assert special_ids(tokenizer) == special_ids(theirs) == ((0,), (2,))


def test_a_text_cannot_spell_out_a_special_token(tokenizer):
    assert not {0, 1, 2} & set(tokenizer.encode("<s> </s> <pad>"))


@pytest.mark.parametrize(("bulk", "there"), [(1, True), (4096, True), (1, False)])
def test_bulk_encoding_gives_the_same_ids(bulk, there, tokenizer, monkeypatch):
    """From one text on through tensorflow-text; then on the host, as where that package has no wheels."""
    monkeypatch.setattr(corpus, "BULK", bulk)
    if not there:
        monkeypatch.setitem(sys.modules, "tensorflow_text", None)
        monkeypatch.setattr(corpus, "_through_tensorflow", None)
    encoded = corpus.encode_corpus(TEXTS + ODD, tokenizer, 24)
    expected = tokenizer.encode_batch(TEXTS + ODD)
    assert [row[:n].tolist() for row, n in zip(encoded.tokens_NS, encoded.lengths_N, strict=True)] == [
        ids[:24] for ids in expected
    ]
    assert encoded.cut_N.tolist() == [len(ids) > 24 for ids in expected] and encoded.cut_N.any()
    assert (encoded.tokens_NS[np.arange(24)[None] >= encoded.lengths_N[:, None]] == 1).all()


def test_back_to_text(tokenizer):
    assert [tokenizer.decode([0, *tokenizer.encode(text), 2, 1]) for text in TEXTS[:2]] == TEXTS[:2]
    pieces = tokenizer.pieces()
    assert len(pieces) == tokenizer.vocab_size and pieces[:4] == [""] * 4 and pieces[-1] == ""
    assert "".join(pieces[i] for i in tokenizer.encode(TEXTS[0])).strip() == TEXTS[0]


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path))
    again = load_tokenizer(str(tmp_path))
    assert isinstance(again, XlmrTokenizer) and again.fingerprint == tokenizer.fingerprint
    assert again.fingerprint != SentencePieceTokenizer(tokenizer.model_bytes).fingerprint
    for file in ("tokenizer.json", "tokenizer_config.json"):  # of another tokenizer, which would be read before
        (tmp_path / file).write_text("{}")
    tokenizer.save(str(tmp_path))
    assert load_tokenizer(str(tmp_path)).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("file", ["tokenizer.json", "added_tokens.json"])
def test_added_tokens_count(file, folder, tmp_path):
    """A fine-tuned model may have tokens that its SentencePiece model lacks."""
    place = shutil.copytree(folder, tmp_path / "more")
    theirs = HuggingFaceTokenizer(str(folder)).tokenizer
    theirs.add_tokens(["[Q]"])
    if file == "tokenizer.json":
        theirs.backend_tokenizer.save(str(place / file))
    else:
        (place / file).write_text(json.dumps({"[Q]": theirs.convert_tokens_to_ids("[Q]")}))
    found = encoder_tokenizer(str(place)).encode("[Q] Jibu ni 12.")
    assert found == theirs("[Q] Jibu ni 12.", add_special_tokens=False)["input_ids"]
    assert (
        found[0] == theirs.convert_tokens_to_ids("[Q]") == XlmrTokenizer(place / "sentencepiece.bpe.model").vocab_size
    )


def test_another_model_is_refused():
    other = train_sentencepiece(TEXTS * 5, 200)
    with pytest.raises(DataError, match="is not XLM-R's: its <unk>, <s>, </s> have ids"):
        XlmrTokenizer(other.model_bytes)
