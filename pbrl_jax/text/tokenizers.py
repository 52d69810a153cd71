"""Tokenizers with a common protocol: SentencePiece files and Hugging Face folders.

`encode` adds no special tokens; `pbrl_jax.text.prompts.format_prompts` adds the beginning-of-sequence token of a
prompt. Special tokens that are spelled out in a text ("</s>", "<|im_end|>") are encoded as ordinary characters.
"""

import functools
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, SupportsIndex, TypeGuard, runtime_checkable

import sentencepiece
from etils import epath

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.text.hf_tokenizer import HuggingFaceTokenizer, emptied

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
"""Ids of the special pieces of vocabularies that this package trains."""

NUMBER_SYMBOLS = (*".。।?？¿,，", *"一二两三四五六七八九十")
"""Characters that are always separate pieces; otherwise numbers merge with them (`19.` and `19` become unrelated)."""

MODEL_FILE = "tokenizer.model"
XLMR_FILE = "sentencepiece.bpe.model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", MODEL_FILE, XLMR_FILE)
SENTENCEPIECE_RECORD = "pbrl_sentencepiece"
"""Key in tokenizer_config.json: the sha256 of a tokenizer.json that was made from the tokenizer.model in the same
folder."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of tokenizers."""

    vocab_size: int
    """Ids are in [0, vocab_size)."""
    pad_id: int
    eos_ids: tuple[int, ...]
    """Every id that ends a response."""
    bos_id: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special tokens."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as `encode` gives them."""

    def encode_chat(self, messages: Sequence[dict[str, str]], thinking: bool | None = None) -> list[int]:
        """Ids of a conversation up to the assistant's turn, with the special tokens of the chat template.

        `thinking` is the switch of templates that have one (Qwen3's enable_thinking); None is the template's default.
        Templates without the switch ignore it.
        """

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of `ids`, without special tokens."""

    def pieces(self) -> list[str]:
        """Text of every id inside a longer text: with a leading space if the piece begins a word, "" for special
        tokens, U+FFFD for a piece that is not a whole character."""

    @property
    def fingerprint(self) -> str:
        """Hex digest; tokenizers with the same fingerprint give the same ids for every text."""

    def save(self, directory: str) -> None:
        """Write the files that `load_tokenizer(directory)` reads."""


class SentencePieceTokenizer:
    """A SentencePiece model: a local or remote path, or the model's bytes."""

    file_name = MODEL_FILE
    digest_prefix = b""

    def __init__(self, model: str | os.PathLike | bytes):
        self.model_bytes = model if isinstance(model, bytes) else _read_model(model)
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)
        except Exception as error:
            raise DataError(
                f"Not a SentencePiece model: {_shown(model)} ({error}). Give the path of a .model file."
            ) from error
        self.vocab_size = self.processor.vocab_size()
        eos, pad, bos = self.processor.eos_id(), self.processor.pad_id(), self.processor.bos_id()
        if eos < 0:
            raise DataError(f"{_shown(model)} has no end-of-sequence piece; train it with eos_id >= 0.")
        self.eos_ids: tuple[int, ...] = (eos,)
        self.pad_id = pad if pad >= 0 else eos
        self.bos_id = bos if bos >= 0 else None

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.processor.encode(list(texts))

    def encode_chat(self, messages: Sequence[dict[str, str]], thinking: bool | None = None) -> list[int]:
        raise ConfigError("This SentencePiece tokenizer has no chat template. Use the prompt style 'plain'.")

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        # A policy samples from its embedding's rows, of which there may be more than pieces; the others have no text.
        pieces = self.processor.vocab_size()
        return self.processor.decode([int(i) for i in ids if 0 <= int(i) < pieces])

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
        return hashlib.sha256(self.digest_prefix + self.model_bytes).hexdigest()

    def save(self, directory: str) -> None:
        (emptied(directory) / self.file_name).write_bytes(self.model_bytes)


