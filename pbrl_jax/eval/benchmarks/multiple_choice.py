"""Multiple choice with the letters A to D: what Belebele, Global-MMLU and INCLUDE share.

The protocol `loglikelihood` compares the continuations " A" to " D", as lm-evaluation-harness does; `direct` lets the
policy write, and looks for the letter.
"""

from collections.abc import Sequence
from typing import Any

from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.eval.benchmarks.common import ENDS, LOGLIKELIHOOD, Problem, Request, known_language, option_letter
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


def shots_text(examples: Sequence[tuple[str, str, str]]) -> str:
    """Solved examples, as read_options gives them, with an empty line after each."""
    return "".join(f"{text} {letter}\n\n" for _, text, letter in examples)


def read_options(row: dict[str, Any], number: int, errors: RowErrors) -> tuple[str, str, str]:
    """(question, text up to the answer, gold letter) of a row with option_a to option_d and `answer`."""
    return *question_and_options(row, number, errors), option_letter(row, "answer", number, LETTERS, errors)


def choice_problem(request: Request, code: str, row: int, text: tuple[str, str, str], before: str = "",
                   group: str = "") -> Problem:  # fmt: skip
    """The problem of one row.

    Args:
      text: question, text up to the answer, gold letter.
      before: solved examples in front of it.
      group: the row's subject.
    """
    question, prompt, gold = text
    scored = request.protocol == LOGLIKELIHOOD
    return Problem(
        key=f"{code}/{row}", language=code, question=question, prompt=before + prompt, answer=gold, kind="letter",
        answer_language=known_language(code), choices=tuple(f" {letter}" for letter in LETTERS) if scored else (),
        stops=("\n\n", *ENDS), group=group, options=len(LETTERS),
    )  # fmt: skip


def published(problem: Problem, text: str, protocol: str) -> dict[str, bool]:
    """Generated letters have no harness rule here: the letter that the text begins with or announces."""
    return {"letter": leading_or_announced_letter(text, problem.answer_language, LETTERS) == problem.answer}
