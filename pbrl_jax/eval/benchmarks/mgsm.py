"""MGSM: 250 problems of GSM8K's test split in eleven languages (Shi et al. 2022, arXiv 2210.03057; CC-BY-4.0).

Prompts, stops and the two published extractions are those of lm-evaluation-harness 0.4.13 (tasks mgsm_native_cot,
mgsm_en_cot and mgsm_direct). For few-shot examples, the harness removes a fixed number of characters as the answer's
prefix, which cuts the first character in Chinese and Japanese; here the prefix itself is removed.
"""

from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.paths import parse_json
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.sources import mgsm
from pbrl_jax.data.sources.common import row_of
from pbrl_jax.eval.benchmarks.common import (
    ENDS,
    Benchmark,
    Dataset,
    Problem,
    Request,
    benchmark_rows,
    limited,
    local_folder,
)
from pbrl_jax.eval.benchmarks.scoring import harness_number

DATASET = Dataset("mgsm", "juletxara/mgsm", ("mgsm_{code}.tsv",))
EXEMPLARS = "exemplars.json"
MOST_SHOTS = 8
PROTOCOLS = ("native-cot", "en-cot", "direct")


class PromptWords(NamedTuple):
    """The harness's prompt words of one language; `strict`: its regular expression for native chains of thought."""

    question: str
    native: str
    direct: str
    strict: str


_NUMBER = r"(\-?[0-9\.\,]+)"
_ENGLISH = f"The answer is {_NUMBER}"
ENGLISH_ANSWER = "Step-by-Step Answer:"
WORDS = {
    "en": PromptWords("Question:", ENGLISH_ANSWER, "Answer:", _ENGLISH),
    "bn": PromptWords("প্রশ্ন:", "ধাপে ধাপে উত্তর:", "Answer:", _ENGLISH),
    "de": PromptWords("Frage:", "Schritt-für-Schritt-Antwort:", "Antwort:", f"Die Antwort lautet {_NUMBER}"),
    "es": PromptWords("Pregunta:", "Respuesta paso a paso:", "Respuesta:", f"La respuesta es {_NUMBER}"),
    "fr": PromptWords("Question :", "Réponse étape par étape :", "Réponse :", f"La réponse est {_NUMBER}"),
    "ja": PromptWords("問題：", "ステップごとの答え:", "Answer:", f"答えは{_NUMBER}です。"),
    "ru": PromptWords("Задача:", "Пошаговоерешение:", "Answer:", f"Ответ — {_NUMBER}"),
    "sw": PromptWords("Swali:", "Jibu la Hatua kwa Hatua:", "Answer:", f"Jibu ni {_NUMBER}"),
    "te": PromptWords("ప్రశ్న:", "దశలవారీగా సమాధానం:", "Answer:", f"సమాధానం {_NUMBER}"),
    "th": PromptWords("โจทย์:", "คำตอบทีละขั้นตอน:", "Answer:", f"คำตอบคือ {_NUMBER}"),
    "zh": PromptWords("问题：", "逐步解答:", "Answer:", f"答案是 {_NUMBER}。"),
}
"""As in the harness, a space is missing in the Russian words, and Bengali has the English expression."""


def answer_word(code: str, protocol: str) -> str:
    """The words before the answer."""
    words = WORDS[code]
    return {"native-cot": words.native, "en-cot": ENGLISH_ANSWER, "direct": words.direct}[protocol]


def strict_pattern(code: str, protocol: str) -> str | None:
    """The harness's regular expression; None for the direct protocol, which compares the full text."""
    return {"native-cot": WORDS[code].strict, "en-cot": _ENGLISH, "direct": None}[protocol]


def prompt(question: str, code: str, protocol: str) -> str:
    """The prompt of one problem in the harness's words, up to the answer."""
    return f"{WORDS[code].question} {question}\n{answer_word(code, protocol)}"


