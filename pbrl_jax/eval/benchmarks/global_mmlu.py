"""Global-MMLU and its Lite form: MMLU in 42 and 15 languages (Singh et al. 2024, arXiv 2412.03304; Apache-2.0).

Prompts and choices are those of lm-evaluation-harness 0.4.13 (tasks global_mmlu_full_*). Few-shot examples are the
first rows of the `dev` split with the row's subject.
"""

from pbrl_jax.eval.benchmarks.common import Benchmark, Dataset
from pbrl_jax.eval.benchmarks.multiple_choice import choice_benchmark

FULL = (
    "am ar bn cs de el en es fa fil fr ha he hi id ig it ja ko ky lt mg ms ne nl ny pl pt ro ru si sn so sr sv sw te "
    "tr uk vi yo zh"
)
LITE = "ar bn de en es fr hi id it ja ko pt sw yo zh"


def benchmark(name: str, languages: str, hub: str) -> Benchmark:
    """The benchmark in its full or Lite form."""
    dataset, codes = Dataset(name.replace("-", "_"), hub), languages.split()
    return choice_benchmark(
        name, dict(zip(codes, codes, strict=True)), dataset, examples="dev", subject="subject", by_subject=True
    )
