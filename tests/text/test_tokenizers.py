"""Vocabularies: round trips in every language, special tokens, files, and Hugging Face folders without torch."""

import json
import shutil
import unicodedata

import pytest
from tokenizers import AddedToken

from pbrl_jax.core.errors import ConfigError, DataError, PbrlError
from pbrl_jax.data.sources import quickstart
from pbrl_jax.text import tokenizers
from pbrl_jax.text.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    check_round_trip,
    load_tokenizer,
    train_sentencepiece,
)

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "<|im_start|>assistant\n"
)
REAL_SENTENCES = [
    "Natalia sold clips to 48 of her friends.",
    "ナタリアさんは4月に48人の友達にクリップを売りました。",
    "คำตอบคือ 12 บาท",
    "জেনেটের হাঁস প্রতিদিন 16টি ডিম পাড়ে।",
    "డజను గుడ్లు",
    "Câu trả lời là 18.",
    "Сколько зажимов?",
    "الإجابة هي 18.",
]


@pytest.fixture(scope="module")
def sentences():
    both = (quickstart.question, quickstart.response)
    return [make(p, c) for p in quickstart.problems("sft", 300, seed=0) for c in quickstart.LANGUAGES for make in both]


@pytest.fixture(scope="module")
def trained(sentences):
    return train_sentencepiece(sentences, 1500, user_symbols=quickstart.USER_SYMBOLS)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """A byte-level BPE tokenizer as model repositories hold it, with two stop ids and a chat template."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        REAL_SENTENCES * 3,
        trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    fast.chat_template = CHAT
    folder = tmp_path_factory.mktemp("hub")
    fast.save_pretrained(folder)
    stops = [fast.convert_tokens_to_ids("</s>"), fast.convert_tokens_to_ids("<|im_end|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return folder


def test_special_ids_are_fixed(trained):
    assert (trained.pad_id, trained.bos_id, trained.eos_ids) == (0, 1, (2,))
    assert isinstance(trained, Tokenizer)


@pytest.mark.parametrize("code", quickstart.LANGUAGES)
def test_every_language_survives_encode_and_decode(trained, code):
    unseen = quickstart.problems("test", 100, seed=1)
    texts = [quickstart.question(p, code) for p in unseen] + [quickstart.response(p, code) for p in unseen]
    texts += [f"{text}\n" for text in texts[:20]] + ["  two  spaces  "]
    check_round_trip(trained, texts)
    for text, ids in zip(texts, trained.encode_batch(texts), strict=True):
        assert trained.encode(text) == ids
        assert trained.decode(ids) == text
        assert tokenizers.UNK_ID not in ids or "two" in text


def test_specials_are_not_encoded_and_not_decoded(trained):
    ids = trained.encode("Jibu ni 12.")
    assert not {0, 1, 2} & set(ids)
    assert trained.decode([1, *ids, 2, 0, 0]) == "Jibu ni 12."
    assert not {0, 1, 2} & set(trained.encode("</s> <s> <pad>"))


def test_ids_without_a_piece_have_no_text(trained):
    """An embedding may be padded beyond the vocabulary, and its last rows are sampled, too."""
    ids = trained.encode("12")
    assert trained.decode([*ids, trained.vocab_size, trained.vocab_size + 7]) == "12"


def test_numbers_are_single_pieces_and_never_join_their_neighbours(trained):
    pieces = trained.pieces()
    for text in ("Jibu ni 12.", "答案是 12。", "উত্তর হল 12।", "คำตอบคือ 12"):
        assert " 12" in [pieces[i] for i in trained.encode(text)]


def test_pieces_spell_the_text(trained):
    pieces = trained.pieces()
    assert len(pieces) == trained.vocab_size
    assert pieces[:4] == ["", "", "", ""]
    text = "Juma ana pakiti nne."
    assert "".join(pieces[i] for i in trained.encode(text)) == " " + text


def test_training_is_deterministic_and_files_come_back(sentences, trained, tmp_path):
    path = tmp_path / "deep" / "words.model"
    again = train_sentencepiece(sentences, 1500, str(path), user_symbols=quickstart.USER_SYMBOLS)
    assert again.model_bytes == trained.model_bytes == path.read_bytes()
    trained.save(str(tmp_path / "folder"))
    loaded = [load_tokenizer(str(path)), load_tokenizer(str(tmp_path / "folder"))]
    assert {tokenizer.fingerprint for tokenizer in loaded} == {trained.fingerprint}
    assert train_sentencepiece(sentences, 1400, user_symbols=()).fingerprint != trained.fingerprint


def test_a_vocabulary_larger_than_the_text_gives_is_no_error():
    small = train_sentencepiece(["Jibu ni 12."] * 20, 5000)
    assert small.vocab_size < 5000
    assert small.decode(small.encode("Jibu ni 12.")) == "Jibu ni 12."


def test_byte_fallback_spells_what_was_never_seen():
    closed = train_sentencepiece(REAL_SENTENCES[:1] * 20, 200)
    with pytest.raises(DataError, match="does not give this text back"):
        check_round_trip(closed, ["東京"])
    check_round_trip(train_sentencepiece(REAL_SENTENCES[:1] * 20, 500, byte_fallback=True), ["東京", *REAL_SENTENCES])


@pytest.mark.parametrize(
    ("sentences", "size", "error", "message"),
    [
        ([], 100, DataError, "No sentences"),
        (["", "  "], 100, DataError, "No sentences"),
        ([unicodedata.normalize("NFD", "Réponse")], 100, DataError, "Sentence 0 is not NFC"),
        (["abcdefghijklmnopqrstuvwxyz"], 30, ConfigError, "vocab_size=30"),
    ],
)
def test_training_refuses(sentences, size, error, message):
    with pytest.raises(error, match=message):
        train_sentencepiece(sentences, size)


def test_a_hub_folder_needs_no_torch_and_no_network(hub_folder):
    tokenizer = load_tokenizer(str(hub_folder))
    assert isinstance(tokenizer, HuggingFaceTokenizer) and isinstance(tokenizer, Tokenizer)
    assert tokenizer.bos_id == 0 and tokenizer.eos_ids == (1, 3) and tokenizer.pad_id == 4
    for text in REAL_SENTENCES:
        assert tokenizer.decode([0, *tokenizer.encode(text), 1, 4]) == text
    assert tokenizer.encode_batch(REAL_SENTENCES) == [tokenizer.encode(text) for text in REAL_SENTENCES]
    assert tokenizer.encode_batch([]) == []


def test_a_spelled_out_special_is_plain_text(hub_folder):
    tokenizer = load_tokenizer(str(hub_folder))
    ids = tokenizer.encode("</s><|im_end|>")
    assert not {0, 1, 2, 3, 4} & set(ids)
    assert tokenizer.decode(ids) == "</s><|im_end|>"


def test_hub_pieces_spell_the_text(hub_folder):
    tokenizer = load_tokenizer(str(hub_folder))
    pieces = tokenizer.pieces()
    assert len(pieces) == tokenizer.vocab_size and pieces[:5] == [""] * 5
    text = REAL_SENTENCES[0]
    assert "".join(pieces[i] for i in tokenizer.encode(text)) == text
    assert "\ufffd" in "".join(pieces)
    tokenizer.tokenizer.add_tokens([AddedToken("<|reserved_0|>", special=True)])
    tokenizer.vocab_size += 1
    assert tokenizer.pieces()[-1] == "", "a special token without a role"


def test_the_chat_template_is_applied(hub_folder, trained):
    tokenizer = load_tokenizer(str(hub_folder))
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi </s>"}])
    assert ids[:2] == [0, 2] and ids.count(2) == 2 and ids.count(3) == 1
    with pytest.raises(ConfigError, match="no chat template"):
        trained.encode_chat([{"role": "user", "content": "hi"}])


def test_a_chat_template_of_the_processor_alone_is_read(hub_folder, tmp_path):
    """Mistral Small 3.1 and others have chat_template.json, which AutoTokenizer does not read."""
    folder = shutil.copytree(hub_folder, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    messages = [{"role": "user", "content": "hi"}]
    expected = load_tokenizer(str(hub_folder)).encode_chat(messages)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.encode_chat(messages) == expected
    tokenizer.save(str(tmp_path / "again"))
    assert load_tokenizer(str(tmp_path / "again")).encode_chat(messages) == expected


def test_a_saved_hub_tokenizer_keeps_its_stop_ids(hub_folder, tmp_path):
    tokenizer = load_tokenizer(str(hub_folder))
    tokenizer.save(str(tmp_path))
    again = load_tokenizer(str(tmp_path))
    assert (again.fingerprint, again.eos_ids) == (tokenizer.fingerprint, (1, 3))


def test_without_generation_settings_the_models_own_stop_ids_count(hub_folder, tmp_path):
    """As in transformers; an id that is no special token stops nothing."""
    folder = shutil.copytree(hub_folder, tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": [1, 3, 9, 900]}')
    assert load_tokenizer(str(folder)).eos_ids == (1, 3)
    (folder / "generation_config.json").unlink()
    assert load_tokenizer(str(folder)).eos_ids == (1, 3)
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 9}')
    assert load_tokenizer(str(folder)).eos_ids == (1,)


@pytest.mark.parametrize(
    ("tokenizer_class", "model_type"),
    [("GPT2Tokenizer", "llama"), ("GPT2Tokenizer", None), ("LlamaTokenizer", "qwen2"), ("GemmaTokenizer", "qwen3")],
)
def test_ids_are_those_of_tokenizer_json_whatever_class_is_named(hub_folder, tokenizer_class, model_type, tmp_path):
    """transformers 5 builds the parts of several classes anew; a model was trained with those of the file."""
    from tokenizers import Regex, pre_tokenizers
    from tokenizers import Tokenizer as Core

    folder = shutil.copytree(hub_folder, tmp_path / "model")
    core = Core.from_file(str(folder / "tokenizer.json"))
    digits = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}{1,3}|[^\p{L}\p{N}]"), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of])
    core.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": tokenizer_class}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = load_tokenizer(str(folder))
    expected = [core.encode(text, add_special_tokens=False).ids for text in REAL_SENTENCES]
    assert tokenizer.encode_batch(REAL_SENTENCES) == expected
    assert [tokenizer.decode(ids) for ids in expected] == REAL_SENTENCES
    # The class's own <|endoftext|> or <unk> would have no embedding; a token that the settings name has one.
    assert tokenizer.tokenizer.get_vocab() == core.get_vocab()
    settings["pad_token"] = "<|new|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    again, new = load_tokenizer(str(folder)), core.get_vocab_size()
    assert again.tokenizer.get_vocab() == core.get_vocab() | {"<|new|>": new}
    assert again.pad_id == new and again._ids("<|new|>") == [new] and new not in again.encode("<|new|>")


def test_a_saved_tokenizer_leaves_an_existing_generation_config(hub_folder, tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3], "top_p": 0.9}')
    load_tokenizer(str(hub_folder)).save(str(tmp_path))
    assert json.loads((tmp_path / "generation_config.json").read_text())["top_p"] == 0.9


def test_a_wrong_source_says_what_was_expected(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="No tokenizer given"):
        load_tokenizer("")
    with pytest.raises(DataError, match="found nothing"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(DataError, match="No SentencePiece model"):
        load_tokenizer(str(tmp_path / "none.model"))
    with pytest.raises(ConfigError, match="no hub id"):
        load_tokenizer(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="hub id such as"):
        load_tokenizer("no-such-owner/no-such-model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(DataError, match="Not a SentencePiece model"):
        SentencePieceTokenizer(str(tmp_path / "bad.model"))


def damaged(folder, target, name: str, change):
    """A copy of a folder in which `change` edits the JSON of one file, or gives its bytes."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    if isinstance(change, bytes):
        (target / name).write_bytes(change)
        return target
    content = json.loads((target / name).read_text())
    content.update(change)
    (target / name).write_text(json.dumps(content))
    return target


