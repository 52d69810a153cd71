"""What every data source needs: stable ids, the benchmark's folder, parallel files."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from etils import epath

from pbrl_jax.core.errors import ConfigError, DataError, did_you_mean
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.tables import read_rows
from pbrl_jax.text.languages import LANGUAGES, check_languages

ID_ORDER = tuple(LANGUAGES)
"""Languages by their number in a prompt id. Append only: ids are part of sampling keys and of cached references."""

LANGUAGES_PER_ROW, BLOCK = 64, 2**29
MAX_ROWS = BLOCK // LANGUAGES_PER_ROW


def prompt_id(row: int, language: str) -> int:
    """`row * 64 + language number`: a problem has one id in each language, from which its row can be computed.

    Languages from the 64th on are numbered from 0 again, in a block of ids of their own.
    """
    if not 0 <= row < MAX_ROWS:
        raise DataError(f"Row {row} has no 32-bit id: at most {MAX_ROWS} rows per source. Split the file.")
    block, number = divmod(ID_ORDER.index(language), LANGUAGES_PER_ROW)
    return block * BLOCK + row * LANGUAGES_PER_ROW + number


def row_of(identifier: int) -> int:
    """The row of a prompt id."""
    return identifier % BLOCK // LANGUAGES_PER_ROW


def language_of(identifier: int) -> str:
    """The language of a prompt id."""
    return ID_ORDER[identifier // BLOCK * LANGUAGES_PER_ROW + identifier % LANGUAGES_PER_ROW]


def problem_of(prompt: Prompt) -> str | int:
    """What a problem has in common in all languages: its English question, else its row. Tables with a row per language
    give each of these rows an id of its own."""
    return " ".join(prompt.question_en.split()).casefold() or row_of(prompt.id)


def check_split(split: str, known: Sequence[str], source: str) -> None:
    if split not in known:
        raise ConfigError(f"Source {source!r} has no split {split!r}. {did_you_mean(split, known)}")


def check_offered(languages: Iterable[str], offered: Sequence[str], source: str) -> tuple[str, ...]:
    """`languages`, or a ConfigError naming those that the source does not have."""
    languages = check_languages(languages)
    missing = [code for code in languages if code not in offered]
    if missing:
        raise ConfigError(
            f"Source {source!r} has no language {', '.join(missing)}. It has {', '.join(offered)}. "
            "Change data.languages or data.source."
        )
    return languages


def benchmark_path(path: str, folder: str) -> epath.Path:
    """`path` where one is given, else `$PBRL_DATA/<folder>`.

    Raises:
      DataError: neither is set, or the place does not exist.
    """
    if path:
        found = epath.Path(path)
        if not found.exists():
            raise DataError(f"No data at {path!r}. Give data.path an existing file or folder.")
        return found
    root = os.environ.get("PBRL_DATA", "")
    if not root:
        raise DataError(
            f"Where is {folder}? data.path is empty and the environment variable PBRL_DATA is not set. "
            f"Set PBRL_DATA to the folder that holds {folder}/, or give --data.path."
        )
    found = epath.Path(root) / folder
    if not found.exists():
        raise DataError(f"PBRL_DATA={root!r} holds no folder {folder!r}. Put the benchmark's files there.")
    return found


def take(rows: Sequence, limit: int, seed: int) -> list:
    """All rows (`limit` 0), or `limit` of them chosen by `seed`; in the file's order.

    If there are fewer rows than `limit`, all.
    """
    if limit < 0:
        raise ConfigError(f"data.limit is {limit}; expected 0 (all rows) or a positive number of rows per language.")
    if limit == 0 or limit >= len(rows):
        return list(rows)
    import numpy as np

    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit])
    return [rows[i] for i in chosen]


def parallel_prompts(
    languages: Sequence[str], file_of: Callable[[str], epath.Path], limit: int, seed: int, first: int = 0,
    header: Sequence[str] = (), answer: Callable[[RowErrors, int, str, Any], str] = RowErrors.text,
) -> list[Prompt]:  # fmt: skip
    """Prompts of `languages`, language by language, from files with the same problems in the same order: columns
    `question` and `answer`.

    Args:
      file_of: language, English among them -> its file; `header` as in read_rows.
      limit, seed: as in `take`; one seed takes the same problems in every language.
      first: row of the first problem.
      answer: reads an answer.

    Raises:
      DataError: bad rows, or a file that is longer or shorter than the English one.
    """

    def table(code: str) -> list[tuple[str, str]]:
        errors = RowErrors(str(file_of(code)))
        found = [
            (errors.text(number, "question", row.get("question")), answer(errors, number, "answer", row.get("answer")))
            for number, row in read_rows(file_of(code), errors, header)
        ]
        errors.check()
        return found

    tables = {code: table(code) for code in {"en", *languages}}
    english, prompts = tables["en"], []
    for code in languages:
        if len(tables[code]) != len(english):
            raise DataError(
                f"The file of {code} has {len(tables[code])} rows and the English one {len(english)}; expected the "
                "same problems. Use the files of one release."
            )
        rows = enumerate(zip(tables[code], english, strict=True))
        numbered = [
            Prompt(prompt_id(first + row, code), code, question, question_en, answer)
            for row, ((question, answer), (question_en, _)) in rows
        ]
        prompts += take(numbered, limit, seed)
    return prompts


PromptReader = Callable[[str, str, Sequence[str], int, int], list[Prompt]]
"""`rows(path, split, languages, limit, seed)`."""
