"""Any table of prompts: JSONL, JSON, parquet, CSV or TSV files (also gzipped text), folders of them, or hub ids.

`data.columns` says which column holds which field, as `field=column` pairs: question (required), language,
question_en, answer, reference_reasoning and reference_answer, or `reference` for an English response that is split at
its answer sentence. A field that is not named is read from the column of its own name, if it exists. All other columns
go to the user's reward functions as they are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from pbrl_jax.core.errors import ConfigError, DataError, did_you_mean
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.data.sources.common import RowErrors, nfc, prompt_id
from pbrl_jax.data.tables import ENDINGS, read_hub, read_rows
from pbrl_jax.text.answers import read_gold, split_response
from pbrl_jax.text.languages import LANGUAGES, check_languages, known_code

FIELDS = ("question", "language", "question_en", "answer", "reference", "reference_reasoning", "reference_answer")
NOT_FURTHER = {*FIELDS, "prompt", "prompts", "completion", "completions", "completion_ids", "prompt_id", "step",
               "trainer_state"}  # fmt: skip
"""Names of columns that reward functions do not receive as they are: they mean something else there."""


def rows(
    path: str, split: str, languages: Sequence[str], limit: int, seed: int, columns: Sequence[str] = ()
) -> list[Prompt]:
    """Prompts of the rows written in `languages`, in the table's order.

    Args:
      path: a file, a folder with `<split>.<ending>`, or a hub id that `datasets` can load.
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
    place, table = read_table(path, split)
    present = dict.fromkeys(column for values in table for column in values)
    mapping = column_mapping(columns, list(present), place)
    further = [column for column in present if column not in NOT_FURTHER]
    errors = RowErrors(place)
    prompts = []
    for row, values in enumerate(table):
        prompt = _prompt(row, values, mapping, languages, errors)
        if prompt is not None:
            prompts.append(prompt._replace(columns=tuple((name, values.get(name)) for name in further)))
    errors.check()
    if not prompts:
        raise DataError(f"{place} has {len(table)} rows, none of them in {', '.join(languages)}. Set data.languages.")
    return _limited(prompts, languages, limit, seed)


def column_mapping(columns: Sequence[str], present: Sequence[str], place: str) -> dict[str, str]:
    """`{field: column}` from `field=column` pairs and from columns that have a field's own name."""
    mapping = {field: field for field in FIELDS if field in present}
    for pair in columns:
        field, equals, column = pair.partition("=")
        if not (equals and column):
            raise ConfigError(f"data.columns: {pair!r} is no pair. Write field=column, for example question=prompt.")
        if field not in FIELDS:
            raise ConfigError(f"data.columns: unknown field {field!r}. {did_you_mean(field, FIELDS)}")
        if column not in present:
            raise DataError(f"{place} has no column {column!r} for {field}. {did_you_mean(column, present)}")
        mapping[field] = column
    if "question" not in mapping:
        raise DataError(
            f"{place} has no column 'question'. It has {', '.join(present) or 'no rows'}. "
            "Name the right one: --data.columns question=<column>."
        )
    return mapping


def read_table(path: str, split: str) -> tuple[str, list[dict[str, Any]]]:
    """(name for messages, rows) of a file, a folder or a hub id."""
    place = epath.Path(path)
    if place.is_dir():
        files = [place / f"{split}{ending}" for ending in ENDINGS]
        found = [file for file in files if file.exists()]
        if not found:
            names = sorted(child.name for child in place.iterdir())[:10]
            raise DataError(f"{path!r} has no file {split}{{{', '.join(ENDINGS)}}}; found {', '.join(names)}.")
        place = found[0]
    if place.exists():
        errors = RowErrors(str(place))
        table = [row for _, row in read_rows(place, errors)]
        errors.check()
        return str(place), table
    if str(path).endswith(ENDINGS) or path.startswith(("/", "./", "../", "~")) or "://" in path:
        raise DataError(f"No file {path!r}. Check data.path.")
    return f"{path} ({split})", _hub_rows(path, split)


def _hub_rows(name: str, split: str) -> list[dict[str, Any]]:
    """`name` may carry a configuration: `owner/data:config`."""
    repository, _, configuration = name.partition(":")
    try:
        return read_hub(repository, configuration or None, split)
    except DataError as error:
        raise DataError(
            f"No file, folder or hub data set {name!r} with split {split!r}: {error}. Give data.path a file, a folder, "
            "or a hub id (owner/name or owner/name:configuration; set HF_TOKEN for gated ones)."
        ) from error.__cause__


def _prompt(
    row: int, values: dict[str, Any], mapping: dict[str, str], languages: tuple[str, ...], errors: RowErrors
) -> Prompt | None:
    """The prompt of one row; None for another language, or after an error."""
    number = row + 1
    code = _language(values, mapping, languages, number, errors)
    if code is None or code not in languages:
        return None
    question = errors.text(number, mapping["question"], values.get(mapping["question"]))
    if not question:
        return None
    english = question if code == "en" else _optional(values, mapping, "question_en", number, errors) or ""
    reference = _reference(values, mapping, number, errors)
    return Prompt(
        prompt_id(row, code), code, question, english, _answer(values, mapping, code, number, errors), reference
    )


def _language(values, mapping, languages, number: int, errors: RowErrors) -> str | None:
    if "language" not in mapping:
        if len(languages) == 1:
            return languages[0]
        raise DataError(
            f"{errors.place} has no column 'language', and data.languages names {len(languages)}. Name the column "
            "(--data.columns language=<column>) or give one language."
        )
    code = errors.text(number, mapping["language"], values.get(mapping["language"]))
    if code and known_code(code) is None:
        errors.leave_out(number, f"unknown language {code!r} ({did_you_mean(code, LANGUAGES)})")
        return None
    return known_code(code) if code else None


def _optional(values, mapping, field: str, number: int, errors: RowErrors) -> str | None:
    """Text of a field that may be absent or None, but not empty or of another type."""
    value = values.get(mapping[field]) if field in mapping else None
    return None if value is None else errors.text(number, mapping[field], value) or None


def _answer(values, mapping, code: str, number: int, errors: RowErrors) -> str | None:
    """The gold answer as a response's is read; what cannot be read stays as it is, for `check_golds` to count."""
    value = values.get(mapping["answer"]) if "answer" in mapping else None
    if isinstance(value, bool) or value != value:
        errors.note(number, f"{mapping['answer']} is {value!r}, no answer: taken as missing")
        return None
    if value is None:
        return None
    if isinstance(value, int | float):
        return str(int(value)) if float(value).is_integer() else repr(value)
    text = errors.text(number, mapping["answer"], value)
    return (read_gold(text, code) or text) if text else None


def _reference(values, mapping, number: int, errors: RowErrors) -> Reference | None:
    reasoning = _optional(values, mapping, "reference_reasoning", number, errors)
    answer = _optional(values, mapping, "reference_answer", number, errors)
    if reasoning is not None or answer is not None:
        return Reference(reasoning or "", answer or "")
    whole = _optional(values, mapping, "reference", number, errors)
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
