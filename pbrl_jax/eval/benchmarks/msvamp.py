"""MSVAMP: 1,000 problems of SVAMP in ten languages (Chen et al. 2023, arXiv 2310.20246; MIT).

The harness has no task for it: the prompts are MGSM's, or with the protocol `alpaca` those of MathOctopus, whose
extraction is reported in addition to ours. 757 of the Bengali questions have Bengali digits.
"""

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.eval.benchmarks import mgsm
from pbrl_jax.eval.benchmarks.common import ENDS, Benchmark, Dataset, Problem, Request, local_folder, requested_rows
from pbrl_jax.eval.benchmarks.scoring import harness_number, math_octopus
from pbrl_jax.text.languages import LANGUAGES as KNOWN

ALPACA = "alpaca"
LANGUAGES = {code: KNOWN[code].name for code in ("en", "bn", "de", "es", "fr", "ja", "ru", "sw", "th", "zh")}
DATASET = Dataset(
    "msvamp", "Mathoctopus/MSVAMP", ("test_{config}.json", "{code}/test-*.parquet", "*/test_{config}.json")
)


def alpaca_prompt(question: str, name: str) -> str:
    """MathOctopus's prompt in English, for an answer in the language called `name`."""
    return (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request in "
        f"{name}. Please answer in {name}.\n\n### Instruction:\n{question}\n\n### Response:"
    )


def load(request: Request) -> list[Problem]:
    """The problems, language by language."""
    if request.shots:
        raise ConfigError("MSVAMP has no worked solutions. Use --shots 0.")
    problems = []
    for code in request.languages:
        # Original files are named by the language's name, configurations of the hub by its code.
        config = code if local_folder(DATASET, request.data) is None else LANGUAGES[code]
        alpaca = request.protocol == ALPACA
        stops = ("### Instruction:", *ENDS) if alpaca else (mgsm.WORDS[code].question, *ENDS)
        language = "en" if request.protocol == "en-cot" else code
        for row, values, errors in requested_rows(DATASET, code, config, request):
            question = errors.text(row + 1, "m_query", values.get("m_query"))
            gold = errors.number(row + 1, "response", values.get("response"))
            text = alpaca_prompt(question, LANGUAGES[code]) if alpaca else mgsm.prompt(question, code, request.protocol)
            problems.append(Problem(f"{code}/{row}", code, question, text, gold, "number", language, stops=stops))
    return problems


def published(problem: Problem, text: str, protocol: str) -> dict[str, bool]:
    """MathOctopus's grade, and the harness's two grades if the prompt is the harness's."""
    grades = {"math_octopus": math_octopus(text, problem.answer)}
    if protocol != ALPACA:
        grades |= harness_number(text, problem.answer, mgsm.strict_pattern(problem.language, protocol))
    return grades


BENCHMARK = Benchmark(
    name="msvamp", version="1", languages=LANGUAGES, protocols=(*mgsm.PROTOCOLS, ALPACA),
    tokens={"native-cot": 512, "en-cot": 512, "direct": 32, ALPACA: 300}, shots=0, dataset=DATASET, load=load,
    published=published,
)  # fmt: skip
