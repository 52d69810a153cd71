"""Tokenizers behind one small protocol: SentencePiece files and Hugging Face folders.

A policy never sees text and a reward never sees policy ids without passing through one of these. `encode` adds no
special token of any kind; who needs a beginning-of-sequence token asks `pbrl_jax.text.prompts.format_prompt`.
Special tokens that a user or a policy spells out ("</s>", "<|im_end|>") are ordinary characters here.
"""

import functools
import hashlib
import io
import json
import logging
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Protocol, SupportsIndex, runtime_checkable

import sentencepiece
from etils import epath

from pbrl_jax.core.errors import ConfigError, DataError

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
"""Ids of the special pieces of every vocabulary that this package trains."""

NUMBER_SYMBOLS = (*".。।?？¿,，", *"一二两三四五六七八九十")
"""Characters that must stay pieces of their own, or numbers fuse with them (`19.` and `19` become unrelated)."""

MODEL_FILE = "tokenizer.model"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer."""

    vocab_size: int
    """Ids are in [0, vocab_size)."""
    pad_id: int
    eos_ids: tuple[int, ...]
    """Every id that ends a response."""
    bos_id: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special tokens."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in their order."""

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation that awaits the assistant's turn, with the special tokens of the chat template."""

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of `ids`; special tokens leave nothing behind."""

    def pieces(self) -> list[str]:
        """Surface text of every id inside a running text: a leading space where the piece begins a word, "" for
        special tokens, U+FFFD for a piece that is no whole character."""

    @property
    def fingerprint(self) -> str:
        """Hex digest; two tokenizers with one fingerprint give the same ids for every text."""

    def save(self, directory: str) -> None:
        """Writes what `load_tokenizer(directory)` reads back."""


class SentencePieceTokenizer:
    """A SentencePiece model: a file, a path on remote storage, or the model's own bytes."""

    def __init__(self, model: str | os.PathLike | bytes):
        self.model_bytes = model if isinstance(model, bytes) else _read_model(model)
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)
        except Exception as error:
            what = f"Not a SentencePiece model: {_shown(model)} ({error})."
            raise DataError(f"{what} Give the path of a .model file.") from error
        self.vocab_size = self.processor.vocab_size()
        eos, pad, bos = self.processor.eos_id(), self.processor.pad_id(), self.processor.bos_id()
        if eos < 0:
            raise DataError(f"{_shown(model)} has no end-of-sequence piece; train it with eos_id >= 0.")
        self.eos_ids = (eos,)
        self.pad_id = pad if pad >= 0 else eos
        self.bos_id = bos if bos >= 0 else None

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.processor.encode(list(texts))

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        raise ConfigError("This SentencePiece tokenizer has no chat template. Use the prompt style 'plain'.")

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return self.processor.decode([int(i) for i in ids])

    def pieces(self) -> list[str]:
        return [self._surface(i) for i in range(self.vocab_size)]

    def _surface(self, i: int) -> str:
        if self.processor.is_control(i) or self.processor.is_unknown(i):
            return ""
        piece = self.processor.id_to_piece(i)
        if self.processor.is_byte(i):
            byte = int(piece[3:5], 16)
            return chr(byte) if byte < 128 else "\ufffd"
        return piece.replace("\u2581", " ")

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model_bytes).hexdigest()

    def save(self, directory: str) -> None:
        folder = epath.Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self.model_bytes)


class HuggingFaceTokenizer:
    """A `transformers` tokenizer: a folder or a hub id (`HF_TOKEN` for gated ones). Torch is not needed."""

    def __init__(self, source: str):
        with _local_folder(source) as local:
            self.tokenizer = _auto_tokenizer(local, source)
            self.eos_ids = _stop_ids(self.tokenizer, local)
        self.vocab_size = len(self.tokenizer)
        self.bos_id = self.tokenizer.bos_token_id
        pad = self.tokenizer.pad_token_id
        if not self.eos_ids and pad is None:
            raise DataError(f"The tokenizer of {source!r} has neither an end-of-sequence nor a padding token.")
        self.pad_id = self.eos_ids[0] if pad is None else pad

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        # Specials that the text spells out are split like any word: neither a data set nor a policy may inject one.
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        if not self.tokenizer.chat_template:
            raise ConfigError("This tokenizer has no chat template. Use the prompt style 'plain'.")
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        plain = [int(i) for i in ids]
        return self.tokenizer.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pieces(self) -> list[str]:
        specials = set(self.tokenizer.all_special_ids)
        # A piece is read behind another one: alone, many decoders drop its leading space.
        anchor = self.encode("a")[-1]
        decode = functools.partial(self.tokenizer.decode, clean_up_tokenization_spaces=False)
        start = len(decode([anchor]))
        return ["" if i in specials else decode([anchor, i])[start:] for i in range(self.vocab_size)]

    @functools.cached_property
    def fingerprint(self) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        core = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        parts = (core, repr(self.eos_ids), repr(self.tokenizer.chat_template))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def save(self, directory: str) -> None:
        folder = epath.Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as local:
            self.tokenizer.save_pretrained(local)
            with open(os.path.join(local, "generation_config.json"), "w", encoding="utf-8") as file:
                json.dump({"eos_token_id": list(self.eos_ids)}, file)
            for name in sorted(os.listdir(local)):
                target = folder / name
                if name == "generation_config.json" and target.exists():
                    continue
                target.write_bytes(epath.Path(local, name).read_bytes())


