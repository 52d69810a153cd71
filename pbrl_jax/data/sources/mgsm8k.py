"""GSM8K's training questions in eight languages (question side of MGSM8KInstruct, MIT; arXiv 2310.20246), joined with
GSM8K's own English solutions as references.

`train_questions.jsonl.gz` has one object per problem: `id` (line of gsm8k/train.jsonl, from 0), `answer`, and one key
per language that has a translation. The translations are by machine; those that repeat the English text are left
out. The split `test` is MGSM, the human-translated test set of the same kind of problem.
"""

from collections.abc import Sequence

import numpy as np
from etils import epath

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.sources import gsm8k, mgsm
from pbrl_jax.data.sources.common import benchmark_path, check_offered, check_split, prompt_id
from pbrl_jax.data.tables import read_rows
from pbrl_jax.text.answers import canonical_number

LANGUAGES = ("en", "de", "es", "fr", "ja", "ru", "sw", "zh")
SPLITS = ("train", "test")
FILE = "train_questions.jsonl.gz"


def rows(path: str, split: str, languages: Sequence[str], limit: int, seed: int) -> list[Prompt]:
    """Prompts with gold answer and English reference, language by language.

    Args:
      path: the folder of the file above, with the folder `gsm8k` beside it; "" takes both from PBRL_DATA.
      split: train, or test for MGSM's rows.
      languages: some of en de es fr ja ru sw zh.
      limit: rows per language, 0 for all; one seed prefers the same problems in every language.
      seed: chooses the problems.
    """
    check_split(split, SPLITS, "mgsm8k")
    languages = check_offered(languages, LANGUAGES, "mgsm8k")
    place = benchmark_path(path, "mgsm8k_questions")
    folder = place if place.is_dir() else place.parent
    if split == "test":
        return mgsm.rows(str(folder.parent / "mgsm"), "test", languages, limit, seed)
    translated = _read(place / FILE if place.is_dir() else place)
    solved = gsm8k.solved(folder.parent / "gsm8k" / "train.jsonl")
    prompts = []
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(translated))]
    for code in languages:
        there = [i for i in order if code in translated[i]["text"]]
        for i in sorted(there[: limit or None]):
            prompts.append(_prompt(translated[i], code, solved))
    return prompts


def _prompt(row: dict, code: str, solved: list[tuple[str, str, Reference]]) -> Prompt:
    number, english = row["id"], row["text"]["en"]
    if number >= len(solved) or solved[number][1] != row["answer"]:
        raise DataError(
            f"Problem {number} of {FILE} does not belong to line {number + 1} of gsm8k/train.jsonl: the answers "
            "differ. Use the two files of one release."
        )
    return Prompt(prompt_id(number, code), code, row["text"][code], english, row["answer"], solved[number][2])


def _read(file: epath.Path) -> list[dict]:
    """`{"id", "answer", "text": {language: question}}` of every line, untranslated languages left out."""
    errors = RowErrors(str(file))
    found = []
    for number, row in read_rows(file, errors):
        english = errors.text(number, "en", row.get("en"))
        answer = canonical_number(str(row.get("answer", "")), "en")
        if answer is None or not isinstance(row.get("id"), int):
            errors.add(number, "expected an integer id and a number as answer")
            continue
        text = {code: errors.text(number, code, row[code]) for code in LANGUAGES if code in row}
        text = {code: value for code, value in text.items() if code == "en" or value != english}
        found.append({"id": row["id"], "answer": answer, "text": text})
    errors.check()
    return found
