"""PolyMath: problems of four levels in eighteen languages (Wang et al. 2025, arXiv 2504.18428).

Files `data/<language>/<level>.jsonl` of the original repository, `{"id", "question", "answer"}`; the level is the
split. `low` consists of MGSM items; the answers of `high` and `top` are LaTeX. A test set, without references.
"""

from collections.abc import Sequence

from pbrl_jax.core.records import Prompt
from pbrl_jax.data.sources.common import benchmark_path, check_offered, check_split, parallel_prompts

LANGUAGES = (
    "en", "ar", "bn", "de", "es", "fr", "id", "it", "ja", "ko", "ms", "pt", "ru", "sw", "te", "th", "vi", "zh",
)  # fmt: skip
SPLITS = ("low", "medium", "high", "top")
ROWS_PER_LEVEL = 125


def rows(path: str, split: str, languages: Sequence[str], limit: int, seed: int) -> list[Prompt]:
    """Prompts with gold answers, language by language; `path` is the folder, or "" for PBRL_DATA/polymath.

    `split` test is low, the default level of evaluations.
    """
    split = "low" if split == "test" else split
    check_split(split, SPLITS, "polymath")
    languages = check_offered(languages, LANGUAGES, "polymath")
    folder = benchmark_path(path, "polymath")
    folder = folder / "data" if (folder / "data").exists() else folder
    first = SPLITS.index(split) * ROWS_PER_LEVEL
    return parallel_prompts(languages, lambda code: folder / code / f"{split}.jsonl", limit, seed, first)
