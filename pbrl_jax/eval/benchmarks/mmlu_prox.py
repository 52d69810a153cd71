"""MMLU-ProX and its Lite form: up to ten options, 29 languages (Xuan et al. 2025, arXiv 2503.10497; MIT).

Prompts, stops and the published extraction are those of lm-evaluation-harness 0.4.13 (tasks mmlu_prox_*): a sentence
that names the subject, the first five worked solutions of the subject from the `validation` split, and a chain of
thought. The published extraction takes the first match of an expression; ours the last one, without markdown.
"""

import re
from typing import Any

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.sources.common import RowErrors
from pbrl_jax.eval.benchmarks.common import (
    ENDS,
    LETTERS,
    LOGLIKELIHOOD,
    Benchmark,
    Problem,
    Request,
    Source,
    known_language,
    limited,
    option_letter,
    read_rows,
)
from pbrl_jax.eval.benchmarks.mmlu_prox_words import benchmark_words
from pbrl_jax.eval.benchmarks.scoring import INVALID, harness_strict, leading_or_announced_letter

FILES = ("{config}/{split}-*.parquet", "{config}/{split}.jsonl", "{config}/{split}.csv")
PROTOCOLS = ("native-cot", "en-cot", LOGLIKELIHOOD)
SHOTS = 5


def options_of(row: dict[str, Any], number: int, errors: RowErrors) -> list[str]:
    """The options that a row has, at least two."""
    found = [row.get(f"option_{index}") for index in range(len(LETTERS))]
    found = [str(option) for option in found if option is not None and str(option).strip()]
    if len(found) < 2:
        errors.add(number, f"option_0 to option_9 hold {len(found)} options, expected at least two")
    return found


def problem_text(question: str, options: list[str], code: str) -> str:
    """A problem up to the words that open its answer."""
    words = benchmark_words()[code]
    lines = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    return f"{words.question}\n{question}\n{words.options}\n{lines}"


def task_sentence(category: str, code: str) -> str:
    """The sentence that opens a prompt and names the subject, a line of its own."""
    words = benchmark_words()[code]
    return (
        words.task.format(subject=words.subjects.get(category, category), ans_suffix=words.sentence.format("X")) + "\n"
    )


def answer_pattern(code: str) -> str:
    """The harness's regular expression, made of the sentence that states the answer."""
    before, after = (re.escape(part) for part in benchmark_words()[code].sentence.removeprefix("the ").split("({})"))
    return before + r"\(?([ABCDEFGHIJ])\)?" + after


def solved_examples(source: Source, request: Request, code: str) -> dict[str, str]:
    """Category -> its first `request.shots` worked solutions, as the harness writes them."""
    if not request.shots:
        return {}
    rows, place = read_rows(source, code, code, "validation", request.data)
    errors, found = RowErrors(place), {}
    for number, row in enumerate(rows, start=1):
        solution = errors.text(number, "cot_content", row.get("cot_content"))
        text = problem_text(errors.text(number, "question", row.get("question")), options_of(row, number, errors), code)
        shown = text + solution.replace(benchmark_words()[code].solved, benchmark_words()[code].answer) + "\n\n"
        found.setdefault(str(row.get("category")), []).append(shown)
    errors.check()
    fewest = min((len(examples) for examples in found.values()), default=0)
    if fewest < request.shots:
        raise ConfigError(f"--shots is {request.shots}, but {place} has {fewest} examples of a subject. Lower it.")
    return {category: "".join(examples[: request.shots]) for category, examples in found.items()}


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


def _loader(source: Source):
    def load(request: Request) -> list[Problem]:
        if request.shots and request.protocol == LOGLIKELIHOOD:
            raise ConfigError("MMLU-ProX by log-likelihood has no worked examples. Use --shots 0.")
        problems = []
        for code in request.languages:
            rows, place = read_rows(source, code, code, "test", request.data)
            words = "en" if request.protocol == "en-cot" else code
            before = solved_examples(source, request._replace(languages=(words,)), words)
            errors = RowErrors(place)
            problems += [
                _problem(row, values, code, request, before, errors) for row, values in limited(rows, request.limit)
            ]
            errors.check()
        return problems

    return load


def extract(problem: Problem, text: str) -> str | None:
    """Our letter: what the language announces, else the last match of the harness's words without markdown."""
    letters = LETTERS[: problem.options]
    found = leading_or_announced_letter(text, problem.answer_language, letters)
    if found is None and problem.language in benchmark_words():
        announced = re.findall(answer_pattern(problem.language), text.replace("*", "").replace("$", ""))
        found = announced[-1] if announced else None
    return found if found is not None and found in letters else None


def published(problem: Problem, text: str, protocol: str) -> dict[str, bool]:
    """The harness's grade: the first match of the language's expression."""
    found = harness_strict(text, answer_pattern("en" if protocol == "en-cot" else problem.language))
    return {"lm_eval_strict": found != INVALID and found == problem.answer}


def benchmark(name: str, hub: str) -> Benchmark:
    """The full or the Lite form."""
    source = Source(name.replace("-", "_"), hub, FILES)
    return Benchmark(
        name=name, version="1 (lm-eval 0.0)", languages={code: code for code in benchmark_words()}, protocols=PROTOCOLS,
        tokens={"native-cot": 2048, "en-cot": 2048, LOGLIKELIHOOD: 0}, shots=SHOTS, source=source,
        load=_loader(source), published=published, extract=extract,
    )  # fmt: skip
