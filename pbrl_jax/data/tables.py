"""The reader of tables: JSONL, JSON, parquet, CSV or TSV files (also gzipped text), and data sets of the hub."""

import gzip
import io
import logging
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import HALF_A_CHARACTER, encodes, parse_json
from pbrl_jax.data.row_errors import RowErrors

ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz")
LFS_POINTER = b"version https://git-lfs.github.com/spec"
UNPACKED_BYTES, UNPACKED_FREE, UNPACKED_RATIO = 1 << 32, 1 << 26, 200
"""A compressed file may unpack to UNPACKED_BYTES at most, and to UNPACKED_RATIO times its size and UNPACKED_FREE more:
text is compressed to a third or a tenth, a file that was made to fill the memory to a thousandth."""
PARQUET_ROWS = 1024
"""Rows unpacked at a time."""
Row = tuple[int, dict[str, Any]]
"""(number, counting from 1 as editors do; values by column)."""


def read_rows(file: epath.Path, errors: RowErrors, header: Sequence[str] = (), skip_blank: bool = False) -> list[Row]:
    """The rows of a file; those that cannot be read are added to `errors` and left out.

    Args:
      file: its ending says what it is. A .json file holds a list, an object, or one object a line.
      header: columns of a table without a header line.
      skip_blank: ignore blank lines in the middle; otherwise they are errors.

    Raises:
      DataError: no such file, an unknown ending, a Git LFS pointer, a damaged file, or text that is not UTF-8.
    """
    if not file.exists():
        raise DataError(f"No file {str(file)!r}. Check the path, the split and the language.")
    if not file.name.endswith(ENDINGS):
        raise DataError(f"{str(file)!r}: unknown kind of table. Expected one of {', '.join(ENDINGS)}.")
    raw, bare = file.read_bytes(), file.name.removesuffix(".gz")
    if raw.startswith(LFS_POINTER):
        raise DataError(f"{str(file)!r} is a Git LFS pointer and not the data. Run `git lfs pull` in its folder.")
    if file.name.endswith(".parquet"):
        return list(enumerate(_parquet_rows(raw, str(file)), start=1))
    try:
        text = (_unzipped(raw, str(file)) if bare != file.name else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is not UTF-8: {error}.") from error
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{str(file)!r} is damaged or was cut off: {error}. Download it again.") from error
    if bare.endswith((".csv", ".tsv")) and not header:
        return _separated_rows(text, _separator(text, "\t" if bare.endswith(".tsv") else ","), errors)
    if bare.endswith(".json"):
        try:
            whole = parse_json(text)
            return _objects(list(enumerate(whole if isinstance(whole, list) else [whole], start=1)), errors)
        except ValueError:
            pass  # one object a line
    lines = list(enumerate(text.removesuffix("\n").split("\n") if text else (), start=1))
    lines = [(number, line) for number, line in lines if line.strip() or not skip_blank]
    return _headless_rows(lines, header, errors) if header else _json_rows(lines, errors)


class SplitFile(NamedTuple):
    """A file of a split; `part` is the configuration's folder that it lies in, "" in the data set's own."""

    part: str
    file: epath.Path


def split_files(folder: epath.Path, split: str) -> list[SplitFile]:
    """The files of a split in a folder, laid out as on the hub: `<split>.<ending>`, `<split>-00000-of-00002.<ending>`
    or `<split>/*`, in the folder, in its `data`, or in the folders of its configurations.

    Raises:
      DataError: there are none, or one of several is missing.
    """
    found = [SplitFile("", file) for file in _split_files(folder, split)]
    for place in (folder, folder / "data"):
        if not found:
            found = [SplitFile(sub.name, file) for sub in _shown(place) for file in _split_files(sub, split)]
    if not found:
        names = ", ".join(child.name for child in _shown(folder)[:10])
        raise DataError(
            f"{str(folder)!r} has no file {split}{{{', '.join(ENDINGS)}}} or {split}-00000-of-...; found {names}."
        )
    return found


def _split_files(folder: epath.Path, split: str) -> list[epath.Path]:
    own = folder / split
    for place in (folder, folder / "data", own):
        tables = [child for child in _shown(place) if child.name.endswith(ENDINGS)]
        if whole := [file for ending in ENDINGS for file in tables if file.name == split + ending]:
            return whole[:1]
        parts = [file for file in tables if place == own or re.match(rf"{re.escape(split)}[-_.]\d", file.name)]
        counted = [int(match.group(1)) for file in parts if (match := re.search(r"-of-(\d+)", file.name))]
        if counted and len(parts) != counted[0]:
            raise DataError(f"{place} holds {len(parts)} of the {counted[0]} files of {split!r}. Download the others.")
        if parts:
            return parts
    return []


def _shown(folder: epath.Path) -> list[epath.Path]:
    """What a folder holds, sorted, without hidden names; [] where it is none."""
    return sorted(child for child in folder.iterdir() if not child.name.startswith(".")) if folder.is_dir() else []


def _unzipped(raw: bytes, place: str) -> bytes:
    """What a gzip file unpacks to, read up to the limit."""
    limit = _unpacked_limit(raw)
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(_too_large(place, limit))
    return content


def _unpacked_limit(raw: bytes) -> int:
    return min(UNPACKED_BYTES, UNPACKED_FREE + UNPACKED_RATIO * len(raw))


def _too_large(place: str, limit: int) -> str:
    return f"{place!r} unpacks to more than {limit >> 20} MiB, which no text does. Unpack it and look at its content."


def _parquet_rows(raw: bytes, place: str) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = []
    left = limit = _unpacked_limit(raw)
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(raw))
        _refuse_twice(file.schema_arrow.names, place)
        for batch in file.iter_batches(PARQUET_ROWS):
            left -= batch.nbytes
            if left < 0:
                raise DataError(_too_large(place, limit))
            rows += batch.to_pylist()
        return rows
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{place} is damaged, or no parquet file: {error}. Download it again.") from error


