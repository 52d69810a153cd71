"""Global-MMLU and its Lite form: MMLU in 42 and 15 languages (Singh et al. 2024, arXiv 2412.03304; Apache-2.0).

Prompts and choices are those of lm-evaluation-harness 0.4.13 (tasks global_mmlu_full_*). Few-shot examples are the
first ones of the `dev` split with the row's subject.
"""

from typing import Any

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.sources.common import RowErrors
from pbrl_jax.eval.benchmarks.common import Benchmark, Problem, Request, Source, option_letter, read_rows
from pbrl_jax.eval.benchmarks.multiple_choice import (
    LETTERS,
    PROTOCOLS,
    TOKENS,
    problems_of,
    published,
    question_and_options,
    shots_text,
)

FULL = tuple(
    "am ar bn cs de el en es fa fil fr ha he hi id ig it ja ko ky lt mg ms ne nl ny pl pt ro ru si sn so sr sv sw te "
    "tr uk vi yo zh".split()
)
LITE = tuple("ar bn de en es fr hi id it ja ko pt sw yo zh".split())
FILES = ("{config}/{split}-*.parquet", "{config}/{split}.jsonl", "{config}/{split}.csv")


def read(row: dict[str, Any], number: int, errors: RowErrors) -> tuple[str, str, str]:
    """(question, text up to the answer, gold letter) of a row."""
    return *question_and_options(row, number, errors), option_letter(row, "answer", number, LETTERS, errors)


def _loader(source: Source):
    def load(request: Request) -> list[Problem]:
        problems = []
        for code in request.languages:
            rows, place = read_rows(source, code, code, "test", request.data)
            examples = _examples(source, request, code) if request.shots else {}

            def before(row, examples=examples):
                return shots_text(examples.get(row.get("subject"), ())[: request.shots])

            problems += problems_of(request, code, rows, place, read, before, "subject")
        return problems

    return load


def _examples(source: Source, request: Request, code: str) -> dict[str, list[tuple[str, str]]]:
    """Subject -> (text, letter) of its rows in the `dev` split."""
    rows, place = read_rows(source, code, code, "dev", request.data)
    errors, found = RowErrors(place), {}
    for number, row in enumerate(rows, start=1):
        _, text, letter = read(row, number, errors)
        found.setdefault(row.get("subject"), []).append((text, letter))
    errors.check()
    fewest = min((len(examples) for examples in found.values()), default=0)
    if fewest < request.shots:
        raise ConfigError(f"--shots is {request.shots}, but {place} has {fewest} examples of a subject. Lower it.")
    return found


def benchmark(name: str, languages: tuple[str, ...], hub: str) -> Benchmark:
    """The full or the Lite form."""
    source = Source(name.replace("-", "_"), hub, FILES)
    return Benchmark(
        name=name, version="1 (lm-eval 0.0)", languages={code: code for code in languages}, protocols=PROTOCOLS,
        tokens=TOKENS, shots=0, source=source, load=_loader(source), published=published,
    )  # fmt: skip
