"""Conversations in cells of tables: lists of {role, content} (TRL, verl) or {from, value} (ShareGPT)."""

import contextlib
import re
from typing import Any, NamedTuple

from pbrl_jax.core.paths import encodes, parse_json
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.text.languages import nfc

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "model": "assistant",
}  # fmt: skip
"""What data sets call the speakers -> what chat templates do."""
Turns = tuple[tuple[str, str], ...]
_WRITTEN_TURNS = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content|from|value)["']\s*:""")
"""The beginning of a conversation that is written as text."""


class Conversation(NamedTuple):
    """The turns up to the last one of the user, and the assistant's reply behind them ("" where there is none)."""

    asked: Turns
    reply: str


def of_json(text: str) -> Any:
    """The value of JSON text; the text itself where it is none."""
    with contextlib.suppress(ValueError):
        if encodes(value := parse_json(text)):
            return value
    return text


def written_turns(value: Any, row: int = 0, column: str = "", errors: RowErrors | None = None) -> Any:
    """A cell, as a list where it is the JSON of a conversation; None and an error where that cannot be read."""
    if not (isinstance(value, str) and _WRITTEN_TURNS.match(value)):
        return value
    if isinstance(found := of_json(value), list):
        return found
    if errors is not None:
        errors.add(row, f"{column} is a conversation in no JSON that can be read: {value[:60]!r}")
    return None


def read_turns(value: list, row: int, column: str, errors: RowErrors) -> Turns:
    """The turns (role, content) of a cell; () and an error for anything but system, user and assistant with text."""
    found = []
    for number, message in enumerate(value, start=1):
        message = message if isinstance(message, dict) else {}
        speaker = message.get("role", message.get("from"))
        content = _text(message.get("content", message.get("value")))
        if speaker not in ROLES or not content:
            errors.add(
                row, f"turn {number} of {column} is {str(value[number - 1])[:60]!r}, expected {{role, content}} with "
                f"one of {', '.join(ROLES)} and text",
            )  # fmt: skip
            return ()
        found.append((ROLES[speaker], nfc(content)))
    if not found:
        errors.add(row, f"{column} is an empty list, expected turns")
    return tuple(found)


def _text(content: Any) -> str:
    """The text of a turn: a string, or a list of text parts; "" for anything else, pictures among them."""
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        content = "\n".join(texts) if len(texts) == len(content) else None
    return content if isinstance(content, str) and content.strip() else ""


def read_conversation(value: list, row: int, column: str, errors: RowErrors) -> Conversation | None:
    """A cell as a question and its reply; None and an error where the user does not ask last."""
    turns = read_turns(value, row, column, errors)
    reply = turns[-1][1] if turns and turns[-1][0] == "assistant" else ""
    asked = turns[:-1] if reply else turns
    if asked and asked[-1][0] == "user":
        return Conversation(asked, reply)
    if turns:
        errors.add(row, f"{column} has the turns {', '.join(role for role, _ in turns)}; expected a user's at the end")
    return None
