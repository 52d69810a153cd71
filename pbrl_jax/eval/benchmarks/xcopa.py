"""XCOPA: which of two sentences is the cause or the effect, in eleven languages (Ponti et al. 2020; CC-BY-4.0).

Prompts and choices are those of lm-evaluation-harness 0.4.13 (tasks xcopa_*): the premise without its last character,
a connecting word, and both sentences with a lower-case first letter. There is no English file.
"""

from typing import Any

from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.eval.benchmarks.common import (
    LOGLIKELIHOOD,
    Benchmark,
    Dataset,
    Problem,
    Request,
    known_language,
    local_folder,
    requested_rows,
    solved_examples,
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
"""Language -> (connecting words before a cause, before an effect)."""
DATASET = Dataset(
    "xcopa", "cambridgeltl/xcopa",
    ("data/{code}/{split}.{code}.jsonl", "{code}/{split}.{code}.jsonl", "{code}/{split}-*.parquet"),
)  # fmt: skip


def context(premise: str, question: str, code: str) -> str:
    """The harness's text before a choice, without the premise's last character, whatever it is."""
    return f"{premise.strip()[:-1]} {CONNECTORS[code][question == 'effect']}"


def continuation(choice: str) -> str:
    """A choice as the continuation of the context."""
    return f" {choice[0].lower()}{choice[1:]}" if choice else " "


def shots_text(request: Request, code: str) -> str:
    """The first `request.shots` rows of the validation split with the correct choice, each followed by a blank line."""

    def show(row: dict[str, Any], number: int, errors: RowErrors) -> str:
        premise, question, choices, label = _fields(row, number, errors)
        return f"{context(premise, question, code)}{continuation(choices[label])}\n\n"

    split = "validation" if local_folder(DATASET, request.data) is None else "val"
    return "".join(solved_examples(DATASET, request, (code, code), split, "", show).get("", ()))


def _fields(row: dict[str, Any], number: int, errors: RowErrors) -> tuple[str, str, list[str], int]:
    premise = errors.text(number, "premise", row.get("premise"))
    choices = [errors.text(number, column, row.get(column)) for column in ("choice1", "choice2")]
    question, label = str(row.get("question")), row.get("label")
    if question not in ("cause", "effect"):
        errors.add(number, f"question is {question!r}, expected cause or effect")
    if label not in (0, 1):
        errors.add(number, f"label is {label!r}, expected 0 or 1")
    return premise, question, choices, 1 if label == 1 else 0


def load(request: Request) -> list[Problem]:
    """The 500 test rows, language by language."""
    problems = []
    for code in request.languages:
        before = shots_text(request, code)
        for row, values, errors in requested_rows(DATASET, code, code, request):
            premise, question, choices, label = _fields(values, row + 1, errors)
            problems.append(
                Problem(
                    key=f"{code}/{row}", language=code, question=f"{premise} {' '.join(choices)}",
                    prompt=before + context(premise, question, code), answer="AB"[label], kind="letter",
                    answer_language=known_language(code), choices=tuple(map(continuation, choices)), group=question,
                    options=2,
                )
            )  # fmt: skip
    return problems


BENCHMARK = Benchmark(
    name="xcopa", version="1 (lm-eval 1.0)", languages={code: code for code in CONNECTORS},
    protocols=(LOGLIKELIHOOD,), tokens={LOGLIKELIHOOD: 0}, shots=0, dataset=DATASET, load=load,
    published=lambda problem, text, protocol: {},
)  # fmt: skip
