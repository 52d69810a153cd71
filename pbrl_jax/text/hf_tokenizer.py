"""Tokenizers of Hugging Face models: `tokenizer.json`, the chat template and the stop tokens. Torch is not needed."""

import contextlib
import datetime
import functools
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

from etils import epath

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.output import warn_once
from pbrl_jax.core.paths import parse_json

#: Upper bound of token ids; larger ones are errors in a file.
LARGEST_VOCABULARY = 2**24
GENERATION_CONFIG = "generation_config.json"
TEMPLATE_DATE = datetime.datetime(2024, 7, 26)
"""The date in chat templates that ask for the current date (Llama 3.1 and 3.2): the default of those templates. A fixed
date gives a run the same prompts on every day."""
TOKENIZER_FILE = re.compile(
    r"(tokenizer(_config)?|special_tokens_map|added_tokens|vocab|chat_template)\.json|vocab\.txt|merges\.txt|.*\.model"
    r"|chat_template\.jinja"
)
DIRECTIVES = "aAbBcdDeFgGhHIjklmMnprRStTuUVwWxXyYzZCf"
"""The letters of strftime."""
STAND_IN = "\ue000"
"""A private-use character, which does not occur in texts."""


class HuggingFaceTokenizer:
    """A `transformers` tokenizer: a folder or a hub id (`HF_TOKEN` for gated ones).

    Args:
      base: the folder of the base model, if `source` is that of an adapter without settings of generation.
    """

    def __init__(self, source: str, base: str = ""):
        with _local_folder(source) as local:
            self.tokenizer = _auto_tokenizer(local, source)
            places = [place for place in (local, base) if place]
            found = (_settings(place, GENERATION_CONFIG) for place in places)
            self.generation_config = next(filter(None, found), {})
            # As in transformers, a model without generation settings stops where its config.json says.
            model = {} if "eos_token_id" in self.generation_config else _settings(places[-1], "config.json")
            self.files = _tokenizer_files(local)
            if not self.tokenizer.chat_template:  # some multimodal models have it for their processor alone
                self.tokenizer.chat_template = _settings(local, "chat_template.json").get("chat_template")
        self._loaded_template = self.tokenizer.chat_template
        vocabulary = self.tokenizer.get_vocab()
        if not vocabulary:
            raise DataError(f"The tokenizer of {source!r} has no tokens. Download its files again.")
        self.vocab_size = 1 + max(vocabulary.values())
        self.eos_ids = _stop_ids(self.tokenizer, self.generation_config, source)
        self.eos_ids += tuple(i for i in _listed(model) if type(i) is int and i in self._special_ids - {*self.eos_ids})
        self.bos_id = self.tokenizer.bos_token_id if _begins(self.tokenizer) else None
        pad = self.tokenizer.pad_token_id
        if not self.eos_ids and pad is None:
            raise DataError(f"The tokenizer of {source!r} has neither an end-of-sequence nor a padding token.")
        self.pad_id = self.eos_ids[0] if pad is None else pad

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        # Special tokens in a text are split like words, so that neither a data set nor a policy can inject one.
        return self._ids(list(texts), split_special_tokens=True)

    def _ids(self, texts: str | list[str], **options: bool) -> Any:
        try:
            return self.tokenizer(texts, add_special_tokens=False, **options)["input_ids"]
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"The tokenizer cannot read a text: {error}. Download its files again.") from error

    def encode_chat(self, messages: Sequence[dict[str, str]], thinking: bool | None = None) -> list[int]:
        if not self.tokenizer.chat_template:
            raise ConfigError("This tokenizer has no chat template. Use the prompt style 'plain'.")
        switch = {} if thinking is None else {"enable_thinking": thinking}
        contents = [message["content"] for message in messages]
        if not any(special in content for special in self._specials for content in contents):
            text = self._chat_text(list(messages), switch)
            return self._ids(text)
        # Special tokens in a message must stay plain text: the template is rendered with placeholders for messages.
        placeholders = [f"{STAND_IN}{number}{STAND_IN}" for number in range(len(contents))]
        # The spaces around a message stay in the template, which may remove them.
        inner = [content.strip() or None for content in contents]
        masked = [
            {**m, "content": m["content"].replace(text, placeholder) if text else m["content"]}
            for m, text, placeholder in zip(messages, inner, placeholders, strict=True)
        ]
        text = self._chat_text(masked, switch)
        ids: list[int] = []
        for part in re.split(f"({'|'.join(placeholders)})", text):
            if part in placeholders:
                ids += self.encode(inner[placeholders.index(part)] or "")
            elif part:
                ids += self._ids(part)
        return ids

    @property
    def _special_ids(self) -> set[int]:
        added = {i for i, piece in self.tokenizer.added_tokens_decoder.items() if piece.special}
        return added | set(self.tokenizer.all_special_ids)

    @functools.cached_property
    def _specials(self) -> tuple[str, ...]:
        """All special tokens, which transformers would recognise in a text."""
        added = {piece.content for piece in self.tokenizer.added_tokens_decoder.values() if piece.special}
        return tuple({*added, *self.tokenizer.all_special_tokens})

    def _chat_text(self, messages: list[dict[str, str]], switch: dict) -> str:
        """The rendered template, with contents as text or as lists of parts, whichever it supports; without support of
        system turns (Gemma 1, Mistral), the user's turn begins with the system's."""
        from jinja2.exceptions import TemplateError

        def render(turns: list[dict[str, Any]]) -> str:
            template = dated(self.tokenizer.get_chat_template())
            rendered = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, chat_template=template, **switch
            )
            rendered.encode()  # half of a surrogate pair is refused
            return rendered

        text, failure = "", None
        try:
            text = render(messages)
        except Exception as error:  # a template is code and may raise anything
            failure = error
        if failure or not _contains_all(text, messages):
            with contextlib.suppress(Exception):
                from_parts = render([{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages])
                if _contains_all(from_parts, messages):
                    return from_parts
        if failure is None:
            if messages[0]["role"] == "system" and not _contains_all(text, messages[:1]):
                warn_once(__name__, "The chat template leaves the system's turn out, and the model does not read it.")
            return text
        if not isinstance(failure, TemplateError) or messages[0]["role"] != "system" or len(messages) < 2:
            raise ConfigError(f"The chat template refuses this conversation: {failure}.") from failure
        system, user, *rest = messages
        content = f"{system['content']}\n\n{user['content']}"
        return self._chat_text([{**user, "content": content}, *rest], switch)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        plain = [int(i) for i in ids]
        return self.tokenizer.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pieces(self) -> list[str]:
        specials = self._special_ids
        # Each piece is decoded after another one, as many decoders drop the leading space of a text.
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
        folder = emptied(directory)
        with tempfile.TemporaryDirectory() as local:
            if self.files and self.tokenizer.chat_template == self._loaded_template:
                # The original files, as older versions of transformers may not read what this one writes.
                for name, content in self.files.items():
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


def emptied(directory: str) -> epath.Path:
    """The folder, made if necessary, without files of another tokenizer: a chat_template.jinja that stays would be read
    before the template in tokenizer_config.json."""
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for file in list(folder.iterdir()):
        if TOKENIZER_FILE.fullmatch(file.name):
            file.unlink()
    return folder


def _tokenizer_files(folder: str) -> dict[str, bytes]:
    """Name -> content of the tokenizer files of a local folder; {} for a hub id."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return {name: epath.Path(folder, name).read_bytes() for name in names if TOKENIZER_FILE.fullmatch(name)}


@functools.cache
def _date_macro() -> str:
    """A definition of `strftime_now(format)` in Jinja that writes TEMPLATE_DATE. It ends with a newline, which Jinja
    removes, so that a template behind it is rendered as it is alone."""
    directives = [f"%{sign}{letter}" for sign in ("-", "") for letter in DIRECTIVES]
    date = [(directive, TEMPLATE_DATE.strftime(directive)) for directive in directives]
    filters = [("%%", STAND_IN), *date, (STAND_IN, "%")]
    chain = "".join(f" | replace({old!r}, {new!r})" for old, new in filters)
    return "{% macro strftime_now(format) %}{{ format" + chain + " }}{% endmacro %}\n"


def dated(template: str) -> str:
    """A chat template with TEMPLATE_DATE in place of the current date: its `strftime_now` is one of its own, whatever
    the expressions are that call it."""
    return _date_macro() + template if "strftime_now" in template else template


def _contains_all(text: str, messages: Iterable[dict[str, str]]) -> bool:
    """Whether a rendered conversation contains all messages."""
    return all(message["content"].strip() in text for message in messages)


@contextlib.contextmanager
def _local_folder(source: str) -> Iterator[str]:
    """A temporary local copy of the small files of a remote folder; any other source unchanged."""
    if "://" not in source:
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        for child in epath.Path(source).iterdir():
            if child.suffix in (".json", ".model", ".txt", ".jinja"):
                epath.Path(folder, child.name).write_bytes(child.read_bytes())
        yield folder


def _transformers():
    """The package, imported without its warning that no deep-learning framework is installed."""
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
        tokenizer = transformers.AutoTokenizer.from_pretrained(local, trust_remote_code=False)
        return _as_in_file(tokenizer, local)
    except Exception as error:  # the library raises plain Exception
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"No tokenizer found for {source!r}: {first} Expected a .model file, a folder with tokenizer.json, or a "
            "hub id such as Qwen/Qwen3-0.6B (set HF_TOKEN for gated ones; offline, give the folder of a download)."
        ) from error


def _as_in_file(tokenizer, local: str):
    """The tokenizer with the model, normaliser, pre-tokenizer and decoder of `tokenizer.json`, if there is one.

    transformers 5 builds those of several classes (GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer, ...) anew, and a file
    with others under such a class (Llama 3's under GPT2Tokenizer) would give ids with which the model was not trained.
    BERT's normaliser follows tokenizer_config.json, as it always has. Special tokens that are defaults of the class and
    in none of the files are dropped: they would have no embedding.
    """
    from tokenizers import Tokenizer, normalizers
    from transformers.utils import cached_file

    path = cached_file(local, "tokenizer.json", _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)  # fmt: skip
    core = getattr(tokenizer, "backend_tokenizer", None)
    if path is None or core is None:
        return tokenizer
    stored = Tokenizer.from_file(path)
    core.model, core.pre_tokenizer, core.decoder = stored.model, stored.pre_tokenizer, stored.decoder
    if not isinstance(stored.normalizer, normalizers.BertNormalizer):
        core.normalizer = stored.normalizer
    files = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    declared = "".join(json.dumps(_settings(local, name)) for name in files)
    known, specials = stored.get_vocab(), {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    invented = {k: v for k, v in specials.items() if v not in known and json.dumps(v)[1:-1] not in declared}
    if invented:
        for name in invented:
            setattr(tokenizer, name, None)
        more = sorted(core.get_added_tokens_decoder().items())
        stored.normalizer, stored.post_processor = core.normalizer, core.post_processor
        stored.add_tokens([piece for _, piece in more if piece.content not in {*known, *invented.values()}])
        tokenizer._tokenizer = stored
    return tokenizer


def _begins(tokenizer) -> bool:
    """Whether prompts begin with the beginning-of-sequence token. Some tokenizers have one that neither they nor their
    chat template write (Phi-4, OLMo 3), and their models were not trained with it."""
    first = tokenizer.bos_token
    if first is None or not tokenizer.chat_template:
        return first is not None
    with contextlib.suppress(Exception):  # a template is code and may raise anything; encode_chat reports it
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        return text.lstrip().startswith(first) or tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return True


def _settings(local: str, name: str) -> dict:
    """A JSON file of a folder or hub id; {} if there is none.

    Raises:
      DataError: it is not a JSON object.
    """
    from transformers.utils import cached_file

    path = cached_file(local, name, _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)  # fmt: skip
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            settings = parse_json(file.read())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Download the file again.") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path} holds a {type(settings).__name__}, expected an object. Download the file again.")
    return settings


def _listed(settings: dict) -> list:
    """The values of `eos_token_id`, which is one or a list."""
    configured = settings.get("eos_token_id")
    return configured if isinstance(configured, list) else [] if configured is None else [configured]


def _stop_ids(tokenizer, generation_config: dict, source: str) -> tuple[int, ...]:
    """The tokenizer's end-of-sequence id, then the others of `generation_config.json`.

    Raises:
      DataError: an id that cannot be a token id.
    """
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids += _listed(generation_config)
    # weights.folders.check_vocabulary checks that the model has an embedding of each.
    wrong = [i for i in ids if not (type(i) is int and 0 <= i < LARGEST_VOCABULARY)]
    if wrong:
        raise DataError(
            f"{source!r} stops at the id {wrong[0]!r} (eos_token_id of {GENERATION_CONFIG}, or of its tokenizer); "
            "expected ids of the vocabulary. Correct that file."
        )
    return tuple(dict.fromkeys(ids))
