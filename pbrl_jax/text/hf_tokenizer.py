"""Tokenizers of Hugging Face models: `tokenizer.json`, the chat template, and what ends a response. No torch."""

import contextlib
import datetime
import functools
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

from etils import epath

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.paths import parse_json

#: No tokenizer has so many tokens.
LARGEST_VOCABULARY = 2**24
GENERATION_CONFIG = "generation_config.json"
TEMPLATE_DATE = datetime.datetime(2024, 7, 26)
"""The day that a chat template is told where it asks for today's (Llama 3.1 and 3.2): the default that those templates
name. A run asks the same prompts on every day."""
TODAY = re.compile(r"strftime_now\(\s*(?:format\s*=\s*)?(['\"])(.*?)\1\s*\)")
TOKENIZER_FILE = re.compile(
    r"(tokenizer(_config)?|special_tokens_map|added_tokens|vocab|chat_template)\.json|vocab\.txt|merges\.txt|.*\.model"
    r"|chat_template\.jinja"
)
STAND_IN = "\ue000"
"""A character of private use, which no text holds."""


class HuggingFaceTokenizer:
    """A `transformers` tokenizer: a folder or a hub id (`HF_TOKEN` for gated ones). Torch is not needed."""

    def __init__(self, source: str):
        with _local_folder(source) as local:
            self.tokenizer = _auto_tokenizer(local, source)
            self.generation_config = _generation_config(local)
            self.files = _tokenizer_files(local)
        self._loaded_template = self.tokenizer.chat_template
        vocabulary = self.tokenizer.get_vocab()
        if not vocabulary:
            raise DataError(f"The tokenizer of {source!r} has no tokens. Download its files again.")
        self.vocab_size = 1 + max(vocabulary.values())
        self.eos_ids = _stop_ids(self.tokenizer, self.generation_config, source)
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
        return self._ids(list(texts), split_special_tokens=True)

    def _ids(self, texts: str | list[str], **options: bool) -> Any:
        try:
            return self.tokenizer(texts, add_special_tokens=False, **options)["input_ids"]
        except Exception as error:  # the library raises plain ones
            raise DataError(f"The tokenizer cannot read a text: {error}. Download its files again.") from error

    def encode_chat(self, messages: Sequence[dict[str, str]], thinking: bool | None = None) -> list[int]:
        if not self.tokenizer.chat_template:
            raise ConfigError("This tokenizer has no chat template. Use the prompt style 'plain'.")
        switch = {} if thinking is None else {"enable_thinking": thinking}
        contents = [message["content"] for message in messages]
        if not any(special in content for special in self._specials for content in contents):
            text = self._chat_text(list(messages), switch)
            return self._ids(text)
        # A special token that somebody spelled must stay plain text: the template is rendered around stand-ins.
        stands = [f"{STAND_IN}{number}{STAND_IN}" for number in range(len(contents))]
        text = self._chat_text([{**m, "content": stand} for m, stand in zip(messages, stands, strict=True)], switch)
        ids: list[int] = []
        for part in re.split(f"({'|'.join(stands)})", text):
            if part in stands:
                ids += self.encode(contents[stands.index(part)].strip())
            elif part:
                ids += self._ids(part)
        return ids

    @functools.cached_property
    def _specials(self) -> tuple[str, ...]:
        """Every special token that an unguarded text would be searched for."""
        added = {piece.content for piece in self.tokenizer.added_tokens_decoder.values() if piece.special}
        return tuple({*added, *self.tokenizer.all_special_tokens})

    def _chat_text(self, messages: list[dict[str, str]], switch: dict) -> str:
        """The template's text, with contents as lists of parts where it reads them so; where it knows no system turn
        (Gemma 1, Mistral), the user's turn begins with it."""
        from jinja2.exceptions import TemplateError

        def render(turns: list[dict[str, Any]]) -> str:
            template = dated(self.tokenizer.get_chat_template())
            return self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, chat_template=template, **switch
            )

        text, failed = "", None
        try:
            text = render(messages)
        except Exception as error:  # a template is code and may raise anything
            failed = error
        if failed or not holds(text, messages):
            with contextlib.suppress(Exception):
                other = render([{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages])
                if holds(other, messages):
                    return other
        if failed is None:
            return text
        if not isinstance(failed, TemplateError) or messages[0]["role"] != "system" or len(messages) < 2:
            raise ConfigError(f"The chat template refuses this conversation: {failed}.") from failed
        system, user, *rest = messages
        both = "\n\n".join((system["content"], user["content"]))
        return self._chat_text([{**user, "content": both}, *rest], switch)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        plain = [int(i) for i in ids]
        return self.tokenizer.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pieces(self) -> list[str]:
        specials = set(self.tokenizer.all_special_ids)
        # A piece is read behind another one: alone, many decoders drop its leading space.
        anchor = self.encode("a")[-1:]
        decode = functools.partial(self.tokenizer.decode, clean_up_tokenization_spaces=False)
        start = len(decode(anchor))
        return ["" if i in specials else decode([*anchor, i])[start:] for i in range(self.vocab_size)]

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
            if self.files and self.tokenizer.chat_template == self._loaded_template:
                for name, content in self.files.items():  # what another version would write, older ones may not read
                    epath.Path(local, name).write_bytes(content)
            else:
                self.tokenizer.save_pretrained(local)
            settings = {**self.generation_config, "eos_token_id": list(self.eos_ids)}
            with open(os.path.join(local, GENERATION_CONFIG), "w", encoding="utf-8") as file:
                json.dump(settings, file, indent=2)
            for name in sorted(os.listdir(local)):
                target = folder / name
                if name == GENERATION_CONFIG and target.exists():
                    continue
                target.write_bytes(epath.Path(local, name).read_bytes())


def _tokenizer_files(folder: str) -> dict[str, bytes]:
    """Name -> content of the files of a local folder from which a tokenizer was read; {} where it is a hub id."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return {name: epath.Path(folder, name).read_bytes() for name in names if TOKENIZER_FILE.fullmatch(name)}


def dated(template: str) -> str:
    """A chat template that writes TEMPLATE_DATE for today's date."""
    return TODAY.sub(lambda call: repr(TEMPLATE_DATE.strftime(call[2])), template)


def holds(text: str, messages: Iterable[dict[str, str]]) -> bool:
    """Whether a rendered conversation has the contents of all messages."""
    return all(message["content"].strip() in text for message in messages)


class _local_folder:
    """`with _local_folder(source) as local`: a remote folder's small files copied here; anything else as it is."""

    def __init__(self, source: str):
        self.source = source
        self.temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> str:
        if "://" not in self.source:
            return self.source
        self.temporary = folder = tempfile.TemporaryDirectory()
        for child in epath.Path(self.source).iterdir():
            if child.suffix in (".json", ".model", ".txt", ".jinja"):
                epath.Path(folder.name, child.name).write_bytes(child.read_bytes())
        return folder.name

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
        return transformers.AutoTokenizer.from_pretrained(local, trust_remote_code=False)
    except Exception as error:  # the library raises plain ones
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"No tokenizer found for {source!r}: {first} Expected a .model file, a folder with tokenizer.json, or a "
            "hub id such as Qwen/Qwen3-0.6B (set HF_TOKEN for gated ones; offline, give the folder of a download)."
        ) from error


def _generation_config(local: str) -> dict:
    """`generation_config.json` of a folder or hub id; {} where there is none.

    Raises:
      DataError: it is not a JSON object.
    """
    from transformers.utils import cached_file

    path = cached_file(local, GENERATION_CONFIG, _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)  # fmt: skip
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            found = parse_json(file.read())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Download the file again.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}, expected an object. Download the file again.")
    return found


def _stop_ids(tokenizer, generation_config: dict, source: str) -> tuple[int, ...]:
    """The tokenizer's end of sequence first, then every further one of `generation_config.json`.

    Raises:
      DataError: one that cannot be a token's.
    """
    found = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    more = generation_config.get("eos_token_id")
    found += more if isinstance(more, list) else [] if more is None else [more]
    # Whether the model has an embedding of each is checked where the model is (weights.folders.check_vocabulary).
    wrong = [one for one in found if not (type(one) is int and 0 <= one < LARGEST_VOCABULARY)]
    if wrong:
        raise DataError(
            f"{source!r} stops at the id {wrong[0]!r} (eos_token_id of {GENERATION_CONFIG}, or of its tokenizer); "
            "expected ids of the vocabulary. Correct that file."
        )
    return tuple(dict.fromkeys(found))
