"""The table of benchmarks of `pbrl eval`; each benchmark has its own file."""

from pbrl_jax.eval.benchmarks import afrimgsm, belebele, global_mmlu, include, mgsm, mmlu_prox, msvamp, polymath, xcopa
from pbrl_jax.eval.benchmarks.common import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    "mgsm": mgsm.BENCHMARK,
    "msvamp": msvamp.BENCHMARK,
    "afrimgsm": afrimgsm.BENCHMARK,
    "polymath": polymath.benchmark("polymath", "low"),
    "polymath-medium": polymath.benchmark("polymath-medium", "medium"),
    "polymath-high": polymath.benchmark("polymath-high", "high"),
    "polymath-top": polymath.benchmark("polymath-top", "top"),
    "mmlu-prox": mmlu_prox.benchmark("mmlu-prox", "li-lab/MMLU-ProX"),
    "mmlu-prox-lite": mmlu_prox.benchmark("mmlu-prox-lite", "li-lab/MMLU-ProX-Lite"),
    "global-mmlu": global_mmlu.benchmark("global-mmlu", global_mmlu.FULL, "CohereLabs/Global-MMLU"),
    "global-mmlu-lite": global_mmlu.benchmark("global-mmlu-lite", global_mmlu.LITE, "CohereLabs/Global-MMLU-Lite"),
    "belebele": belebele.BENCHMARK,
    "include": include.BENCHMARK,
    "xcopa": xcopa.BENCHMARK,
}