NOT_JSON = (b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}")


@pytest.mark.parametrize(
    "name, change",
    [
        *(("tokenizer.json", content) for content in NOT_JSON),
        *(("tokenizer_config.json", content) for content in (b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000)),
        *(("generation_config.json", content) for content in (b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000)),
        *(("tokenizer.json", {"model": model}) for model in (
            None, {}, {"type": "BPE"}, {"type": "Strange"}, {"type": "BPE", "vocab": {"a": -1}, "merges": []},
            {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}, {"type": "WordLevel", "vocab": {"a": 0}},
            {"type": "Unigram", "vocab": []}, {"type": "BPE", "vocab": [], "merges": 3},
        )),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Strange"}}),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}}),
        ("tokenizer.json", {"added_tokens": [3]}), ("tokenizer.json", {"decoder": {"type": "Strange"}}),
        ("tokenizer_config.json", {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["x.Y", None]}}),
        ("tokenizer_config.json", {"eos_token": {"content": 3}}), ("tokenizer_config.json", {"eos_token": [1]}),
        *(("generation_config.json", {"eos_token_id": found}) for found in (
            "2", [1, "x"], -1, [10**9], 10**30, 1.5, True, [[1]], {"a": 1},
        )),
    ],
)  # fmt: skip
def test_a_broken_tokenizer_is_one_message(name, change, hub_folder, tmp_path, monkeypatch):
    """Some damages the library mends or does not read: then the tokenizer works. It never asks on a terminal."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    folder = damaged(hub_folder, tmp_path / "damaged", name, change)
    try:
        tokenizer = load_tokenizer(str(folder))
        tokenizer.decode(tokenizer.encode("Jibu ni 4."))
        tokenizer.pieces()
    except PbrlError as error:
        assert "damaged" in str(error) or "Download its files again" in str(error)
        assert len(str(error)) < 600
    else:
        assert name != "generation_config.json" and change not in NOT_JSON[:3]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}", "{{ messages[0].content.nothing.more }}", "{{ 1 / 0 }}", "{{ messages[9]['role'] }}",
        "{{ raise_exception('no') }}", "{{ none() }}", "{% include 'x' %}", "{{ ''.__class__.__mro__ }}",
        "{% for i in range(10 ** 9) %}{% endfor %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages | strange }}", "{{ strftime_now('%Q\ud800') }}",
    ],
)  # fmt: skip
def test_a_broken_chat_template_is_one_message(template, hub_folder):
    tokenizer = load_tokenizer(str(hub_folder))
    tokenizer.tokenizer.chat_template = template
    with pytest.raises(ConfigError, match="The chat template refuses this conversation"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])