class XlmrTokenizer(SentencePieceTokenizer):
    """XLM-R's vocabulary: a SentencePiece model whose ids are shifted by one, after <s>, <pad>, </s> and <unk>.

    The ids are those of Hugging Face's XLMRobertaTokenizer, except that a special token that is spelled out in a text
    is encoded as characters.
    """

    file_name = XLMR_FILE
    digest_prefix = b"xlm-roberta\0"
    begin_ids, end_ids = (0,), (2,)
    shift, first_piece, unknown = 1, 3, 3
    """Piece i of the model has id i + shift from `first_piece` on; its unknown piece has id `unknown`."""

    def __init__(self, model: str | os.PathLike | bytes):
        super().__init__(model)
        ids = tuple(self.processor.piece_to_id(piece) for piece in ("<unk>", "<s>", "</s>"))
        if ids != (0, 1, 2):
            raise DataError(f"{_shown(model)} is not XLM-R's: its <unk>, <s>, </s> have ids {ids}, expected 0, 1, 2.")
        # <pad> comes before the pieces and <mask> after them.
        self.vocab_size = self.processor.vocab_size() + 2
        self.bos_id, self.pad_id, self.eos_ids = 0, 1, (2,)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        unknown, shift = self.unknown, self.shift
        return [[i + shift if i else unknown for i in ids] for ids in super().encode_batch(texts)]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        end = self.vocab_size - 1
        return super().decode([int(i) - self.shift for i in ids if self.first_piece < int(i) < end])

    def pieces(self) -> list[str]:
        return [""] * 4 + [self._surface(i) for i in range(self.first_piece, self.processor.vocab_size())] + [""]


def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of a `.model` file, a folder, or a hub id.

    A folder with `tokenizer.json` or `tokenizer_config.json` is read by Hugging Face transformers. A folder with only
    `tokenizer.model`, or with a `tokenizer.json` that was exported from it, is read by SentencePiece; a folder with
    only `sentencepiece.bpe.model` is read as XLM-R's.

    Raises:
      ConfigError: `source` is empty, or not a file, a folder or a reachable hub id.
      DataError: the file or folder exists but holds no tokenizer.
    """
    return _tokenizer_of(source)


def _tokenizer_of(source: str, base: str = "") -> Tokenizer:
    """`load_tokenizer`; `base` as HuggingFaceTokenizer takes it."""
    if not source:
        raise ConfigError("No tokenizer given. Set policy.tokenizer to a .model file, a folder, or a hub id.")
    source = os.path.expanduser(str(source))
    path = epath.Path(source)
    if path.is_dir():
        names = {child.name for child in path.iterdir()}
        if names & set(TOKENIZER_FILES[:2]) and not (MODEL_FILE in names and _made_from_sentencepiece(path)):
            return HuggingFaceTokenizer(source, base)
        if MODEL_FILE in names:
            return SentencePieceTokenizer(path / MODEL_FILE)
        if XLMR_FILE in names:
            return XlmrTokenizer(path / XLMR_FILE)
        raise DataError(
            f"No tokenizer in {source!r}: expected tokenizer.json, tokenizer_config.json or {MODEL_FILE}, "
            f"found {', '.join(sorted(names)[:8]) or 'nothing'}."
        )
    if source.endswith((".model", ".spm")) or path.exists():
        return SentencePieceTokenizer(path)
    if not _HUB_ID.fullmatch(source):
        raise ConfigError(f"No tokenizer at {source!r}: no such file or folder, and no hub id (owner/name).")
    return HuggingFaceTokenizer(source)


def _made_from_sentencepiece(folder: epath.Path) -> bool:
    """Whether tokenizer.json was exported from tokenizer.model and not changed since."""
    config, made = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if not (config.exists() and made.exists()):
        return False
    try:
        recorded = json.loads(config.read_text()).get(SENTENCEPIECE_RECORD)
    except (ValueError, AttributeError):
        return False  # not written by this package; transformers will report the error
    return recorded == hashlib.sha256(made.read_bytes()).hexdigest()


def train_sentencepiece(
    sentences: Iterable[str],
    vocab_size: int,
    out_path: str | None = None,
    *,
    user_symbols: Sequence[str] = NUMBER_SYMBOLS,
    byte_fallback: bool = False,
) -> SentencePieceTokenizer:
    """Train a BPE vocabulary; the same sentences in the same order give the same bytes.

    BPE, because unigram splits the frequent short words of a templated corpus; identity normalisation, because NFKC
    decomposes Thai SARA AM, so that no answer phrase would match; a soft vocabulary limit, because a small corpus
    may have fewer pieces. The newline is a separate piece (prompts end with one).

    Args:
      sentences: NFC text, one line each.
      vocab_size: maximum number of pieces, including the four special ones.
      out_path: path of the `.model` file; None writes nothing.
      user_symbols: strings that are always separate pieces.
      byte_fallback: encode unseen characters as bytes; needed for real text, costs 256 ids.

    Raises:
      DataError: no sentences, a sentence that is not NFC, or one that encode and decode change.
    """
    lines = [line for line in sentences if line.strip()]
    if not lines:
        raise DataError("No sentences to train a vocabulary on: every line is empty.")
    for number, line in enumerate(lines):
        if not unicodedata.is_normalized("NFC", line):
            raise DataError(f"Sentence {number} is not NFC: {line[:60]!r}. Apply unicodedata.normalize('NFC', text).")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
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
    tokenizer = SentencePieceTokenizer(model.getvalue())
    check_round_trip(tokenizer, lines[:: max(1, len(lines) // 2000)])
    if out_path is not None:
        path = epath.Path(out_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tokenizer.model_bytes)
    return tokenizer


def check_round_trip(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Raise DataError for the first text that `decode(encode(text))` changes."""
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        decoded = tokenizer.decode(ids)
        if decoded != text:
            raise DataError(
                f"The vocabulary does not give this text back: {text[:80]!r} became {decoded[:80]!r}. "
                "Train it on text of this language, or with byte_fallback=True."
            )


