"""The reader of tables: JSONL, JSON, parquet, CSV or TSV files (also gzipped text), and data sets of the hub."""

import csv
import gzip
import io
import json
import logging
from collections.abc import Sequence
from typing import Any

from etils import epath

from pbrl_jax.core.errors import DataError
from pbrl_jax.data.sources.common import RowErrors

ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".jsonl.gz", ".csv.gz", ".tsv.gz")
Row = tuple[int, dict[str, Any]]
"""(number, counting from 1 as editors do; values by column)."""


def read_rows(file: epath.Path, errors: RowErrors, header: Sequence[str] = (), skip_blank: bool = False) -> list[Row]:
    """The rows of a file; those that cannot be read are added to `errors` and left out.

    Args:
      file: its ending says what it is. A .json file holds a list, an object, or one object a line.
      header: columns of a table without a header line.
      skip_blank: ignore blank lines in the middle; otherwise they are errors.

    Raises:
      DataError: no such file, an unknown ending, or content that is not UTF-8 or not parquet.
    """
    if not file.exists():
        raise DataError(f"No file {str(file)!r}. Check the path, the split and the language.")
    if file.name.endswith(".parquet"):
        return list(enumerate(_parquet_rows(file), start=1))
    if not file.name.endswith(ENDINGS):
        raise DataError(f"{str(file)!r}: unknown kind of table. Expected one of {', '.join(ENDINGS)}.")
    raw, bare = file.read_bytes(), file.name.removesuffix(".gz")
    try:
        text = (gzip.decompress(raw) if bare != file.name else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is not UTF-8: {error}.") from error
    if bare.endswith((".csv", ".tsv")) and not header:
        return _separated_rows(text, "\t" if bare.endswith(".tsv") else ",", errors)
    if bare.endswith(".json"):
        try:
            whole = json.loads(text)
            return _objects(list(enumerate(whole if isinstance(whole, list) else [whole], start=1)), errors)
        except json.JSONDecodeError:
            pass  # one object a line
    lines = list(enumerate(text.removesuffix("\n").split("\n") if text else (), start=1))
    lines = [(number, line) for number, line in lines if line.strip() or not skip_blank]
    return _headless_rows(lines, header, errors) if header else _json_rows(lines, errors)


def _parquet_rows(file: epath.Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(io.BytesIO(file.read_bytes())).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is no parquet file: {error}. Download it again.") from error


def _separated_rows(text: str, mark: str, errors: RowErrors) -> list[Row]:
    """Rows of a file with a header line; an empty cell is None, as there is no other way to leave one out."""
    rows = list(enumerate(csv.DictReader(io.StringIO(text, newline=""), delimiter=mark), start=1))
    for number, row in rows:
        if None in row:
            errors.add(number, f"has {len(row.pop(None))} fields more than the header")
    return [(number, {column: cell or None for column, cell in row.items()}) for number, row in rows]


def _headless_rows(lines: Sequence[tuple[int, str]], header: Sequence[str], errors: RowErrors) -> list[Row]:
    rows = []
    for number, line in lines:
        fields = line.rstrip("\r").split("\t")
        if len(fields) != len(header):
            errors.add(number, f"has {len(fields)} fields, expected {' and '.join(header)} with tabs between")
        else:
            rows.append((number, dict(zip(header, fields, strict=True))))
    return rows


def _json_rows(lines: Sequence[tuple[int, str]], errors: RowErrors) -> list[Row]:
    values = []
    for number, line in lines:
        try:
            values.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            errors.add(number, f"is no JSON ({error})")
    return _objects(values, errors)


def _objects(values: Sequence[tuple[int, Any]], errors: RowErrors) -> list[Row]:
    for number, value in values:
        if not isinstance(value, dict):
            errors.add(number, f"is {type(value).__name__}, expected an object with named columns")
    return [(number, value) for number, value in values if isinstance(value, dict)]


def read_hub(repository: str, configuration: str | None, split: str) -> list[dict[str, Any]]:
    """The rows of one split of a hub data set.

    Raises:
      DataError: it cannot be loaded; the first line of what the client says.
    """
    import datasets  # slow to import, and sets the level of the client's messages

    client = logging.getLogger("huggingface_hub")
    before = client.level
    client.setLevel(logging.ERROR)  # it prints every attempt; the error says it once
    try:
        return datasets.load_dataset(repository, configuration, split=split).to_list()
    except Exception as error:  # the client raises a dozen unrelated kinds
        raise DataError((str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")) from error
    finally:
        client.setLevel(before)
