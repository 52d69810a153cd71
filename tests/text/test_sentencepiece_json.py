"""A SentencePiece vocabulary for transformers: the same ids, read by transformers' own AutoTokenizer."""

import io
import json

import pytest
import sentencepiece

from pbrl_jax.data.sources import quickstart
from pbrl_jax.text.sentencepiece_json import convert, write_tokenizer_json
from pbrl_jax.text.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
    train_sentencepiece,
)

OPTIONS = {"the task's": {"user_symbols": quickstart.USER_SYMBOLS}, "any text's": {"byte_fallback": True}}


@pytest.fixture(scope="module")
def lines():
    return quickstart.vocabulary_text(quickstart.LANGUAGES, 0, 40)


def transformers_tokenizer(folder, model_type: str, **settings):
    from transformers import AutoTokenizer

    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return AutoTokenizer.from_pretrained(str(folder), **settings)


@pytest.mark.parametrize("name", OPTIONS)
def test_transformers_reads_the_same_ids(lines, tmp_path, name):
    tokenizer = train_sentencepiece(lines, 1500, **OPTIONS[name])
    tokenizer.save(str(tmp_path))
    texts = [*lines[::7], "", " two  spaces\n\n1 and 23", "ж水🙂 unseen", "\u2581"]
    for model_type in ("llama", "qwen3", "mistral", "gemma3_text", "qwen2"):
        assert write_tokenizer_json(tokenizer, tmp_path, model_type=model_type) == ""
        theirs = transformers_tokenizer(tmp_path, model_type)
        assert theirs(texts, add_special_tokens=False)["input_ids"] == tokenizer.encode_batch(texts)
        assert theirs("12")["input_ids"] == [tokenizer.bos_id, *tokenizer.encode("12")], "one beginning of sequence"
        assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2, 3)
        assert len(theirs) == tokenizer.vocab_size
        for ids in tokenizer.encode_batch(texts[:40]):
            assert theirs.decode([1, *ids, 2], skip_special_tokens=True) == tokenizer.decode(ids)
    ours = load_tokenizer(str(tmp_path))
    assert type(ours) is SentencePieceTokenizer and ours.fingerprint == tokenizer.fingerprint
    changed = (tmp_path / "tokenizer.json").read_text().replace('"</s>"', '"</t>"')
    (tmp_path / "tokenizer.json").write_text(changed)
    assert type(load_tokenizer(str(tmp_path))) is HuggingFaceTokenizer, "somebody has changed it since"


def test_the_class_that_stands_above_qwen2s(lines, tmp_path, monkeypatch):
    """Its own class cuts text in Qwen's way, to other ids; ours is read whether or not a folder's code may be run."""
    tokenizer = train_sentencepiece(lines, 600, byte_fallback=True)
    tokenizer.save(str(tmp_path))
    texts = ["12 tufaha na 345.", *lines[:20]]
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for model_type, same in (("", False), ("qwen2", True)):
        write_tokenizer_json(tokenizer, tmp_path, model_type=model_type)
        found = transformers_tokenizer(tmp_path, "qwen2")(texts, add_special_tokens=False)["input_ids"]
        assert (found == tokenizer.encode_batch(texts)) == same
    trusted = transformers_tokenizer(tmp_path, "qwen2", trust_remote_code=True)
    assert type(trusted).__name__ == "SentencePieceTokenizerFast"
    assert trusted(texts, add_special_tokens=False)["input_ids"] == tokenizer.encode_batch(texts)


def trained(lines, **options) -> SentencePieceTokenizer:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, minloglevel=2, num_threads=1, hard_vocab_limit=False,
        vocab_size=400, **options,
    )  # fmt: skip
    return SentencePieceTokenizer(written.getvalue())


def test_other_peoples_models(lines, tmp_path):
    """Unigram with NFKC, as most released models have it; what cannot be converted is not written, and says why."""
    lines = [line for line in lines if line.isascii()]
    unigram = trained(lines, model_type="unigram")
    core, problem = convert(unigram)
    assert problem == "" and [one.ids for one in core.encode_batch(lines, add_special_tokens=False)] == (
        unigram.encode_batch(lines)
    )
    characters = trained(lines, model_type="char")
    (tmp_path / "tokenizer.json").write_text("of another model")
    assert write_tokenizer_json(characters, tmp_path) == "its model is neither BPE nor unigram"
    assert not list(tmp_path.iterdir())
