"""Grading of responses and scored choices, by our rules and by those of published evaluations."""

from collections.abc import Sequence
from typing import Any

from pbrl_jax.core.errors import DataError
from pbrl_jax.eval.benchmarks.common import LETTERS, Benchmark, Problem
from pbrl_jax.eval.benchmarks.scoring import leading_or_announced_letter
from pbrl_jax.eval.fidelity import fidelity
from pbrl_jax.text.alike import related_languages
from pbrl_jax.text.answers import extract_answer, same_answer
from pbrl_jax.text.langid import Alternatives, identifier_of, identify_language
from pbrl_jax.text.languages import LANGUAGES, known_code


def extract(benchmark: Benchmark, problem: Problem, text: str) -> str | None:
    """The answer that we extract from a response: the announced answer, else the last number, or of an option letter
    the one at the beginning."""
    if benchmark.extract is not None:
        return benchmark.extract(problem, text)
    if problem.kind == "letter" or (problem.kind == "number" and problem.answer in tuple(LETTERS)):
        return leading_or_announced_letter(text, problem.answer_language, LETTERS[: problem.options or len(LETTERS)])
    return extract_answer(text, problem.answer_language, fallback=True)


def grade_response(benchmark: Benchmark, protocol: str, problem: Problem, row: dict[str, Any],
                   alternatives: Alternatives) -> dict[str, Any]:  # fmt: skip
    """A generated row with its grades.

    Adds question, gold, extracted, correct, marker_missing (an answer was found, but not announced), published,
    right_language, response_language (the most likely one, None if the text is too short), line_pass, word_pass and
    code_switch.
    """
    text = row["completion"]
    extracted = extract(benchmark, problem, text)
    # In the English protocol the response should be English.
    expected = "en" if protocol == "en-cot" else known_code(problem.language)
    verdict = fidelity(text, expected or problem.language, alternatives)
    candidates = [code for code in dict.fromkeys((expected, *alternatives, "en")) if code in LANGUAGES]
    return row | {
        "question": problem.question,
        "gold": problem.answer,
        "extracted": extracted,
        "correct": same_answer(extracted, problem.answer),
        "marker_missing": extracted is not None and extract_answer(text, problem.answer_language) is None,
        "published": benchmark.published(problem, text, protocol),
        # As in training: a text that is too short counts as right; None if no identifier knows the language.
        "right_language": None if expected is None or not identifier_of(expected) else verdict.right is not False,
        "response_language": identify_language(text, candidates),
        "line_pass": verdict.lines,
        "word_pass": verdict.words,
        "code_switch": verdict.switched,
    }


def grade_choices(problem: Problem, row: dict[str, Any]) -> dict[str, Any]:
    """A row of log-probabilities with its grades.

    Adds gold, extracted and correct (highest sum: acc of lm-evaluation-harness), and published.lm_eval_acc_norm
    (highest sum per character of the choice). The first of equal choices wins, as in the harness.
    """
    sums = row["logprobs"]
    per_character = [value / len(choice[1:]) for value, choice in zip(sums, problem.choices, strict=True)]
    best, best_norm = (LETTERS[scores.index(max(scores))] for scores in (sums, per_character))
    return row | {
        "gold": problem.answer,
        "extracted": best,
        "correct": best == problem.answer,
        "published": {"lm_eval_acc": best == problem.answer, "lm_eval_acc_norm": best_norm == problem.answer},
    }


def grade_rows(benchmark: Benchmark, protocol: str, problems: Sequence[Problem],
               rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:  # fmt: skip
    """All rows with their grades, sorted by problem and sample.

    Raises:
      DataError: a row of a problem that is not in this evaluation, or a missing field.
    """
    by_key = {problem.key: (place, problem) for place, problem in enumerate(problems)}
    questions = [(known_code(problem.language) or problem.language, problem.question) for problem in problems]
    alternatives: Alternatives = (*dict.fromkeys(code for code, _ in questions), *related_languages(questions).pairs)
    graded = []
    for row in rows:
        if row.get("key") not in by_key:
            raise DataError(f"responses.jsonl has a row of {row.get('key')!r}, which is no problem of this evaluation.")
        place, problem = by_key[row["key"]]
        _check_row(problem, row)
        if problem.choices:
            new = grade_choices(problem, row)
        else:
            new = grade_response(benchmark, protocol, problem, row, alternatives)
        graded.append((place, row["sample"], new))
    return [row for _, _, row in sorted(graded, key=lambda entry: entry[:2])]


def _check_row(problem: Problem, row: dict[str, Any]) -> None:
    fields = {"sample": int, "completion": str, "tokens": int, "truncated": bool}
    if problem.choices:
        fields = {"sample": int, "logprobs": list}
    wrong = [name for name, kind in fields.items() if not isinstance(row.get(name), kind)]
    if not wrong and problem.choices and len(row["logprobs"]) != len(problem.choices):
        wrong = ["logprobs"]
    if wrong:
        raise DataError(
            f"responses.jsonl: the row of {row['key']!r} has no usable {', '.join(wrong)}. Delete the row: the same "
            "command generates it again."
        )
