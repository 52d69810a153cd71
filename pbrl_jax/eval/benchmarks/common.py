"""Records of benchmarks and problems, and reading their rows from local files or the hub."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from pbrl_jax.core.errors import ConfigError, DataError, did_you_mean
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.sources.common import take
from pbrl_jax.data.tables import read_hub, read_rows
from pbrl_jax.text.languages import known_code, named_like

LOGLIKELIHOOD = "loglikelihood"
"""The protocol without generation: the choice with the highest log-probability is the answer."""
LETTERS = "ABCDEFGHIJ"
ENDS = ("</s>", "<|im_end|>")
"""Strings before which the harness cuts every response."""


class Problem(NamedTuple):
    """One problem in one language.

    `key` is `<language>/<row>`, with the same row in every language if the benchmark is parallel. `prompt` is the text
    to continue; `question` is the bare problem, for the contamination check and for other prompt styles. `answer` is
    the gold answer, and `kind` its type: number, latex or letter. `answer_language` is the language of answer markers.
    `choices` are the continuations that are scored, one per letter; () for generated answers. A response is cut before
    the first of `stops`. `turns` are those of a problem that is a conversation.
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
    turns: tuple[tuple[str, str], ...] = ()


class Request(NamedTuple):
    """The requested problems of a benchmark; `limit` 0: all rows; `data` replaces folder and hub id of the data set;
    `columns` are a table's `field=column` pairs."""

    languages: tuple[str, ...]
    protocol: str
    shots: int = 0
    limit: int = 0
    data: str = ""
    columns: tuple[str, ...] = ()


class Dataset(NamedTuple):
    """The location of a benchmark's rows.

    `folder` is in PBRL_DATA; `files` are glob patterns in it with {code} (our language code), {config} (the benchmark's
    name of the language) and {split}.
    """

    folder: str
    hub: str
    files: tuple[str, ...] = ("{config}/{split}-*.parquet", "{config}/{split}.jsonl", "{config}/{split}.csv")


class Benchmark(NamedTuple):
    """One benchmark.

    `version` changes with everything that changes a response or its published grade: rows, prompts, published rules;
    our own grades are made anew for a comparison. `languages` maps our codes to the benchmark's names. The first of
    `protocols` is the default; `tokens` is the longest response of each protocol. `published` grades a response by the
    rules of published evaluations: name -> whether it is correct. `extract` is our extraction, if it differs from that
    of the problem's kind.
    """

    name: str
    version: str
    languages: Mapping[str, str]
    protocols: tuple[str, ...]
    tokens: Mapping[str, int]
    shots: int
    dataset: Dataset
    load: Callable[[Request], list[Problem]]
    published: Callable[[Problem, str, str], dict[str, bool]]
    extract: Callable[[Problem, str], str | None] | None = None


def check_request(benchmark: Benchmark, request: Request) -> Request:
    """The request after checks; languages may be given by our code or by the benchmark's name.

    Raises:
      ConfigError: an unknown protocol or language (with the nearest name), a repeated language, or a negative number.
    """
    if request.protocol not in benchmark.protocols:
        known = did_you_mean(request.protocol, benchmark.protocols)
        raise ConfigError(f"{benchmark.name} has no protocol {request.protocol!r}. {known}")
    code_of = {config: code for code, config in benchmark.languages.items()}
    codes = tuple(code_of.get(code, code) for code in request.languages or benchmark.languages)
    for code in codes:
        if code not in benchmark.languages:
            raise ConfigError(f"{benchmark.name} has no language {code!r}.{named_like(code, benchmark.languages)}")
    repeated = sorted({code for code in codes if codes.count(code) > 1})
    if repeated:
        raise ConfigError(f"Languages given twice: {', '.join(repeated)}. Name each one once.")
    for option, value in (("--limit", request.limit), ("--shots", request.shots)):
        if value < 0:
            raise ConfigError(f"{option} is {value}; expected 0 or more.")
    return request._replace(languages=codes)


def known_language(code: str) -> str:
    """Our code of a language from the data set's name (`afr_Latn`); English for an unknown language."""
    return known_code(code) or "en"


