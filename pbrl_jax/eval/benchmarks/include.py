"""INCLUDE: exam questions from 44 languages' own schools and boards (Romanou et al. 2024, arXiv 2411.19799).

Prompts and choices are those of lm-evaluation-harness 0.4.13 (tasks include_base_44_*), without the space that a folded
line of its files puts before D and without the sentence on the subject; examples are the first ones of the `validation`
split.
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

LANGUAGES = {
    "sq": "Albanian", "ar": "Arabic", "hy": "Armenian", "az": "Azerbaijani", "eu": "Basque", "be": "Belarusian",
    "bn": "Bengali", "bg": "Bulgarian", "zh": "Chinese", "hr": "Croatian", "nl": "Dutch", "et": "Estonian",
    "fi": "Finnish", "fr": "French", "ka": "Georgian", "de": "German", "el": "Greek", "he": "Hebrew", "hi": "Hindi",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "kk": "Kazakh", "ko": "Korean",
    "lt": "Lithuanian", "ms": "Malay", "ml": "Malayalam", "ne": "Nepali", "mk": "North Macedonian", "fa": "Persian",
    "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sr": "Serbian", "es": "Spanish", "tl": "Tagalog",
    "ta": "Tamil", "te": "Telugu", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek",
    "vi": "Vietnamese",
}  # fmt: skip
SOURCE = Source(
    "include", "CohereForAI/include-base-44",
    ("{config}/{split}-*.parquet", "{config}/{split}.jsonl", "{config}/{split}.csv"),
)  # fmt: skip


def read(row: dict[str, Any], number: int, errors: RowErrors) -> tuple[str, str, str]:
    """(question, text up to the answer, gold letter) of a row; the gold answer is an index from 0."""
    return *question_and_options(row, number, errors), option_letter(row, "answer", number, LETTERS, errors)


def load(request: Request) -> list[Problem]:
    """The problems, language by language."""
    problems = []
    for code in request.languages:
        rows, place = read_rows(SOURCE, code, LANGUAGES[code], "test", request.data)
        shown = shots_text(_examples(request, code)) if request.shots else ""
        problems += problems_of(request, code, rows, place, read, lambda row, shown=shown: shown, "domain")
    return problems


def _examples(request: Request, code: str) -> list[tuple[str, str]]:
    rows, place = read_rows(SOURCE, code, LANGUAGES[code], "validation", request.data)
    if len(rows) < request.shots:
        raise ConfigError(f"--shots is {request.shots}, but {place} has {len(rows)} examples. Lower it.")
    errors = RowErrors(place)
    found = [read(row, number, errors)[1:] for number, row in enumerate(rows[: request.shots], start=1)]
    errors.check()
    return found


BENCHMARK = Benchmark(
    name="include", version="1 (lm-eval 0.0)", languages=LANGUAGES, protocols=PROTOCOLS, tokens=TOKENS, shots=0,
    source=SOURCE, load=load, published=published,
)  # fmt: skip
