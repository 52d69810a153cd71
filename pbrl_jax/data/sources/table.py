"""Any table of prompts: JSONL, JSON, parquet, CSV or TSV files (also gzipped text), folders of them, data sets that
`datasets` has saved, or hub ids.

`data.columns` says which column holds which field, as `field=column` pairs: question (required), language,
question_en, answer, reference_reasoning and reference_answer, or `reference` for an English response that is split at
its answer sentence. A column inside another one is named with dots (`answer=reward_model.ground_truth`). A field that
is not named is read from the column of its own name, if it exists, and a question also from `prompt`, `messages` or
`conversations`. A question may be a conversation: a list of {role, content} (pbrl_jax.data.conversations); a reply at
its end is left out. Lists and columns inside may also be written as JSON text. All other columns go to the user's
reward functions as they are.
"""

import decimal
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from pbrl_jax.core.errors import ConfigError, DataError, did_you_mean
from pbrl_jax.core.paths import as_path, is_remote
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.data.conversations import of_json, read_conversation, written_turns
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.sources.common import prompt_id
from pbrl_jax.data.tables import ENDINGS, SplitFile, read_hub, read_rows, read_saved, split_files
from pbrl_jax.text.answers import read_gold, split_response
from pbrl_jax.text.languages import LANGUAGES, check_languages, known_code, nfc
from pbrl_jax.text.values import canonical

FIELDS = ("question", "language", "question_en", "answer", "reference", "reference_reasoning", "reference_answer")
ASKED_BY = ("prompt", "messages", "conversations")
"""Columns that the question is read from where none is named."""
NOT_FURTHER = frozenset(
    "language question_en reference prompt prompts completion completions completion_ids prompt_id step "
    "trainer_state".split()
)
"""Names of columns that reward functions do not receive as they are: they mean something else there."""


def rows(
    path: str, split: str, languages: Sequence[str], limit: int, seed: int, columns: Sequence[str] = ()
) -> list[Prompt]:
    """Prompts of the rows written in `languages`, in the table's order.

    Args:
      path: a file, a folder laid out as on the hub (pbrl_jax.data.tables.split_files), or a hub id that `datasets` can
        load.
      split: the file in a folder, or the split on the hub; ignored for a single file.
      languages: rows in other languages are left out.
      limit: rows per language, chosen by `seed`; 0 is all.
      seed: chooses the rows.
      columns: `field=column` pairs.

    Returns:
      Prompts whose id is 64 * row in the table + language number.

    Raises:
      DataError: no such table, an unknown column, or rows that are empty or not text. Rows in a language that this
        package does not know are left out and counted.
    """
    languages = check_languages(languages)
    if not path:
        raise DataError("The source 'table' needs data.path: a file, a folder, or a hub id.")
    tables = read_tables(path, split)
    present = dict.fromkeys(column for _, table in tables for values in table for column in values)
    place = " + ".join(name for name, _ in tables)
    mapping = column_mapping(columns, [*present, *_inner(tables)], place, _talks(tables))
    further = [column for column in present if column and column not in NOT_FURTHER]
    prompts, first = [], 0
    for name, table in tables:
        errors = RowErrors(name)
        for row, values in enumerate(table):
            prompt = _prompt(first, row + 1, _Cells(values, mapping), languages, errors)
            if prompt is not None:
                cells = ((column, values.get(column)) for column in further)
                kept = tuple(cell for cell in cells if not _known(cell, mapping, prompt))
                prompts.append(prompt._replace(columns=kept))
            first += 1
        errors.check()
    if not prompts:
        raise DataError(f"{place} has {first} rows, none of them in {', '.join(languages)}. Set data.languages.")
    return _limited(prompts, languages, limit, seed)


def languages_of(table: Sequence[dict[str, Any]], columns: Sequence[str], place: str) -> list[str]:
    """The languages of a table's rows that this package knows, in their order; [] where no column names any.

    Raises:
      DataError, ConfigError: as `column_mapping`.
    """
    tables = [(place, list(table))]
    present = dict.fromkeys(column for values in table for column in values)
    mapping = column_mapping(columns, [*present, *_inner(tables)], place, _talks(tables))
    said = (_Cells(values, mapping)("language") for values in table)
    return list(dict.fromkeys(code for text in said if isinstance(text, str) and (code := known_code(text))))


