"""A user's own words around a question: `data.system_prompt`, `data.user_prompt`, or `data.prompt_file` per language.

In each text {question} stands for the question, {language} for the English name of its language, and {phrase} for the
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
"""The entry of a file for all languages without one of their own."""
SLOT = re.compile(r"\{(question|language|phrase)\}")


class Wording(NamedTuple):
    """The texts of the system's and of the user's turn, by language or ANY. Where one of them is given, a prompt has
    no words of this package; a turn without a text is left out (system) or the question alone (user)."""

    system: Mapping[str, str] = {}
    user: Mapping[str, str] = {}

    def turns(self, question: str, code: str) -> tuple[str, str] | None:
        """(system, user) with the slots filled, "" for no system turn; None where this language has no text here."""
        system, user = (of.get(code, of.get(ANY)) for of in self)
        if system is None and user is None:
            return None
        return fill(system or "", question, code), fill(user or "{question}", question, code)

    @property
    def digest(self) -> str:
        """Hex digest of all texts; "" where there are none."""
        return hashlib.sha256(json.dumps([*self]).encode()).hexdigest() if any(self) else ""


OURS = Wording()
"""No text of the user's: the words are those of the style."""


def fill(text: str, question: str, code: str) -> str:
    """`text` with its slots filled."""
    values = {"question": question, "language": language(code).name, "phrase": answer_sentence("N", code)}
    return SLOT.sub(lambda slot: values[slot.group(1)], text)


def wording_of(data: DataConfig) -> Wording:
    """The texts that the settings give, checked.

    Raises:
      ConfigError: texts and a file at once, a file that cannot be read or holds something else, an unknown language,
        a user's turn without {question}, or a system turn in a style without turns.
    """
    given = {turn: text for turn, text in zip(TURNS, (data.system_prompt, data.user_prompt), strict=True) if text}
    if given and data.prompt_file:
        raise ConfigError(
            f"data.prompt_file is {data.prompt_file!r}, and data.{next(iter(given))}_prompt is set, too. Put both "
            "texts into the file."
        )
    found = _read(data.prompt_file) if data.prompt_file else given
    texts = {turn: value if isinstance(value, dict) else {ANY: value} for turn, value in found.items()}
    place = data.prompt_file or "data.user_prompt"
    for turn, by_language in texts.items():
        check_languages([code for code in by_language if code != ANY] or ["en"])
        for code, text in by_language.items():
            if not isinstance(text, str):
                raise ConfigError(f"{place}: {turn} of {code} is {text!r}; expected text.")
            if turn == "user" and "{question}" not in text:
                raise ConfigError(f"{place}: the user's turn {text[:60]!r} has no {{question}}. Write where it stands.")
    wording = Wording(**texts)
    if any(wording.system.values()) and data.prompt_style in ("plain", "base"):
        raise ConfigError(
            f"A system prompt needs a chat, and data.prompt_style is {data.prompt_style}. Use --data.prompt-style "
            "chat, or put the words into data.user_prompt."
        )
    return wording


def with_own_words(data: DataConfig, given: Any) -> DataConfig:
    """`data` with the system_prompt, user_prompt and prompt_file of `given` (a command line), where it has one."""
    words = {name: getattr(given, name) for name in ("system_prompt", "user_prompt", "prompt_file")}
    return dataclasses.replace(data, **words) if any(words.values()) else data


def _read(path: str) -> dict[str, Any]:
    """Turn -> text or {language: text}, of a YAML or JSON file; any other file is the user's turn."""
    try:
        text = as_path(path).read_text(encoding="utf-8")
        found = read_yaml(text) if path.endswith((".yaml", ".yml", ".json")) else {"user": text}
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.prompt_file {path!r} cannot be read: {error}. Give YAML, JSON or text.") from error
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path} holds {type(found).__name__}; expected the keys system and user, each a text or "
                          "{language: text}.")  # fmt: skip
    for turn in found:
        if turn not in TURNS:
            raise ConfigError(f"{path} has the key {turn!r}. {did_you_mean(str(turn), TURNS)}")
    return found
