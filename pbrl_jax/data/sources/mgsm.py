"""MGSM: 250 problems of GSM8K's test split in eleven languages (CC-BY-4.0; Shi et al. 2022, arXiv 2210.03057).

Files `mgsm_<language>.tsv` of the original repository: question, tab, answer; no header. It is a test set without
references, not to be trained on.
"""

from collections.abc import Sequence

from pbrl_jax.core.records import Prompt
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.sources.common import benchmark_path, check_offered, check_split, parallel_prompts

LANGUAGES = ("en", "bn", "de", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
SPLITS = ("test",)


def rows(path: str, split: str, languages: Sequence[str], limit: int, seed: int) -> list[Prompt]:
    """Prompts with gold answers, language by language; `path` is the folder, or "" for PBRL_DATA/mgsm.

    One seed takes the same problems in every language.
    """
    check_split(split, SPLITS, "mgsm")
    languages = check_offered(languages, LANGUAGES, "mgsm")
    folder = benchmark_path(path, "mgsm")
    return parallel_prompts(
        languages, lambda code: folder / f"mgsm_{code}.tsv", limit, seed, header=("question", "answer"),
        answer=RowErrors.number,
    )  # fmt: skip