def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of a `.model` file, a folder, or a hub id.

    A folder with `tokenizer.json` or `tokenizer_config.json` is a Hugging Face one; a folder with only
    `tokenizer.model` is SentencePiece (what `save` and `train_sentencepiece` write).

    Raises:
      ConfigError: `source` is empty, or neither a file, a folder, nor a reachable hub id.
      DataError: the file or folder exists but holds no tokenizer.
    """
    if not source:
        raise ConfigError("No tokenizer given. Set policy.tokenizer to a .model file, a folder, or a hub id.")
    path = epath.Path(source)
    if path.is_dir():
        names = {child.name for child in path.iterdir()}
        if names & {"tokenizer.json", "tokenizer_config.json"}:
            return HuggingFaceTokenizer(str(source))
        if MODEL_FILE in names:
            return SentencePieceTokenizer(path / MODEL_FILE)
        raise DataError(
            f"No tokenizer in {source!r}: expected tokenizer.json, tokenizer_config.json or {MODEL_FILE}, "
            f"found {', '.join(sorted(names)[:8]) or 'nothing'}."
        )
    if str(source).endswith((".model", ".spm")) or path.exists():
        return SentencePieceTokenizer(path)
    if not _HUB_ID.fullmatch(str(source)):
        raise ConfigError(f"No tokenizer at {source!r}: no such file or folder, and no hub id (owner/name).")
    return HuggingFaceTokenizer(str(source))


def train_sentencepiece(
    sentences: Iterable[str],
    vocab_size: int,
    out_path: str | None = None,
    *,
    user_symbols: Sequence[str] = NUMBER_SYMBOLS,
    byte_fallback: bool = False,
) -> SentencePieceTokenizer:
    """Trains a BPE vocabulary; the same sentences in the same order give the same bytes.

    BPE, because unigram breaks the frequent short words of a templated corpus; identity normalisation, because NFKC
    takes Thai SARA AM apart, after which no answer phrase matches; a soft vocabulary limit, because a small corpus
    has fewer pieces than asked for. The newline is a piece of its own (prompts end in one).

    Args:
      sentences: NFC text, one line each.
      vocab_size: pieces wanted, the four special ones included; fewer when the corpus does not give them.
      out_path: where the `.model` file is written; None writes nothing.
      user_symbols: strings that are always pieces of their own.
      byte_fallback: spell unseen characters in bytes; needed for real text, a waste of 256 ids for closed corpora.

    Raises:
      DataError: no sentences, a sentence that is not NFC, or one that does not survive encode and decode.
    """
    lines = [line for line in sentences if line.strip()]
    if not lines:
        raise DataError("No sentences to train a vocabulary on: every line is empty.")
    for number, line in enumerate(lines):
        if not unicodedata.is_normalized("NFC", line):
            raise DataError(f"Sentence {number} is not NFC: {line[:60]!r}. Apply unicodedata.normalize('NFC', text).")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=1.0,
            byte_fallback=byte_fallback,
            user_defined_symbols=["\n", *dict.fromkeys(user_symbols)],
            max_sentence_length=1 << 20,
            num_threads=1,
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(f"data.vocab_size={vocab_size} cannot hold every character of the text: {error}") from error
    tokenizer = SentencePieceTokenizer(written.getvalue())
    check_round_trip(tokenizer, lines[:: max(1, len(lines) // 2000)])
    if out_path is not None:
        path = epath.Path(out_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tokenizer.model_bytes)
    return tokenizer


def check_round_trip(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Raises DataError for the first text that `decode(encode(text))` changes."""
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        back = tokenizer.decode(ids)
        if back != text:
            raise DataError(
                f"The vocabulary does not give this text back: {text[:80]!r} became {back[:80]!r}. "
                "Train it on text of this language, or with byte_fallback=True."
            )


def _shown(model: str | os.PathLike | bytes) -> str:
    return f"{len(model)} bytes" if isinstance(model, bytes) else repr(os.fspath(model))


def _read_model(path: str | os.PathLike) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"No SentencePiece model at {os.fspath(path)!r}: {error}.") from error


class _local_folder:
    """`with _local_folder(source) as local`: a remote folder's small files copied here; anything else as it is."""

    def __init__(self, source: str):
        self.source, self.temporary = source, None

    def __enter__(self) -> str:
        if "://" not in self.source:
            return self.source
        self.temporary = tempfile.TemporaryDirectory()
        for child in epath.Path(self.source).iterdir():
            if child.suffix in (".json", ".model", ".txt", ".jinja"):
                epath.Path(self.temporary.name, child.name).write_bytes(child.read_bytes())
        return self.temporary.name

    def __exit__(self, *_) -> None:
        if self.temporary is not None:
            self.temporary.cleanup()


def _transformers():
    """The package, without its advice to install a deep-learning framework."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    import transformers

    logger.setLevel(level)
    return transformers


def _auto_tokenizer(local: str, source: str):
    transformers = _transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(local)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"No tokenizer found for {source!r}: {first} Expected a .model file, a folder with tokenizer.json, or a "
            "hub id such as Qwen/Qwen3-0.6B (set HF_TOKEN for gated ones; offline, give the folder of a download)."
        ) from error


def _stop_ids(tokenizer, local: str) -> tuple[int, ...]:
    """The tokenizer's end of sequence first, then every further one of `generation_config.json`."""
    from transformers.utils import cached_file

    found = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    path = cached_file(local, "generation_config.json", _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)
    if path is not None:
        with open(path, encoding="utf-8") as file:
            more = json.load(file).get("eos_token_id")
        found += more if isinstance(more, list) else [] if more is None else [more]
    return tuple(dict.fromkeys(found))
