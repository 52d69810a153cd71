"""Rows with responses, in TRL's forms: examples for supervised learning and pairs of preference.

Texts, or conversations as pbrl_jax.data.conversations reads them. `language` names a row's language; where there is no
such column, the only language of the run is taken.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from pbrl_jax.core.errors import DataError, did_you_mean
from pbrl_jax.core.paths import as_path, numbered_json_lines
from pbrl_jax.core.records import Question
from pbrl_jax.data.conversations import read_conversation, read_turns, written_turns
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.sources.quickstart import Example
from pbrl_jax.data.sources.table import names_a_file, read_tables
from pbrl_jax.text.languages import LANGUAGES, known_code, nfc

CONVERSATIONS = ("messages", "conversations")
QUESTIONS, RESPONSES = ("question", "prompt"), ("response", "completion")
T = TypeVar("T", Example, "Preference")


class Preference(NamedTuple):
    """A question with a better and a worse response. A `verbatim` question is the whole prompt as it stands, up to the
    first letter of the responses: a space between them belongs to these."""

    language: str
    question: Question
    chosen: str
    rejected: str
    verbatim: bool = False


class _Row(NamedTuple):
    """The cells of a row, its number, and where its errors go."""

    cells: dict[str, Any]
    number: int
    errors: RowErrors

    def wrong(self, what: str) -> None:
        self.errors.add(self.number, what)

    def cell(self, name: str) -> Any:
        """A cell; the JSON of a conversation as its list."""
        return written_turns(self.cells.get(name), self.number, name, self.errors)


def read_examples(path: str, split: str = "train", languages: Sequence[str] = ()) -> list[Example]:
    """Rows of `messages` (or `conversations`) with the reply at their end, or of `question` (or `prompt`) and
    `response` (or `completion`).

    Args:
      path: JSON lines, or whatever the source `table` reads.
      split: of a folder.
      languages: of the run.

    Raises:
      DataError: rows that hold something else, with file and row; or none at all.
    """
    return _read(path, split, languages, _example)


def read_preferences(path: str, split: str = "train", languages: Sequence[str] = ()) -> list[Preference]:
    """Rows of `prompt` (or `question`), `chosen` and `rejected`; without a prompt, or where both are whole
    conversations, the prompt is what both begin with. Arguments and errors as in read_examples."""
    return _read(path, split, languages, _preference)


def holds_preferences(path: str, split: str = "train") -> bool:
    """Whether the rows are pairs of preference."""
    if names_a_file(path) and not as_path(path).exists():
        return False
    first = next((row for rows, _ in _files(path, split) for _, row in rows), {})
    return {"chosen", "rejected"} <= first.keys()


def _files(path: str, split: str) -> Iterator[tuple[list[tuple[int, dict[str, Any]]], RowErrors]]:
    if os.fspath(path).endswith(".jsonl") and as_path(path).is_file():
        yield numbered_json_lines(path), RowErrors(path, "line")
        return
    for name, table in read_tables(path, split):
        yield list(enumerate(table, start=1)), RowErrors(name)


def _read(path: str, split: str, languages: Sequence[str], make: Callable[[str, _Row], T | None]) -> list[T]:
    found = []
    for rows, errors in _files(path, split):
        for number, cells in rows:
            row = _Row(cells, number, errors)
            code = _language(row, languages)
            made = make(code, row) if code else None
            found += [] if made is None else [made]
        errors.check()
    if not found:
        raise DataError(f"{path} holds no rows.")
    codes = [row[0] for row in found]
    if languages and (others := Counter(code for code in codes if code not in languages)):
        counts = ", ".join(f"{code} {count}" for code, count in sorted(others.items()))
        print(f"Note: {path} also has rows in languages that data.languages does not name, which are learnt, too: "
              f"{counts}.", file=sys.stderr)  # fmt: skip
    return found


def _language(row: _Row, languages: Sequence[str]) -> str | None:
    if "language" not in row.cells and len(languages) == 1:
        return languages[0]
    given = row.cells.get("language")
    if not isinstance(given, str):
        row.wrong("lacks language; expected a code in the column language, or one language in data.languages")
        return None
    if known_code(given) is None:
        row.wrong(f"unknown language {given!r}. {did_you_mean(given, LANGUAGES)}")
    return known_code(given)


def _example(code: str, row: _Row) -> Example | None:
    for column in CONVERSATIONS:
        if isinstance(turns := row.cell(column), list):
            found = read_conversation(turns, row.number, column, row.errors)
            if found is not None and not found.reply:
                row.wrong(f"{column} has no reply of the assistant at its end")
            return Example(code, found.asked, found.reply) if found and found.reply else None
    name, response = _named(row, QUESTIONS), _reply(row, *RESPONSES)
    question = "" if row.cells.get(name) == "" else _question(row)  # plain text
    return None if question is None or response is None else Example(code, question, response)


def _preference(code: str, row: _Row) -> Preference | None:
    both: list[Any] = [row.cell(name) for name in ("chosen", "rejected")]
    asked: Question | None
    if all(isinstance(one, list) and len(one) > 1 for one in both):
        turns = [read_turns(one, row.number, name, row.errors)
                 for name, one in zip(("chosen", "rejected"), both, strict=True)]  # fmt: skip
        if not all(turns):
            return None
        asked = _shared(*turns)
        ends = [one[len(asked) :] for one in turns]
        if not asked or asked[-1][0] != "user" or any([role for role, _ in end] != ["assistant"] for end in ends):
            row.wrong("chosen and rejected are conversations that do not differ in the last reply alone")
            return None
        return _pair(row, Preference(code, asked, ends[0][0][1], ends[1][0][1]))
    if not any(name in row.cells for name in QUESTIONS) and all(isinstance(one, str) for one in both):
        start = os.path.commonprefix([nfc(str(one)) for one in both])
        start = start[: max((place + 1 for place, letter in enumerate(start) if letter.isspace()), default=0)]
        if not start.strip():
            row.wrong("has no prompt, and chosen and rejected do not begin with the same one")
            return None
        better, worse = (nfc(str(one))[len(start) :] for one in both)
        if not (better.strip() and worse.strip()):
            row.wrong("chosen or rejected holds no more than the prompt")
            return None
        return _pair(row, Preference(code, start, better, worse, True))
    asked, chosen, rejected = _question(row), _reply(row, "chosen"), _reply(row, "rejected")
    if asked is None or chosen is None or rejected is None:
        return None
    return _pair(row, Preference(code, asked, chosen, rejected))


def _pair(row: _Row, pair: Preference) -> Preference | None:
    if pair.chosen.strip() == pair.rejected.strip():
        row.wrong("chosen and rejected are the same")
        return None
    return pair


def _shared(one: tuple, other: tuple) -> tuple:
    """What both begin with."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return one[: [*same, False].index(False)]


def _named(row: _Row, names: Sequence[str]) -> str:
    """The first of the columns that the row has, else the first."""
    return next((name for name in names if row.cells.get(name) is not None), names[0])


def _question(row: _Row) -> Question | None:
    name = _named(row, QUESTIONS)
    value = row.cell(name)
    if isinstance(value, list):
        found = read_conversation(value, row.number, name, row.errors)
        return None if found is None else found.asked
    return _text(row, name, value)


def _reply(row: _Row, *names: str) -> str | None:
    """A text, or the content of the one assistant's turn of a list."""
    name = _named(row, names)
    value = row.cell(name)
    if not isinstance(value, list):
        return _text(row, name, value)
    turns = read_turns(value, row.number, name, row.errors)
    if turns and [role for role, _ in turns] != ["assistant"]:
        row.wrong(f"{name} has the turns {', '.join(role for role, _ in turns)}; expected one of the assistant")
        return None
    return turns[0][1] if turns else None


def _text(row: _Row, name: str, value: Any) -> str | None:
    if isinstance(value, str) and value.strip():
        return nfc(value)
    kind = "empty" if isinstance(value, str) else type(value).__name__
    row.wrong(f"lacks {name}; expected text or turns" if value is None else f"{name} is {kind}")
    return None
