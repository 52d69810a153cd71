"""What every benchmark needs: its record, its problems, and rows from local files or from the hub."""

import csv
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from pbrl_jax.core.errors import ConfigError, DataError, did_you_mean
from pbrl_jax.data.sources.common import RowErrors, take
from pbrl_jax.text.languages import known_code, named_like

LOGLIKELIHOOD = "loglikelihood"
"""The protocol that generates nothing: the choice with the highest log-probability is the answer."""
LETTERS = "ABCDEFGHIJ"
ENDS = ("</s>", "<|im_end|>")
"""Strings after which the harness cuts every response."""


class Problem(NamedTuple):
    """One problem in one language, ready to be put to a policy.

    `key` is `<language>/<row>`, the same row in every language where the benchmark is parallel. `prompt` is the text
    to continue; `question` is the problem alone, for the contamination check and for other prompt styles. `answer` is
    the gold answer: a number, LaTeX, or a letter. `kind` says which. `answer_language` is the one whose answer
    markers count. `choices` are the continuations that are scored, one for each letter; () for generated answers.
    A response is cut before the first of `stops`.
    """

    key: str
    language: str
    question: str
    prompt: str
    answer: str
    kind: str
    answer_language: str
    choices: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    group: str = ""
    options: int = 0


class Request(NamedTuple):
    """What of a benchmark is asked for; `limit` 0 is all rows, `data` replaces the folder and the hub id."""

    languages: tuple[str, ...]
    protocol: str
    shots: int = 0
    limit: int = 0
    data: str = ""


class Source(NamedTuple):
    """Where a benchmark's rows are.

    `folder` is below PBRL_DATA; `files` are paths in it with {code} (our language code), {config} (the benchmark's
    name of the language) and {split}; `*` stands for anything. `header` names the columns of files without a header.
    """

    folder: str
    hub: str
    files: tuple[str, ...]
    header: tuple[str, ...] = ()


class Benchmark(NamedTuple):
    """One benchmark: a line of the table.

    `version` changes with everything that changes a response or its grade: rows, prompts, extraction. `languages` maps
    our codes to the benchmark's names. The first of `protocols` is the default one; `tokens` is the longest response
    of each. `published` grades a response by the rules of published evaluations, name -> right or wrong. `extract` is
    our extraction where it is not the one of the problem's kind.
    """

    name: str
    version: str
    languages: Mapping[str, str]
    protocols: tuple[str, ...]
    tokens: Mapping[str, int]
    shots: int
    source: Source
    load: Callable[[Request], list[Problem]]
    published: Callable[[Problem, str, str], dict[str, bool]]
    extract: Callable[[Problem, str], str | None] | None = None


def check_request(benchmark: Benchmark, request: Request) -> Request:
    """The request with names checked; languages may be given by our code or by the benchmark's own name.

    Raises:
      ConfigError: an unknown protocol or language with the nearest name, a doubled language, or a negative number.
    """
    if request.protocol not in benchmark.protocols:
        known = did_you_mean(request.protocol, benchmark.protocols)
        raise ConfigError(f"{benchmark.name} has no protocol {request.protocol!r}. {known}")
    own = {config: code for code, config in benchmark.languages.items()}
    codes = tuple(own.get(code, code) for code in request.languages or benchmark.languages)
    for code in codes:
        if code not in benchmark.languages:
            raise ConfigError(f"{benchmark.name} has no language {code!r}.{named_like(code, benchmark.languages)}")
    doubles = sorted({code for code in codes if codes.count(code) > 1})
    if doubles:
        raise ConfigError(f"Languages given twice: {', '.join(doubles)}. Name each one once.")
    for option, value in (("--limit", request.limit), ("--shots", request.shots)):
        if value < 0:
            raise ConfigError(f"{option} is {value}; expected 0 or more.")
    return request._replace(languages=codes)


def known_language(code: str) -> str:
    """Our code of a language, whatever a data set calls it (`afr_Latn`); English where we have no entry."""
    return known_code(code) or "en"


def limited(rows: Sequence, limit: int) -> list[tuple[int, Any]]:
    """(row number, row) of `limit` rows spread over the file, or of all; languages of one length get the same rows."""
    return take(list(enumerate(rows)), limit, 0)


