"""MGSM: 250 problems of GSM8K's test split in eleven languages (CC-BY-4.0; Shi et al. 2022, arXiv 2210.03057).

Files `mgsm_<language>.tsv` of the original repository: question, tab, answer; no header. A test set: there is no
reference, and nothing of it belongs in training.
"""

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
from pbrl_jax.text.answers import canonical_number

LANGUAGES = ("en", "bn", "de", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
SPLITS = ("test",)


def rows(path: str, split: str, languages: Sequence[str], limit: int, seed: int) -> list[Prompt]:
    """Prompts with gold answers, language by language; `path` is the folder, or "" for PBRL_DATA/mgsm.

    One seed takes the same problems in every language.
    """
    check_split(split, SPLITS, "mgsm")
    languages = check_offered(languages, LANGUAGES, "mgsm")
    folder = benchmark_path(path, "mgsm")
    english = _read(folder / "mgsm_en.tsv")
    prompts = []
    for code in languages:
        file = folder / f"mgsm_{code}.tsv"
        table = english if code == "en" else _read(file)
        if len(table) != len(english):
            errors = RowErrors(str(file))
            errors.add(len(table), f"is the last, mgsm_en.tsv has {len(english)} rows; expected the same problems")
            errors.check()
        numbered = [
            Prompt(prompt_id(row, code), code, question, english[row][0], answer)
            for row, (question, answer) in enumerate(table)
        ]
        prompts += take(numbered, limit, seed)
    return prompts


def _read(file: epath.Path) -> list[tuple[str, str]]:
    """(question, canonical answer) of every line."""
    errors = RowErrors(str(file))
    found = []
    lines = read_lines(file)
    for number, line in enumerate(lines, start=1):
        if not line and number == len(lines):
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != 2:
            errors.add(number, f"has {len(fields)} fields, expected question and answer with a tab between")
            continue
        question = errors.text(number, "question", fields[0])
        answer = canonical_number(fields[1].strip(), "en")
        if answer is None:
            errors.add(number, f"answer {fields[1]!r} is no number")
        found.append((question, answer or ""))
    errors.check()
    return found