def shots_text(request: Request, code: str, dataset: Dataset = DATASET) -> str:
    """The first `request.shots` worked solutions, each followed by an empty line.

    Raises:
      ConfigError: more shots than there are solutions.
      DataError: the folder has no exemplars.json.
    """
    if not request.shots:
        return ""
    if request.shots > MOST_SHOTS:
        raise ConfigError(f"--shots is {request.shots}, but MGSM has {MOST_SHOTS} worked solutions a language.")
    shown = ""
    for question, answer, number in _exemplars(request, code, dataset)[: request.shots]:
        word = answer_word(code, request.protocol)
        reply = str(number) if request.protocol == "direct" else " " + _without_prefix(answer)
        shown += f"{question}\n{word}{reply}\n\n"
    return shown


def _without_prefix(answer: str) -> str:
    """A worked solution without the words before its first colon, full-width or not."""
    places = [answer.find(colon) for colon in ":：" if colon in answer]
    return answer[min(places) + 1 :].strip() if places else answer.strip()


def _exemplars(request: Request, code: str, dataset: Dataset) -> list[tuple[str, str, int]]:
    """(question with its prefix, worked solution with its prefix, gold answer) of a language.

    The English-chain protocol shows English solutions to the questions of the language.
    """
    folder = local_folder(dataset, request.data)
    solved = "en" if request.protocol == "en-cot" else code
    if folder is None:
        asked, answered = (benchmark_rows(dataset, name, name, "train", request.data)[0] for name in (code, solved))
        return [(a["question"], b["answer"], a["answer_number"]) for a, b in zip(asked, answered, strict=True)]
    file = folder / EXEMPLARS
    if not file.exists():
        raise DataError(f"{folder} has no {EXEMPLARS}, which holds the worked solutions. Add it, or use --shots 0.")
    try:
        stored = parse_json(file.read_text())
        tables, numbers = stored["exemplars"], stored["answers"]
        return [(tables[code][str(i + 1)]["q"], tables[solved][str(i + 1)]["a"], numbers[i]) for i in range(MOST_SHOTS)]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{file}: {type(error).__name__} {error}; expected answers and exemplars with {MOST_SHOTS} q and a of "
            f"{code!r}."
        ) from error


def questions(request: Request, code: str) -> list[tuple[str, str]]:
    """(question, gold answer) of every row of a language."""
    folder = local_folder(DATASET, request.data)
    if folder is not None:
        prompts = mgsm.rows(str(folder), "test", (code,), 0, 0)
        return [(p.question, p.answer or "") for p in sorted(prompts, key=lambda p: row_of(p.id))]
    rows, place = benchmark_rows(DATASET, code, code, "test", request.data)
    errors = RowErrors(place)
    pairs = [
        (errors.text(n, "question", row.get("question")), errors.number(n, "answer_number", row.get("answer_number")))
        for n, row in enumerate(rows, start=1)
    ]
    errors.check()
    return pairs


def load(request: Request) -> list[Problem]:
    """The problems, language by language."""
    problems = []
    for code in request.languages:
        before = shots_text(request, code)
        problems += [
            Problem(
                key=f"{code}/{row}", language=code, question=question,
                prompt=before + prompt(question, code, request.protocol), answer=gold, kind="number",
                answer_language="en" if request.protocol == "en-cot" else code, stops=(WORDS[code].question, *ENDS),
            )
            for row, (question, gold) in limited(questions(request, code), request.limit)
        ]  # fmt: skip
    return problems


def published(problem: Problem, text: str, protocol: str) -> dict[str, bool]:
    """The harness's strict and flexible grades."""
    return harness_number(text, problem.answer, strict_pattern(problem.language, protocol))


BENCHMARK = Benchmark(
    name="mgsm", version="1 (lm-eval native 4, en 3, direct 4)", languages={code: code for code in WORDS},
    protocols=PROTOCOLS, tokens={"native-cot": 512, "en-cot": 512, "direct": 32}, shots=0, dataset=DATASET, load=load,
    published=published,
)  # fmt: skip
