"""XCOPA: which of two sentences is the cause or the effect, in eleven languages (Ponti et al. 2020; CC-BY-4.0).

Prompts and choices are those of lm-evaluation-harness 0.4.13 (tasks xcopa_*): the premise without its last character,
a connecting word, and both sentences with a small first letter. There is no English file.
"""

from typing import Any

from pbrl_jax.data.sources.common import RowErrors
from pbrl_jax.eval.benchmarks.common import (
    LOGLIKELIHOOD,
    Benchmark,
    Problem,
    Request,
    Source,
    known_language,
    limited,
    local_folder,
    read_rows,
)

CONNECTORS = {
    "et": ("sest", "seetõttu"),
    "ht": ("poukisa", "donk sa"),
    "id": ("karena", "maka"),
    "it": ("perché", "quindi"),
    "qu": ("imataq", "chaymi"),
    "sw": ("kwa sababu", "kwa hiyo"),
    "ta": ("காரணமாக", "எனவே"),
    "th": ("เพราะ", "ดังนั้น"),
    "tr": ("çünkü", "bu yüzden"),
    "vi": ("bởi vì", "vì vậy"),
    "zh": ("因为", "所以"),
}
"""Language -> words that lead to a cause and to an effect."""
SOURCE = Source(
    "xcopa", "cambridgeltl/xcopa",
    ("data/{code}/{split}.{code}.jsonl", "{code}/{split}.{code}.jsonl", "{code}/{split}-*.parquet"),
)  # fmt: skip


def context(premise: str, question: str, code: str) -> str:
    """The harness's text before a choice. It drops the premise's last character, a full stop or not."""
    return f"{premise.strip()[:-1]} {CONNECTORS[code][question == 'effect']}"


def continuation(choice: str) -> str:
    """A choice as it follows the context."""
    return f" {choice[0].lower()}{choice[1:]}" if choice else " "


def solved_examples(request: Request, code: str) -> str:
    """The first `request.shots` rows of the validation file with the right choice, an empty line after each."""
    if not request.shots:
        return ""
    split = "validation" if local_folder(SOURCE, request.data) is None else "val"
    rows, place = read_rows(SOURCE, code, code, split, request.data)
    errors, shown = RowErrors(place), ""
    for number, row in enumerate(rows[: request.shots], start=1):
        premise, question, choices, label = _fields(row, number, errors)
        shown += f"{context(premise, question, code)}{continuation(choices[label])}\n\n"
    errors.check()
    return shown


def _fields(row: dict[str, Any], number: int, errors: RowErrors) -> tuple[str, str, list[str], int]:
    premise = errors.text(number, "premise", row.get("premise"))
    choices = [errors.text(number, column, row.get(column)) for column in ("choice1", "choice2")]
    question, label = row.get("question"), row.get("label")
    if question not in ("cause", "effect"):
        errors.add(number, f"question is {question!r}, expected cause or effect")
    if label not in (0, 1):
        errors.add(number, f"label is {label!r}, expected 0 or 1")
    return premise, question, choices, label if label in (0, 1) else 0


def load(request: Request) -> list[Problem]:
    """The 500 test rows, language by language."""
    problems = []
    for code in request.languages:
        rows, place = read_rows(SOURCE, code, code, "test", request.data)
        before, errors = solved_examples(request, code), RowErrors(place)
        for row, values in limited(rows, request.limit):
            premise, question, choices, label = _fields(values, row + 1, errors)
            problems.append(
                Problem(
                    key=f"{code}/{row}", language=code, question=f"{premise} {' '.join(choices)}",
                    prompt=before + context(premise, question, code), answer="AB"[label], kind="letter",
                    answer_language=known_language(code), choices=tuple(map(continuation, choices)), group=question,
                    options=2,
                )
            )  # fmt: skip
        errors.check()
    return problems


BENCHMARK = Benchmark(
    name="xcopa", version="1 (lm-eval 1.0)", languages={code: code for code in CONNECTORS},
    protocols=(LOGLIKELIHOOD,), tokens={LOGLIKELIHOOD: 0}, shots=0, source=SOURCE, load=load,
    published=lambda problem, text, protocol: {},
)  # fmt: skip
