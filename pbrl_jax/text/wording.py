"""The user's own prompt texts: `data.system_prompt`, `data.user_prompt`, or `data.prompt_file` with one per language.

In each text {question} is replaced by the question, {language} by the English name of its language, and {phrase} by the
sentence in which that language states an answer, with N for the answer.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pbrl_jax.config.data import DataConfig
from pbrl_jax.core.errors import ConfigError, did_you_mean
from pbrl_jax.core.paths import as_path
from pbrl_jax.core.yaml_text import read_yaml
from pbrl_jax.text.languages import answer_sentence, check_languages, language

TURNS = ("system", "user")
ANY = "default"
"""The entry of a file for all languages without their own entry."""
SLOT = re.compile(r"\{(question|language|phrase)\}")


class Wording(NamedTuple):
    """The texts of the system turn and of the user turn, by language or ANY. If one of them is given, none of this
    package's texts is used: without a text the system turn is left out, and the user turn is the question."""

    system: Mapping[str, str] = {}
    user: Mapping[str, str] = {}

    def turns(self, question: str, code: str) -> tuple[str, str] | None:
        """(system, user) with the slots filled, "" for no system turn; None for a language without texts."""
        system, user = (texts.get(code, texts.get(ANY)) for texts in self)
        if system is None and user is None:
            return None
        return fill(system or "", question, code), fill(user or "{question}", question, code)

    @property
    def digest(self) -> str:
        """Hex digest of all texts; "" without any."""
        return hashlib.sha256(json.dumps([*self]).encode()).hexdigest() if any(self) else ""


OURS = Wording()
"""No texts of the user: prompts have the texts of their style."""


def fill(text: str, question: str, code: str) -> str:
    """`text` with its slots filled."""
    values = {"question": question, "language": language(code).name, "phrase": answer_sentence("N", code)}
    return SLOT.sub(lambda slot: values[slot.group(1)], text)


def wording_of(data: DataConfig) -> Wording:
    """The checked texts of the settings.

    Raises:
      ConfigError: both texts and a file, a file that cannot be read or has another form, an unknown language, a user
        turn without {question}, or a system turn in a style without turns.
    """
    given = {turn: text for turn, text in zip(TURNS, (data.system_prompt, data.user_prompt), strict=True) if text}
    if given and data.prompt_file:
        raise ConfigError(
            f"data.prompt_file is {data.prompt_file!r}, and data.{next(iter(given))}_prompt is set, too. Put both "
            "texts into the file."
        )
    entries = _read(data.prompt_file) if data.prompt_file else given
    texts = {turn: value if isinstance(value, dict) else {ANY: value} for turn, value in entries.items()}
    source = data.prompt_file or "data.user_prompt"
    for turn, by_language in texts.items():
        check_languages([code for code in by_language if code != ANY] or ["en"])
        for code, text in by_language.items():
            if not isinstance(text, str):
                raise ConfigError(f"{source}: {turn} of {code} is {text!r}; expected text.")
            if turn == "user" and "{question}" not in text:
                raise ConfigError(f"{source}: the user's turn {text[:60]!r} has no {{question}}. Add it to the text.")
    wording = Wording(**texts)
    if any(wording.system.values()) and data.prompt_style in ("plain", "base"):
        raise ConfigError(
            f"A system prompt needs a chat, and data.prompt_style is {data.prompt_style}. Use --data.prompt-style "
            "chat, or put the words into data.user_prompt."
        )
    return wording


def with_own_words(data: DataConfig, given: Any) -> DataConfig:
    """`data` with the system_prompt, user_prompt and prompt_file of `given` (a command line), if any is set.

    Raises:
      ConfigError: as wording_of, with the names of the command line.
    """
    words = {name: getattr(given, name) for name in ("system_prompt", "user_prompt", "prompt_file")}
    own = dataclasses.replace(data, **words) if any(words.values()) else data
    try:
        wording_of(own)
    except ConfigError as error:
        message = str(error).replace("--data.prompt-style", "--style").replace("data.prompt_style", "--style")
        for name in words:
            message = message.replace(f"data.{name}", f"--{name.replace('_', '-')}")
        raise ConfigError(message) from error
    return own


def _read(path: str) -> dict[str, Any]:
    """Turn -> text or {language: text}, of a YAML or JSON file; any other file holds the user turn."""
    try:
        text = as_path(path).read_text(encoding="utf-8")
        entries = read_yaml(text) if path.endswith((".yaml", ".yml", ".json")) else {"user": text}
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.prompt_file {path!r} cannot be read: {error}. Give YAML, JSON or text.") from error
    if not isinstance(entries, dict) or not entries:
        raise ConfigError(f"{path} holds {type(entries).__name__}; expected the keys system and user, each a text or "
                          "{language: text}.")  # fmt: skip
    for turn in entries:
        if turn not in TURNS:
            raise ConfigError(f"{path} has the key {turn!r}. {did_you_mean(str(turn), TURNS)}")
    return entries
