"""INCLUDE: exam questions from regional sources in 44 languages (Romanou et al. 2024, arXiv 2411.19799).

Prompts and choices are those of lm-evaluation-harness 0.4.13 (tasks include_base_44_*), without the space before D that
comes from a folded line of its files, and without the sentence on the subject. Few-shot examples are the first rows of
the `validation` split.
"""

from pbrl_jax.eval.benchmarks.common import Benchmark, Dataset, Problem, Request, requested_rows, solved_examples
from pbrl_jax.eval.benchmarks.multiple_choice import (
    PROTOCOLS,
    TOKENS,
    choice_problem,
    published,
    read_options,
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
DATASET = Dataset("include", "CohereForAI/include-base-44")


def load(request: Request) -> list[Problem]:
    """The problems, language by language; the gold answer of a row is an index from 0."""
    problems = []
    for code in request.languages:
        names = code, LANGUAGES[code]
        before = shots_text(solved_examples(DATASET, request, names, "validation", "", read_options).get("", ()))
        for row, values, errors in requested_rows(DATASET, *names, request):
            text = read_options(values, row + 1, errors)
            problems.append(choice_problem(request, code, row, text, before, str(values.get("domain", ""))))
    return problems


BENCHMARK = Benchmark(
    name="include", version="1 (lm-eval 0.0)", languages=LANGUAGES, protocols=PROTOCOLS, tokens=TOKENS, shots=0,
    dataset=DATASET, load=load, published=published,
)  # fmt: skip