def _shown(model: str | os.PathLike | bytes) -> str:
    return f"{len(model)} bytes" if isinstance(model, bytes) else repr(os.fspath(model))


def _read_model(path: str | os.PathLike) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"No SentencePiece model at {os.fspath(path)!r}: {error}.") from error


class MissingTokenizer:
    """Placeholder for a model folder without a tokenizer: every use raises DataError.

    Such a model can be inspected, converted and exported; it cannot encode or decode text.
    """

    def __init__(self, source: str):
        self.source = source

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise DataError(
            f"{self.source!r} has no tokenizer: none of {', '.join(TOKENIZER_FILES)} is there. Copy its files "
            "into the folder."
        )


def folder_tokenizer(folder: str, source: str, base: str = "") -> Any:
    """The Tokenizer of a local model folder, or a MissingTokenizer; `source` is the user's name of the folder, and
    `base` the folder of an adapter's base."""
    if any(os.path.exists(os.path.join(folder, name)) for name in TOKENIZER_FILES):
        return _tokenizer_of(folder, base)
    return MissingTokenizer(source)


def has_chat_template(tokenizer: Tokenizer) -> TypeGuard[HuggingFaceTokenizer]:
    """Whether `encode_chat` works."""
    return isinstance(tokenizer, HuggingFaceTokenizer) and bool(tokenizer.tokenizer.chat_template)


def pieces_beyond(tokenizer: Tokenizer, limit: int) -> dict[str, int]:
    """Piece -> id of the pieces with id `limit` or above, which an embedding of `limit` rows lacks."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return {piece: i for piece, i in tokenizer.tokenizer.get_vocab().items() if i >= limit}
    pieces = tokenizer.pieces() if tokenizer.vocab_size > limit else []
    return {piece or f"id {i}": i for i, piece in enumerate(pieces) if i >= limit}