# Rows.


def local_folder(source: Source, data: str) -> epath.Path | None:
    """The folder with the benchmark's files: `data` where it is a folder, else PBRL_DATA/<folder>; None: the hub's."""
    if data:
        place = epath.Path(data)
        return place if place.is_dir() else None
    root = os.environ.get("PBRL_DATA", "")
    place = epath.Path(root) / source.folder if root else None
    return place if place is not None and place.is_dir() else None


def read_rows(source: Source, code: str, config: str, split: str, data: str = "") -> tuple[list[dict[str, Any]], str]:
    """(rows, the place they come from) of one language and split: a local file where there is one, else the hub.

    Raises:
      DataError: no such file, a damaged one, or a hub that cannot be reached; says which local file would serve.
    """
    folder = local_folder(source, data)
    names = [name.format(code=code, config=config, split=split) for name in source.files]
    if folder is not None:
        for name in names:
            found = sorted(folder.glob(name)) if "*" in name else [folder / name] * (folder / name).exists()
            if found:
                return [row for file in found for row in read_file(file, source.header)], " + ".join(map(str, found))
        raise DataError(f"{folder} holds no rows of {code!r}, split {split!r}. Expected one of: {', '.join(names)}.")
    return _hub_rows(data or source.hub, config, split, source.folder, names)


def _hub_rows(hub: str, config: str, split: str, folder: str, names: Sequence[str]):
    import datasets  # slow to import, and sets the level of the client's messages

    client = logging.getLogger("huggingface_hub")
    before = client.level
    client.setLevel(logging.ERROR)  # it announces every try to reach the hub, and the error below says it once
    try:
        return datasets.load_dataset(hub, config, split=split).to_list(), f"{hub} ({config}, {split})"
    except Exception as error:  # the hub client raises a dozen unrelated kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"The hub data set {hub!r} ({config}, split {split!r}) cannot be loaded: {first.rstrip('.')}. Check the "
            f"network and HF_TOKEN, or set PBRL_DATA to a folder with {folder}/{names[0]} (or give --data that "
            f"{folder} folder)."
        ) from error
    finally:
        client.setLevel(before)


def read_file(file: epath.Path, header: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .json, .tsv, .csv or .parquet file as dicts; `header` names columns of a headerless table.

    Raises:
      DataError: unreadable content, with the row where there is one.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(file)
    try:
        text = file.read_text()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error}.") from error
    if suffix == ".json" and text.lstrip().startswith("["):
        return _objects(_json(text, file, 1), file)
    if suffix in (".json", ".jsonl"):
        lines = enumerate(text.split("\n"), start=1)
        return _objects([_json(line, file, number) for number, line in lines if line.strip()], file)
    if suffix == ".tsv" and header:
        return _headless(text, header, file)
    return [dict(row) for row in csv.DictReader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ",")]


def _parquet_rows(file: epath.Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet

        return pyarrow.parquet.read_table(io.BytesIO(file.read_bytes())).to_pylist()
    except Exception as error:
        raise DataError(f"{file} is no parquet file: {error}. Download it again.") from error


def _json(text: str, file: epath.Path, row: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: row {row} is no JSON ({error}). Correct or remove this row.") from error


def _objects(values: Iterable[Any], file: epath.Path) -> list[dict[str, Any]]:
    values = list(values)
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise DataError(f"{file}: row {number} is {type(value).__name__}, expected an object with named columns.")
    return values


def _headless(text: str, header: Sequence[str], file: epath.Path) -> list[dict[str, Any]]:
    errors, rows = RowErrors(str(file)), []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) < len(header):
            errors.add(number, f"has {len(fields)} columns, expected {', '.join(header)} with tabs between")
        rows.append(dict(zip(header, fields, strict=False)))
    errors.check()
    return rows


def option_letter(row: dict[str, Any], column: str, number: int, letters: str, errors: RowErrors) -> str:
    """The gold letter of a row: a letter, or the index of one from 0; "" and a remembered error otherwise."""
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(letters):
        return letters[value]
    if isinstance(value, str) and value.strip() in letters and value.strip():
        return value.strip()
    errors.add(number, f"{column} is {value!r}, expected one of {', '.join(letters)}, or its index from 0")
    return ""
