"""MMLU-ProX and its Lite form: up to ten options, 29 languages (Xuan et al. 2025, arXiv 2503.10497; MIT).

Prompts, stops and the published extraction are those of lm-evaluation-harness 0.4.13 (tasks mmlu_prox_*): a sentence
that names the subject, the first five worked solutions of the subject from the `validation` split, and a chain of
thought. The published extraction is the first match of an expression; ours is the last match, without markdown.
"""

import re
from typing import Any

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.eval.benchmarks.common import (
    ENDS,
    LETTERS,
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
from pbrl_jax.eval.benchmarks.mmlu_prox_words import benchmark_words
from pbrl_jax.eval.benchmarks.scoring import INVALID, harness_strict, leading_or_announced_letter

PROTOCOLS = ("native-cot", "en-cot", LOGLIKELIHOOD)
SHOTS = 5


def options_of(row: dict[str, Any], number: int, errors: RowErrors) -> list[str]:
    """The options of a row, at least two; "" for a missing one before others, which keep their letters."""
    values = [row.get(f"option_{index}") for index in range(len(LETTERS))]
    options = ["" if option is None else str(option) for option in values]
    while options and not options[-1].strip():
        options.pop()
    if (count := sum(bool(option.strip()) for option in options)) < 2:
        errors.add(number, f"option_0 to option_9 hold {count} options, expected at least two")
    return options


def problem_text(question: str, options: list[str], code: str) -> str:
    """The text of a problem, up to the words before its answer."""
    words = benchmark_words()[code]
    pairs = [pair for pair in zip(LETTERS, options, strict=False) if pair[1].strip()]
    lines = "".join(f"{letter}. {option}\n" for letter, option in pairs)
    return f"{words.question}\n{question}\n{words.options}\n{lines}"


def task_sentence(category: str, code: str) -> str:
    """The first line of a prompt, which names the subject."""
    words = benchmark_words()[code]
    return (
        words.task.format(subject=words.subjects.get(category, category), ans_suffix=words.sentence.format("X")) + "\n"
    )


def answer_pattern(code: str) -> str:
    """The harness's regular expression, made from the sentence that states the answer."""
    before, after = (re.escape(part) for part in benchmark_words()[code].sentence.removeprefix("the ").split("({})"))
    return before + r"\(?([ABCDEFGHIJ])\)?" + after


def category_shots(dataset: Dataset, request: Request, code: str) -> dict[str, str]:
    """Category -> its first `request.shots` worked solutions, as the harness writes them."""
    words = benchmark_words()[code]

    def show(row: dict[str, Any], number: int, errors: RowErrors) -> str:
        solution = errors.text(number, "cot_content", row.get("cot_content"))
        question = errors.text(number, "question", row.get("question"))
        text = problem_text(question, options_of(row, number, errors), code)
        return text + solution.replace(words.solved, words.answer) + "\n\n"

    groups = solved_examples(dataset, request, (code, code), "validation", "category", show)
    return {category: "".join(shown) for category, shown in groups.items()}


def _problem(row: int, values: dict[str, Any], code: str, request: Request, before: dict[str, str],
             errors: RowErrors) -> Problem:  # fmt: skip
    category = str(values.get("category", ""))
    words = "en" if request.protocol == "en-cot" else code
    question, options = errors.text(row + 1, "question", values.get("question")), options_of(values, row + 1, errors)
    letters = LETTERS[: len(options)]
    scored = request.protocol == LOGLIKELIHOOD
    opening = (
        benchmark_words()[code].answer.split("：")[0].split(":")[0] + ":" if scored else benchmark_words()[words].answer
    )
    head = "" if scored else task_sentence(category, words) + before.get(category, "")
    return Problem(
        key=f"{code}/{row}", language=code, question=question,
        prompt=head + problem_text(question, options, words) + opening,
        answer=option_letter(values, "answer", row + 1, letters or "A", errors), kind="letter",
        answer_language=known_language(words), choices=tuple(f" {letter}" for letter in letters) if scored else (),
        stops=("Q:", benchmark_words()[words].question, *ENDS), group=category, options=len(options),
    )  # fmt: skip


def _loader(dataset: Dataset):
    def load(request: Request) -> list[Problem]:
        if request.shots and request.protocol == LOGLIKELIHOOD:
            raise ConfigError("MMLU-ProX by log-likelihood has no worked examples. Use --shots 0.")
        problems = []
        for code in request.languages:
            before = category_shots(dataset, request, "en" if request.protocol == "en-cot" else code)
            problems += [
                _problem(row, values, code, request, before, errors)
                for row, values, errors in requested_rows(dataset, code, code, request)
            ]
        return problems

    return load


def extract(problem: Problem, text: str) -> str | None:
    """The letter that we extract: the announced one, else the last match of the harness's words without markdown."""
    letters = LETTERS[: problem.options]
    letter = leading_or_announced_letter(text, problem.answer_language, letters)
    if letter is None and problem.language in benchmark_words():
        matches = re.findall(answer_pattern(problem.language), text.replace("*", "").replace("$", ""))
        letter = matches[-1] if matches else None
    return letter if letter is not None and letter in letters else None


def published(problem: Problem, text: str, protocol: str) -> dict[str, bool]:
    """The harness's grade: the first match of the language's expression."""
    letter = harness_strict(text, answer_pattern("en" if protocol == "en-cot" else problem.language))
    return {"lm_eval_strict": letter != INVALID and letter == problem.answer}


def benchmark(name: str, hub: str) -> Benchmark:
    """The benchmark in its full or Lite form."""
    dataset = Dataset(name.replace("-", "_"), hub)
    return Benchmark(
        name=name, version="1 (lm-eval 0.0)", languages={code: code for code in benchmark_words()}, protocols=PROTOCOLS,
        tokens={"native-cot": 2048, "en-cot": 2048, LOGLIKELIHOOD: 0}, shots=SHOTS, dataset=dataset,
        load=_loader(dataset), published=published, extract=extract,
    )  # fmt: skip
