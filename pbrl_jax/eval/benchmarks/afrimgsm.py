"""AfriMGSM: MGSM's 250 problems in English, French and African languages (Adelani et al. 2024, arXiv 2406.03368).

Prompts and extraction are those of lm-evaluation-harness 0.4.13 (tasks afrimgsm_*_prompt_1 and
afrimgsm_cot_*_prompt_1): English words around the question, whatever its language.
"""

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.eval.benchmarks.common import ENDS, Benchmark, Dataset, Problem, Request, known_language, requested_rows
from pbrl_jax.eval.benchmarks.scoring import harness_number

LANGUAGES = {
    "en": "eng", "am": "amh", "ee": "ewe", "fr": "fra", "ha": "hau", "ig": "ibo", "rw": "kin", "ln": "lin",
    "lg": "lug", "om": "orm", "sn": "sna", "st": "sot", "sw": "swa", "tw": "twi", "vai": "vai", "wo": "wol",
    "xh": "xho", "yo": "yor", "zu": "zul",
}  # fmt: skip
DATASET = Dataset(
    "afrimgsm", "masakhane/afrimgsm",
    ("data/{config}/{split}.tsv", "{config}/{split}.tsv", "{config}/{split}-*.parquet", "{config}.tsv"),
)  # fmt: skip
STRICT = r"The answer is (\-?[0-9\.\,]+)"
ANSWER_WORDS = {"en-cot": "Step-by-Step Answer:", "direct": "Answer:"}


def load(request: Request) -> list[Problem]:
    """The problems, language by language."""
    if request.shots:
        raise ConfigError("AfriMGSM is run without examples here. Use --shots 0.")
    problems = []
    for code in request.languages:
        language = "en" if request.protocol == "en-cot" else known_language(code)
        for row, values, errors in requested_rows(DATASET, code, LANGUAGES[code], request):
            question = errors.text(row + 1, "question", values.get("question"))
            column = "answer_number" if values.get("answer_number") is not None else "answer"
            gold = errors.number(row + 1, column, values.get(column))
            text = f"Question: {question}\n{ANSWER_WORDS[request.protocol]}"
            stops = ("Question:", *ENDS)
            problems.append(Problem(f"{code}/{row}", code, question, text, gold, "number", language, stops=stops))
    return problems


def published(problem: Problem, text: str, protocol: str) -> dict[str, bool]:
    """The harness's strict and flexible grades."""
    return harness_number(text, problem.answer, STRICT if protocol == "en-cot" else None)


BENCHMARK = Benchmark(
    name="afrimgsm", version="1 (lm-eval 2, prompt 1)", languages=LANGUAGES, protocols=("en-cot", "direct"),
    tokens={"en-cot": 512, "direct": 32}, shots=0, dataset=DATASET, load=load, published=published,
)  # fmt: skip
