"""GSM8K: English grade-school problems with human solutions (MIT; Cobbe et al. 2021, arXiv 2110.14168).

Files `train.jsonl` and `test.jsonl` of the original repository, `{"question", "answer"}`; an answer ends in `#### N`.
The human solution serves as the English reference. MGSM is a translation of part of the test split.
"""

import re
from collections.abc import Sequence

from etils import epath

from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.sources.common import benchmark_path, check_offered, check_split, prompt_id, take
from pbrl_jax.data.tables import read_rows
from pbrl_jax.text.answers import canonical_number
from pbrl_jax.text.languages import answer_sentence

SPLITS = ("train", "test")
_CALCULATION = re.compile(r"<<[^<>]*>>")


def rows(path: str, split: str, languages: Sequence[str], limit: int, seed: int) -> list[Prompt]:
    """English prompts with gold answer and reference; `path` is the folder, one file, or "" for PBRL_DATA/gsm8k."""
    check_split(split, SPLITS, "gsm8k")
    check_offered(languages, ("en",), "gsm8k")
    place = benchmark_path(path, "gsm8k")
    file = place / f"{split}.jsonl" if place.is_dir() else place
    prompts = [
        Prompt(prompt_id(row, "en"), "en", question, question, answer, reference)
        for row, (question, answer, reference) in enumerate(solved(file))
    ]
    return take(prompts, limit, seed)


def solved(file: epath.Path) -> list[tuple[str, str, Reference]]:
    """(question, gold answer, reference) of every line of a GSM8K file; DataError names bad lines."""
    errors = RowErrors(str(file))
    found = []
    for number, row in read_rows(file, errors):
        question = errors.text(number, "question", row.get("question"))
        solution = errors.text(number, "answer", row.get("answer"))
        parsed = parse_solution(solution)
        if question and solution and parsed is None:
            errors.add(number, "answer has no line '#### N'")
        found.append((question, *(parsed or ("", Reference("", "")))))
    errors.check()
    return found


def parse_solution(solution: str) -> tuple[str, Reference] | None:
    """(gold, reference) of a GSM8K answer: calculator marks removed, `#### N` as "The answer is N."."""
    steps, mark, gold = solution.rpartition("####")
    number = canonical_number(gold.strip(), "en") if mark else None
    if number is None:
        return None
    reasoning = _CALCULATION.sub("", steps).strip()
    return number, Reference(reasoning, answer_sentence(number, "en"))
