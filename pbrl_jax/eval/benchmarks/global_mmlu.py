"""Global-MMLU and its Lite form: MMLU in 42 and 15 languages (Singh et al. 2024, arXiv 2412.03304; Apache-2.0).

Prompts and choices are those of lm-evaluation-harness 0.4.13 (tasks global_mmlu_full_*). Few-shot examples are the
first rows of the `dev` split with the row's subject.
"""

from pbrl_jax.eval.benchmarks.common import Benchmark, Dataset, Problem, Request, requested_rows, solved_examples
from pbrl_jax.eval.benchmarks.multiple_choice import (
    PROTOCOLS,
    TOKENS,
    choice_problem,
    published,
    read_options,
    shots_text,
)

FULL = tuple(
    "am ar bn cs de el en es fa fil fr ha he hi id ig it ja ko ky lt mg ms ne nl ny pl pt ro ru si sn so sr sv sw te "
    "tr uk vi yo zh".split()
)
LITE = tuple("ar bn de en es fr hi id it ja ko pt sw yo zh".split())


def _loader(dataset: Dataset):
    def load(request: Request) -> list[Problem]:
        problems = []
        for code in request.languages:
            shots = solved_examples(dataset, request, (code, code), "dev", "subject", read_options)
            for row, values, errors in requested_rows(dataset, code, code, request):
                subject = str(values.get("subject", ""))
                before = shots_text(shots.get(subject, ()))
                text = read_options(values, row + 1, errors)
                problems.append(choice_problem(request, code, row, text, before, subject))
        return problems

    return load


def benchmark(name: str, languages: tuple[str, ...], hub: str) -> Benchmark:
    """The benchmark in its full or Lite form."""
    dataset = Dataset(name.replace("-", "_"), hub)
    return Benchmark(
        name=name, version="1 (lm-eval 0.0)", languages={code: code for code in languages}, protocols=PROTOCOLS,
        tokens=TOKENS, shots=0, dataset=dataset, load=_loader(dataset), published=published,
    )  # fmt: skip
