"""Multiple choice with the letters A to D: what Belebele, Global-MMLU and INCLUDE share.

The protocol `loglikelihood` compares the continuations " A" to " D", as lm-evaluation-harness does; `direct` lets the
policy write, and looks for the letter.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pbrl_jax.data.sources.common import RowErrors
from pbrl_jax.eval.benchmarks.common import ENDS, LOGLIKELIHOOD, Problem, Request, known_language, limited
from pbrl_jax.eval.benchmarks.scoring import leading_or_announced_letter

PROTOCOLS = (LOGLIKELIHOOD, "direct")
TOKENS = {LOGLIKELIHOOD: 0, "direct": 16}
LETTERS = "ABCD"
OPTIONS = ("option_a", "option_b", "option_c", "option_d")


def question_and_options(row: dict[str, Any], number: int, errors: RowErrors) -> tuple[str, str]:
    """(question, the harness's text of the problem up to `Answer:`) of a row with option_a to option_d."""
    question = errors.text(number, "question", row.get("question"))
    values = [errors.text(number, column, row.get(column)) for column in OPTIONS]
    lines = "\n".join(f"{letter}. {value}" for letter, value in zip(LETTERS, values, strict=True))
    return question, f"{question}\n{lines}\nAnswer:"


def shots_text(examples: Sequence[tuple[str, str]]) -> str:
    """(text, letter) of solved examples, with an empty line after each."""
    return "".join(f"{text} {letter}\n\n" for text, letter in examples)


def problems_of(
    request: Request,
    code: str,
    rows: Sequence[dict[str, Any]],
    place: str,
    read: Callable[[dict[str, Any], int, RowErrors], tuple[str, str, str]],
    before: Callable[[dict[str, Any]], str] = lambda row: "",
    group: str = "",
) -> list[Problem]:
    """The problems of one language.

    Args:
      read: (row, its number from 1, errors) -> (question, text up to the answer, gold letter).
      before: row -> the solved examples in front of it.
      group: column that names a row's group.
    """
    errors, problems = RowErrors(place), []
    scored = request.protocol == LOGLIKELIHOOD
    for row, values in limited(rows, request.limit):
        question, text, gold = read(values, row + 1, errors)
        problems.append(
            Problem(
                key=f"{code}/{row}", language=code, question=question, prompt=before(values) + text, answer=gold,
                kind="letter", answer_language=known_language(code),
                choices=tuple(f" {letter}" for letter in LETTERS) if scored else (),
                stops=("\n\n", *ENDS), group=str(values.get(group, "")) if group else "", options=len(LETTERS),
            )
        )  # fmt: skip
    errors.check()
    return problems


def published(problem: Problem, text: str, protocol: str) -> dict[str, bool]:
    """Generated letters have no harness rule here: the letter that the text begins with or announces."""
    return {"letter": leading_or_announced_letter(text, problem.answer_language, LETTERS) == problem.answer}
