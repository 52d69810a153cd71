"""The prompt words of MMLU-ProX in its 29 languages, read from mmlu_prox_words.json.

They are part of the benchmark's protocol: prompt words, answer phrase and subject names of lm-evaluation-harness 0.4.13
(MIT licence, Copyright EleutherAI) for each language.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple


class BenchmarkWords(NamedTuple):
    """The prompt words of one language. `task` has slots {subject} and {ans_suffix}; `solved` is the beginning of the
    data set's worked solutions, which `answer` replaces; `sentence` has one slot for the letter; `subjects` maps a
    category of the data to its name in the language."""

    question: str
    options: str
    answer: str
    task: str
    solved: str
    sentence: str
    subjects: dict[str, str]


@cache
def benchmark_words() -> dict[str, BenchmarkWords]:
    """Language -> its prompt words."""
    text = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    return {language: BenchmarkWords(**words) for language, words in json.loads(text).items()}
