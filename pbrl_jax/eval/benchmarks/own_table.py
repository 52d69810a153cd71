"""Problems of your own: any table that the data source `table` reads, with gold answers.

The benchmark's own text is the question and a newline, and a conversation as the chat template writes it.
"""

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.data.load import check_golds
from pbrl_jax.data.sources import table
from pbrl_jax.data.sources.common import row_of
from pbrl_jax.eval.benchmarks.common import ENDS, Benchmark, Dataset, Problem, Request, limited
from pbrl_jax.text.languages import LANGUAGES

PROTOCOL = "native-cot"


def load(request: Request) -> list[Problem]:
    """The problems, language by language.

    Raises:
      ConfigError: no table is named, or worked solutions are asked for.
      DataError: bad rows, or rows without an answer.
    """
    if not request.data:
        raise ConfigError("The benchmark table needs --data: a file, a folder, or a hub id.")
    if request.shots:
        raise ConfigError("The benchmark table has no worked solutions. Use --shots 0.")
    prompts = table.rows(request.data, "test", request.languages, 0, 0, request.columns)
    if lacking := [prompt for prompt in prompts if prompt.answer is None]:
        raise DataError(
            f"{request.data}: {len(lacking)} of {len(prompts)} rows have no answer, the first is row "
            f"{row_of(lacking[0].id) + 1}. Name the column: --columns answer=<column>."
        )
    check_golds(prompts)
    problems = []
    for code in dict.fromkeys(prompt.language for prompt in prompts):
        rows = [prompt for prompt in prompts if prompt.language == code]
        problems += [
            Problem(
                f"{code}/{row_of(prompt.id)}", code, prompt.question, f"{prompt.question}\n", prompt.answer or "",
                "number", code, stops=ENDS, turns=prompt.turns,
            )
            for _, prompt in limited(rows, request.limit)
        ]  # fmt: skip
    return problems


BENCHMARK = Benchmark(
    name="table", version="1", languages={code: code for code in LANGUAGES}, protocols=(PROTOCOL,),
    tokens={PROTOCOL: 512}, shots=0, dataset=Dataset("", ""), load=load, published=lambda problem, text, protocol: {},
)  # fmt: skip
