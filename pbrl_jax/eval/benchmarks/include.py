"""INCLUDE: exam questions from regional sources in 44 languages (Romanou et al. 2024, arXiv 2411.19799).

Prompts and choices are those of lm-evaluation-harness 0.4.13 (tasks include_base_44_*), without the space before D that
comes from a folded line of its files, and without the sentence on the subject. Few-shot examples are the first rows of
the `validation` split.
"""

from pbrl_jax.eval.benchmarks.common import Dataset
from pbrl_jax.eval.benchmarks.multiple_choice import choice_benchmark

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
BENCHMARK = choice_benchmark(
    "include", LANGUAGES, Dataset("include", "CohereForAI/include-base-44"), examples="validation", subject="domain"
)
