"""Multiple choice with the letters A to D, for Belebele, Global-MMLU and INCLUDE.

The protocol `loglikelihood` compares the continuations " A" to " D", as lm-evaluation-harness does; `direct` generates
a response and extracts the letter.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.eval.benchmarks.common import (
    ENDS,
    LOGLIKELIHOOD,
    Benchmark,
    Dataset,
    Problem,
    Request,
    known_language,
    option_letter,
    requested_rows,
    solved_examples,
)
from pbrl_jax.eval.benchmarks.scoring import leading_or_announced_letter

LETTERS = "ABCD"
OPTIONS = ("option_a", "option_b", "option_c", "option_d")
ReadRow = Callable[[dict[str, Any], int, RowErrors], tuple[str, str, str]]
"""(row, its number, errors) -> (question, text up to the answer, gold letter)."""


def read_options(row: dict[str, Any], number: int, errors: RowErrors) -> tuple[str, str, str]:
    """(question, text up to the answer, gold letter) of a row with option_a to option_d and `answer`."""
    question = errors.text(number, "question", row.get("question"))
    values = [errors.text(number, column, row.get(column)) for column in OPTIONS]
    lines = "\n".join(f"{letter}. {value}" for letter, value in zip(LETTERS, values, strict=True))
    return question, f"{question}\n{lines}\nAnswer:", option_letter(row, "answer", number, LETTERS, errors)


def choice_benchmark(
    name: str, languages: Mapping[str, str], dataset: Dataset, *, examples: str = "", subject: str = "",
    read: ReadRow = read_options, by_subject: bool = False,
) -> Benchmark:  # fmt: skip
    """A benchmark with the letters A to D.

    Args:
      examples: split of the few-shot examples; "": there is none, and examples from test rows would leak.
      subject: column with the subject of a row.
      read: reads a row.
      by_subject: whether the examples are of the row's subject.
    """

    def load(request: Request) -> list[Problem]:
        if request.shots and not examples:
            raise ConfigError(f"{name} has no rows apart from its test rows: examples would leak. Use --shots 0.")
        problems = []
        for code in request.languages:
            config, column = (code, languages[code]), subject if by_subject else ""
            shots = solved_examples(dataset, request, config, examples, column, read)
            for row, values, errors in requested_rows(dataset, *config, request):
                solved = shots.get(str(values.get(column)) if column else "", ())
                before = "".join(f"{text} {letter}\n\n" for _, text, letter in solved)
                question, text, gold = read(values, row + 1, errors)
                scored = request.protocol == LOGLIKELIHOOD
                problems.append(Problem(
                    key=f"{code}/{row}", language=code, question=question, prompt=before + text, answer=gold,
                    kind="letter", answer_language=known_language(code),
                    choices=tuple(f" {letter}" for letter in LETTERS) if scored else (),
                    stops=("\n\n", *ENDS), group=str(values.get(subject, "")), options=len(LETTERS),
                ))  # fmt: skip
        return problems

    return Benchmark(
        name=name, version="1 (lm-eval 0.0)", languages=languages, protocols=(LOGLIKELIHOOD, "direct"),
        tokens={LOGLIKELIHOOD: 0, "direct": 16}, shots=0, dataset=dataset, load=load, published=published,
    )  # fmt: skip


def published(problem: Problem, text: str, protocol: str) -> dict[str, bool]:
    """The grade of a generated letter, announced or at the beginning; the harness has no rule for it."""
    return {"letter": leading_or_announced_letter(text, problem.answer_language, LETTERS) == problem.answer}