def _known(cell: tuple[str, Any], mapping: dict[str, str], prompt: Prompt) -> bool:
    """Whether reward functions get a cell as the field of its own name; a whole solution is more than the gold answer
    that is read in it, and of a reference in two parts they get both together."""
    name, value = cell
    if mapping.get(name) != name or name in ("reference_reasoning", "reference_answer"):
        return False
    return name != "answer" or not isinstance(value, str) or value.strip() == (prompt.answer or "")


def _talks(tables: Sequence[tuple[str, list[dict[str, Any]]]]) -> bool:
    """Whether the column `prompt` holds conversations: then the question beside it is what they were made from."""
    return any(isinstance(written_turns(values.get("prompt")), list) for _, table in tables for values in table)


def _object(value: Any) -> dict:
    """A cell that has columns inside: an object, or its JSON; {} for others."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = of_json(value)
    return value if isinstance(value, dict) else {}


def _inner(tables: Sequence[tuple[str, list[dict[str, Any]]]]) -> dict[str, None]:
    """The dotted names of columns inside columns."""
    found: dict[str, None] = {}

    def walk(name: str, value: Any) -> None:
        for key, inner in _object(value).items():
            found[f"{name}.{key}"] = None
            walk(f"{name}.{key}", inner)

    for _, table in tables:
        for values in table:
            for name, value in values.items():
                walk(name, value)
    return found


class _Cells(NamedTuple):
    """The cells of a row by field."""

    values: dict[str, Any]
    mapping: dict[str, str]

    def __call__(self, field: str) -> Any:
        """The value of a field, None where the row has none."""
        if (column := self.mapping.get(field)) is None:
            return None
        if column in self.values:
            return self.values[column]
        value: Any = self.values
        for name in column.split("."):
            value = _object(value).get(name)
        return value


def column_mapping(columns: Sequence[str], present: Sequence[str], place: str, talks: bool = False) -> dict[str, str]:
    """`{field: column}` from `field=column` pairs and from columns that have a field's own name; `talks`: the column
    `prompt` holds conversations."""
    mapping = {field: field for field in FIELDS if field in present}
    named: set[str] = set()
    if asked := [column for column in (*ASKED_BY[:talks], "question", *ASKED_BY) if column in present]:
        mapping["question"] = asked[0]
    for pair in columns:
        field, equals, column = pair.partition("=")
        if not (equals and column):
            raise ConfigError(f"data.columns: {pair!r} is no pair. Write field=column, for example question=prompt.")
        if field not in FIELDS:
            raise ConfigError(f"data.columns: unknown field {field!r}. {did_you_mean(field, FIELDS)}")
        if column not in present:
            raise DataError(f"{place} has no column {column!r} for {field}. {did_you_mean(column, present)}")
        if field in named:
            raise ConfigError(f"data.columns names two columns for {field}. Give one.")
        named.add(field)
        mapping[field] = column
    if "question" not in mapping:
        raise DataError(
            f"{place} has no column 'question'. It has {', '.join(present) or 'no rows'}. "
            "Name the right one: --data.columns question=<column>."
        )
    return mapping


def read_tables(path: str, split: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """(name for messages, rows) of a file, of each file of a folder, or of a hub id.

    Rows of a folder of configurations that are languages (`sw/test-00000-of-00001.parquet`) get the column `language`.
    """
    place = as_path(path) if is_remote(path) else epath.Path(path).expanduser()
    if saved := [folder for folder in (place / split, place) if (folder / "state.json").exists()]:
        return [(str(saved[0]), read_saved(saved[0]))]
    if not place.exists():
        if names_a_file(path):
            raise DataError(f"No file {path!r}. Check the path.")
        return [(f"{path} ({split})", _hub_rows(path, split))]
    files = split_files(place, split) if place.is_dir() else [SplitFile("", place)]
    parts = list(dict.fromkeys(file.part for file in files))
    if len(parts) > 1 and not all(map(known_code, parts)):
        raise DataError(
            f"{path!r} holds the data sets {', '.join(parts[:10])}. Name one of them: data.path {path.rstrip('/')}/"
            f"{parts[0]}."
        )
    tables = []
    for part, file in files:
        errors = RowErrors(str(file))
        table = [row for _, row in read_rows(file, errors)]
        errors.check()
        tables.append((str(file), [{"language": part} | row for row in table] if known_code(part) else table))
    return tables


def names_a_file(path: str) -> bool:
    """Whether a path has the form of a file or folder; another may be a hub id, where there is no such folder."""
    return path.endswith(ENDINGS) or path.startswith(("/", "./", "../", "~")) or "://" in path


def _hub_rows(name: str, split: str) -> list[dict[str, Any]]:
    """`name` may carry a configuration: `owner/data:config`."""
    repository, _, configuration = name.partition(":")
    try:
        return read_hub(repository, configuration or None, split)
    except DataError as error:
        raise DataError(
            f"No file, folder or hub data set {name!r} with split {split!r}: {error}. Give a file, a folder, "
            "or a hub id (owner/name or owner/name:configuration; set HF_TOKEN for gated ones)."
        ) from error.__cause__


def _prompt(row: int, number: int, cells: _Cells, languages: tuple[str, ...], errors: RowErrors) -> Prompt | None:
    """The prompt of one row, the `number`th of its file; None for another language, or after an error."""
    code = _language(cells, languages, number, errors)
    if code is None or code not in languages:
        return None
    column, said = cells.mapping["question"], cells("question")
    turns: tuple[tuple[str, str], ...] = ()
    asked = written_turns(said, number, column, errors)
    if asked is None and said is not None:
        return None
    if isinstance(asked, list):
        conversation = read_conversation(asked, number, column, errors)
        if conversation is None:
            return None
        if conversation.reply:
            errors.note(number, f"the reply at the end of {column} is left out")
        turns = conversation.asked
        asked = turns[-1][1]
    question = errors.text(number, column, asked)
    if not question:
        return None
    english = question if code == "en" else _optional(cells, "question_en", number, errors) or ""
    return Prompt(
        prompt_id(row, code), code, question, english, _answer(cells, code, number, errors),
        _reference(cells, number, errors), turns=turns,
    )  # fmt: skip


def _language(cells: _Cells, languages: Sequence[str], number: int, errors: RowErrors) -> str | None:
    if "language" not in cells.mapping:
        if len(languages) == 1:
            return languages[0]
        raise DataError(
            f"{errors.place} has no column 'language', and data.languages names {len(languages)}. Name the column "
            "(--data.columns language=<column>) or give one language."
        )
    code = errors.text(number, cells.mapping["language"], cells("language"))
    if code and known_code(code) is None:
        errors.leave_out(number, f"unknown language {code!r} ({did_you_mean(code, LANGUAGES)})")
        return None
    return known_code(code) if code else None


def _optional(cells: _Cells, field: str, number: int, errors: RowErrors) -> str | None:
    """Text of a field that may be absent or None, but not empty or of another type."""
    value = cells(field)
    return None if value is None else errors.text(number, cells.mapping[field], value) or None


def _answer(cells: _Cells, code: str, number: int, errors: RowErrors) -> str | None:
    """The gold answer as a response's is read; what cannot be read stays as it is, for `check_golds` to count."""
    value = cells("answer")
    if isinstance(value, bool) or value != value:
        errors.note(number, f"{cells.mapping['answer']} is {value!r}, no answer: taken as missing")
        return None
    if value is None:
        return None
    if isinstance(value, int | float | decimal.Decimal):
        exact = decimal.Decimal(repr(value) if isinstance(value, float) else value)
        return canonical(exact) if exact.is_finite() else str(value)
    text = errors.text(number, cells.mapping["answer"], value)
    return (read_gold(text, code) or text) if text else None


def _reference(cells: _Cells, number: int, errors: RowErrors) -> Reference | None:
    reasoning = _optional(cells, "reference_reasoning", number, errors)
    answer = _optional(cells, "reference_answer", number, errors)
    if reasoning is not None or answer is not None:
        return Reference(reasoning or "", answer or "")
    whole = _optional(cells, "reference", number, errors)
    return None if whole is None else Reference(*split_response(nfc(whole), "en"))


def _limited(prompts: list[Prompt], languages: tuple[str, ...], limit: int, seed: int) -> list[Prompt]:
    if limit < 0:
        raise ConfigError(f"data.limit is {limit}; expected 0 (all rows) or a positive number of rows per language.")
    if limit == 0:
        return prompts
    order = np.random.default_rng(seed).permutation(len(prompts))
    left = dict.fromkeys(languages, limit)
    kept = []
    for i in order:
        if left[prompts[i].language] > 0:
            left[prompts[i].language] -= 1
            kept.append(int(i))
    return [prompts[i] for i in sorted(kept)]