def _separator(text: str, usual: str) -> str:
    """What stands between the names of the header: the usual mark, or another where it has none of those."""
    header = text.lstrip("\r\n").partition("\n")[0]
    return next((mark for mark in (usual, *";\t,") if mark in header), usual)


def _separated_rows(text: str, mark: str, errors: RowErrors) -> list[Row]:
    """Rows of a file with a header line; an empty cell is None, as there is no other way to leave one out."""
    first, *lines = _cells(text, mark, errors) or [[]]
    header, rows = [name.strip() for name in first], []
    _refuse_twice(header, errors.place)
    for number, cells in enumerate(lines, start=1):
        if len(cells) > len(header):
            errors.add(number, f"has {len(cells) - len(header)} fields more than the header")
        elif len(cells) < len(header):
            errors.note(number, f"has {len(header) - len(cells)} fields fewer than the header, which are empty")
            cells += [""] * (len(header) - len(cells))
        rows.append((number, {column: cell or None for column, cell in zip(header, cells, strict=False)}))
    return rows


def _refuse_twice(header: Sequence[str], place: str) -> None:
    """DataError for two columns of one name."""
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise DataError(f"{place}: two columns are named {twice[0]!r}. Give each a name of its own.")


def _cells(text: str, mark: str, errors: RowErrors) -> list[list[str]]:
    """The cells of each line that is not blank. A cell in quotation marks may hold the mark, line ends, and quotation
    marks written twice. Any other cell that begins with a quotation mark is taken as it is between tabs, where quoting
    is rare, and is an error between commas or semicolons, where a space may stand before it. A carriage return ends a
    line only where no line ends otherwise."""
    text = text if "\n" in text else text.replace("\r", "\n")
    before = "" if mark == "\t" else " *"
    cell = re.compile(rf'{before}"([^"]*+(?:""[^"]*+)*+)"(?=[{mark}\n]|\r\n|\Z)|([^{mark}\n]*)')
    lines: list[list[str]] = [[]]
    at = 0
    while found := cell.match(text, at):
        quoted, plain = found.groups()
        at = found.end()
        if quoted is None and text[at : at + 1] != mark:
            plain = plain.removesuffix("\r")
        lines[-1].append(plain if quoted is None else quoted.replace('""', '"'))
        if quoted is None and plain.startswith('"') and mark != "\t":
            errors.add(
                len(lines) - 1, f"has a cell with a quotation mark that is not closed at its end: {plain[:40]!r}"
            )
        if quoted is not None and mark == "\t" and mark in quoted and "\n" in quoted:
            errors.add(len(lines) - 1, f"has a cell in quotation marks over columns and lines: {quoted[:40]!r}")
        if at == len(text):
            break
        if text[at] != mark:
            if lines[-1] == [""]:
                lines.pop()  # a blank line
            lines.append([])
        at += 2 if text.startswith("\r\n", at) else 1
    return lines if lines[-1] != [""] else lines[:-1]


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
            values.append((number, parse_json(line)))
        except ValueError as error:
            errors.add(number, f"is no JSON ({error})")
    return _objects(values, errors)


def _objects(values: Sequence[tuple[int, Any]], errors: RowErrors) -> list[Row]:
    rows = []
    for number, value in values:
        if not isinstance(value, dict):
            errors.add(number, f"is {type(value).__name__}, expected an object with named columns")
        elif half := next((name for name, cell in value.items() if not encodes((name, cell))), None):
            errors.add(number, f"{half} holds {HALF_A_CHARACTER}, expected text")
        else:
            rows.append((number, value))
    return rows


def read_saved(folder: epath.Path) -> list[dict[str, Any]]:
    """The rows of a data set that the package `datasets` has saved (`save_to_disk`).

    Raises:
      DataError: it cannot be read.
    """
    import datasets

    try:
        return datasets.load_from_disk(str(folder)).to_list()
    except Exception as error:  # pyarrow and the package raise many kinds
        raise DataError(f"{folder} holds no data set that can be read: {error}. Save it again.") from error


def read_hub(repository: str, configuration: str | None, split: str) -> list[dict[str, Any]]:
    """The rows of one split of a hub data set.

    Raises:
      DataError: it cannot be loaded; the first line of what the client says, and the configurations to choose from.
    """
    import datasets  # slow to import, and sets the level of the client's messages

    client = logging.getLogger("huggingface_hub")
    before = client.level
    client.setLevel(logging.ERROR)  # it prints every attempt; the error says it once
    try:
        return datasets.load_dataset(repository, configuration, split=split).to_list()
    except Exception as error:  # the client raises a dozen unrelated kinds
        first, *more = (str(error).strip() or type(error).__name__).splitlines()
        # The second line of a missing configuration lists those that there are.
        said = [first.rstrip("."), *(line.rstrip(".") for line in more[:1] if "available" in line)]
        raise DataError(". ".join(said)) from error
    finally:
        client.setLevel(before)