def limited(rows: Sequence, limit: int) -> list[tuple[int, Any]]:
    """(row number, row) of `limit` rows spread over the file (0: all), the same for languages of the same length."""
    return take(list(enumerate(rows)), limit, 0)


# Rows.


def local_folder(dataset: Dataset, data: str) -> epath.Path | None:
    """The folder with the benchmark's files: `data` if given, else PBRL_DATA/<folder>; None if it does not exist."""
    root = os.environ.get("PBRL_DATA", "")
    place = epath.Path(data) if data else epath.Path(root) / dataset.folder if root else None
    return place if place is not None and place.is_dir() else None


def benchmark_rows(
    dataset: Dataset, code: str, config: str, split: str, data: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """(rows, their place) of one language and split, from a local file if there is one, else from the hub.

    Raises:
      DataError: no such file, a damaged one, or a hub that cannot be reached (names the local file to provide).
    """
    folder = local_folder(dataset, data)
    pattern = epath.Path(glob.escape(str(folder)))  # epath would read the folder's name as a pattern
    names = [name.format(code=code, config=config, split=split) for name in dataset.files]
    if folder is None:
        return _hub_rows(data or dataset.hub, config, split, f"{dataset.folder}/{names[0]}")
    for name in names:
        files = sorted(pattern.glob(name)) if "*" in name else [folder / name] * (folder / name).exists()
        if files:
            errors = RowErrors(" + ".join(map(str, files)))
            rows = [row for file in files for _, row in read_rows(file, errors, skip_blank=True)]
            errors.check()
            return rows, errors.place
    raise DataError(f"{folder} holds no rows of {code!r}, split {split!r}. Expected one of: {', '.join(names)}.")


def _hub_rows(hub: str, config: str, split: str, local: str) -> tuple[list[dict[str, Any]], str]:
    try:
        return read_hub(hub, config, split), f"{hub} ({config}, {split})"
    except DataError as error:
        raise DataError(
            f"The hub data set {hub!r} ({config}, split {split!r}) cannot be loaded: {error}. Check the network and "
            f"HF_TOKEN, or set PBRL_DATA to a folder with {local} (or give --data that {local.split('/')[0]} folder)."
        ) from error.__cause__


def requested_rows(dataset: Dataset, code: str, config: str, request: Request) -> Iterator[tuple[int, dict, RowErrors]]:
    """Yield (row, values, errors) of the requested test rows of a language; recorded errors are raised at the end."""
    rows, place = benchmark_rows(dataset, code, config, "test", request.data)
    errors = RowErrors(place)
    for row, values in limited(rows, request.limit):
        yield row, values, errors
    errors.check()


def solved_examples(dataset: Dataset, request: Request, config: tuple[str, str], split: str, column: str,
                    show: Callable[[dict[str, Any], int, RowErrors], Any]) -> dict[str, list]:  # fmt: skip
    """Group -> its first `request.shots` worked examples of a split, each formatted by `show`.

    Args:
      config: our code of the language, and the benchmark's name.
      column: column with the group of a row; "": all rows are in the group "".

    Raises:
      ConfigError: a group has fewer examples.
    """
    if not request.shots:
        return {}
    rows, place = benchmark_rows(dataset, *config, split, request.data)
    errors = RowErrors(place)
    groups: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=1):
        shown = groups.setdefault(str(row.get(column)) if column else "", [])
        if len(shown) < request.shots:
            shown.append(show(row, number, errors))
    errors.check()
    fewest = min(map(len, groups.values()), default=0)
    if fewest < request.shots:
        of = " of a subject" if column else ""
        raise ConfigError(f"--shots is {request.shots}, but {place} has {fewest} examples{of}. Lower it.")
    return groups


def option_letter(row: dict[str, Any], column: str, number: int, letters: str, errors: RowErrors) -> str:
    """The gold letter of a row, given as a letter or as an index from 0; otherwise "" and a recorded error."""
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(letters):
        return letters[value]
    if isinstance(value, str) and value.strip() in tuple(letters):
        return value.strip()
    errors.add(number, f"{column} is {value!r}, expected one of {', '.join(letters)}, or its index from 0")
    return ""
