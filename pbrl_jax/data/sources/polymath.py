"""PolyMath: problems of four levels in eighteen languages (Wang et al. 2025, arXiv 2504.18428).

Files `data/<language>/<level>.jsonl` of the original repository, `{"id", "question", "answer"}`; the level is the
split. `low` consists of MGSM items; the answers of `high` and `top` are LaTeX. A test set, without references.
"""

import json
from collections.abc import Sequence

from etils import epath

from pbrl_jax.core.records import Prompt
from pbrl_jax.data.sources.common import (
    RowErrors,
    benchmark_path,
    check_offered,
    check_split,
    prompt_id,
    read_lines,
    take,
)

LANGUAGES = (
    "en", "ar", "bn", "de", "es", "fr", "id", "it", "ja", "ko", "ms", "pt", "ru", "sw", "te", "th", "vi", "zh",
)  # fmt: skip
SPLITS = ("low", "medium", "high", "top")
ROWS_PER_LEVEL = 125


def rows(path: str, split: str, languages: Sequence[str], limit: int, seed: int) -> list[Prompt]:
    """Prompts with gold answers, language by language; `path` is the folder, or "" for PBRL_DATA/polymath.

    `split` test stands for low, the level that an evaluation asks for by default.
    """
    split = "low" if split == "test" else split
    check_split(split, SPLITS, "polymath")
    languages = check_offered(languages, LANGUAGES, "polymath")
    folder = benchmark_path(path, "polymath")
    folder = folder / "data" if (folder / "data").exists() else folder
    english = _read(folder / "en" / f"{split}.jsonl")
    first = SPLITS.index(split) * ROWS_PER_LEVEL
    prompts = []
    for code in languages:
        file = folder / code / f"{split}.jsonl"
        table = english if code == "en" else _read(file)
        if len(table) != len(english):
            errors = RowErrors(str(file))
            errors.add(len(table), f"is the last, the English file has {len(english)} rows; expected the same problems")
            errors.check()
        numbered = [
            Prompt(prompt_id(first + row, code), code, question, english[row][0], answer)
            for row, (question, answer) in enumerate(table)
        ]
        prompts += take(numbered, limit, seed)
    return prompts


def _read(file: epath.Path) -> list[tuple[str, str]]:
    errors = RowErrors(str(file))
    found = []
    lines = read_lines(file)
    for number, line in enumerate(lines, start=1):
        if not line and number == len(lines):
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            errors.add(number, "is no JSON")
            continue
        question = errors.text(number, "question", row.get("question"))
        found.append((question, errors.text(number, "answer", row.get("answer"))))
    errors.check()
    return found
