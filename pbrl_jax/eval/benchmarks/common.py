"""What every benchmark needs: its record, its problems, and rows from local files or from the hub."""

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
"""The protocol that generates nothing: the choice with the highest log-probability is the answer."""
LETTERS = "ABCDEFGHIJ"
ENDS = ("</s>", "<|im_end|>")
"""Strings before which the harness cuts every response."""


class Problem(NamedTuple):
    """One problem in one language, ready for a policy.

    `key` is `<language>/<row>`, the same row in every language where the benchmark is parallel. `prompt` is the text
    to continue; `question` is the problem alone, for the contamination check and for other prompt styles. `answer` is
    the gold answer: a number, LaTeX, or a letter. `kind` says which. `answer_language` is the one whose answer
    markers count. `choices` are the continuations that are scored, one for each letter; () for generated answers.
    A response is cut before the first of `stops`. `turns` are those of a problem that is a conversation.
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
    """Which problems of a benchmark; `limit` 0 is all rows, `data` replaces the folder and the hub id, `columns` are a
    table's `field=column` pairs."""

    languages: tuple[str, ...]
    protocol: str
    shots: int = 0
    limit: int = 0
    data: str = ""
    columns: tuple[str, ...] = ()


class Dataset(NamedTuple):
    """Where a benchmark's rows are.

    `folder` is below PBRL_DATA; `files` are paths in it with {code} (our language code), {config} (the benchmark's
    name of the language) and {split}; `*` stands for anything.
    """

    folder: str
    hub: str
    files: tuple[str, ...] = ("{config}/{split}-*.parquet", "{config}/{split}.jsonl", "{config}/{split}.csv")


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
    dataset: Dataset
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


def local_folder(dataset: Dataset, data: str) -> epath.Path | None:
    """The folder with the benchmark's files: `data` where it is a folder, else PBRL_DATA/<folder>; None: the hub's."""
    if data:
        place = epath.Path(data)
        return place if place.is_dir() else None
    root = os.environ.get("PBRL_DATA", "")
    place = epath.Path(root) / dataset.folder if root else None
    return place if place is not None and place.is_dir() else None


def benchmark_rows(
    dataset: Dataset, code: str, config: str, split: str, data: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """(rows, where they come from) of one language and split: a local file where there is one, else the hub.

    Raises:
      DataError: no such file, a damaged one, or a hub that cannot be reached; says which local file would serve.
    """
    folder = local_folder(dataset, data)
    pattern = epath.Path(glob.escape(str(folder)))  # epath reads the folder's name as a pattern, too
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
    """(row, values, errors) of the requested test rows of a language; errors added to it are raised at the end."""
    rows, place = benchmark_rows(dataset, code, config, "test", request.data)
    errors = RowErrors(place)
    for row, values in limited(rows, request.limit):
        yield row, values, errors
    errors.check()


def solved_examples(dataset: Dataset, request: Request, config: tuple[str, str], split: str, column: str,
                    show: Callable[[dict[str, Any], int, RowErrors], Any]) -> dict[str, list]:  # fmt: skip
    """Group -> its first `request.shots` worked examples, shown by `show`, from another split than the test rows.

    Args:
      config: the language's code and the benchmark's name of it.
      column: names a row's group; "" puts all rows in one group, "".

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
    """The gold letter of a row: a letter, or the index of one from 0; "" and an error otherwise."""
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(letters):
        return letters[value]
    if isinstance(value, str) and value.strip() in letters and value.strip():
        return value.strip()
    errors.add(number, f"{column} is {value!r}, expected one of {', '.join(letters)}, or its index from 0")
    return ""
