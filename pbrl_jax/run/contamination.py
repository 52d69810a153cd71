"""Is the test in the training text? The check of `pbrl eval --training-data`, and of a run by eval.contamination."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pbrl_jax.config.tree import Config
from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import DataError, PbrlError, lookup
from pbrl_jax.core.paths import WorkDir, as_path, read_json_lines, read_json_object, write_atomic
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.load import load_prompts
from pbrl_jax.data.responses import Preference, holds_preferences, read_examples, read_preferences
from pbrl_jax.data.sources.quickstart import Example
from pbrl_jax.eval.benchmarks import BENCHMARKS
from pbrl_jax.eval.benchmarks.common import Problem, Request
from pbrl_jax.eval.contamination import find_overlap
from pbrl_jax.pivots.store import open_store
from pbrl_jax.run.config_file import load_config

EVERY = "all"
"""Stands for every benchmark whose problems can be loaded."""
PIVOT_FIELDS = ("question", "reasoning", "answer", "reference", "pivot")
"""Fields of a line of pivot.file that hold text."""
SHOWN = 10
"""Overlapping problems that are listed."""


def prompt_texts(prompts: Iterable[Prompt]) -> Iterator[str]:
    """Every question, in its own language and in English, every other turn, and every reference."""
    for prompt in prompts:
        earlier = (content for _, content in prompt.turns[:-1])
        yield from (text for text in (*earlier, prompt.question, prompt.question_en) if text)
        yield from (reference.text for reference in prompt.references)


def example_texts(config: Config) -> Iterator[str]:
    """The questions and responses of the files that `pbrl sft` and `pbrl dpo` learn."""
    split, languages = config.data.split, config.data.languages
    rows: list[Example | Preference] = []
    if config.sft.source == "file" and config.sft.path:
        rows += read_examples(config.sft.path, split, languages)
    if config.dpo.path and holds_preferences(config.dpo.path, split):
        rows += read_preferences(config.dpo.path, split, languages)
    for _, question, *rest in rows:
        yield from [question] if isinstance(question, str) else [content for _, content in question]
        yield from (text for text in rest if isinstance(text, str))


def training_texts(path: str) -> Iterator[str]:
    """The text of a training config.

    References are the data set's own, those of a pivot file, and those of a pivot store beside a saved config.json;
    examples and preferences those of sft.path and dpo.path.
    """
    config: Config = load_config(path)
    yield from example_texts(config)
    yield from prompt_texts(load_prompts(config.data, config.train.seed))
    folder = as_path(path).parent
    for stored in open_store(config.pivot, folder, writes=False).references().values():
        yield " ".join((stored.origin.question, stored.reasoning, stored.answer))
    for row in read_json_lines(config.pivot.file) if config.pivot.source == "file" and config.pivot.file else ():
        yield " ".join(value for name, value in row.items() if name in PIVOT_FIELDS and isinstance(value, str))


def overlap_record(problems: Sequence[Problem], shared: Sequence[str | None], ngram: int) -> dict[str, Any]:
    """What is reported of one benchmark: {ngram, n, overlapping, share, languages, examples}."""
    pairs = list(zip(problems, shared, strict=True))
    hits = [(problem.key, run) for problem, run in pairs if run is not None]
    counts: dict[str, list[bool]] = {}
    for problem, run in pairs:
        counts.setdefault(problem.language, []).append(run is not None)
    return {
        "ngram": ngram,
        "n": len(problems),
        "overlapping": len(hits),
        "share": len(hits) / len(problems),
        "languages": {code: sum(found) / len(found) for code, found in counts.items()},
        "examples": [{"key": key, "shared": run} for key, run in hits[:SHOWN]],
    }


def refuse(name: str, record: dict[str, Any], bound: float, where: str, option: str) -> None:
    """Stop where more of a benchmark than `bound` is in the training text (DataError)."""
    if record["share"] > bound:
        first = record["examples"][0]
        raise DataError(
            f"{name}: {record['overlapping']} of {record['n']} problems ({100 * record['share']:.1f} %) share "
            f"{record['ngram']} words in a row with the training text of {where}, more than {option} {bound}; the "
            f"first is {first['key']}: {first['shared']!r}. Take these rows out of the training data, or choose "
            "another benchmark."
        )


# Of a training run.


def check_names(config: Config) -> None:
    """Refuse benchmarks of eval.contamination that there are not (ConfigError)."""
    for name in config.eval.contamination:
        if name != EVERY:
            lookup(BENCHMARKS, name, "benchmark of eval.contamination")


def benchmark_problems(config: Config) -> dict[str, list[Problem] | str]:
    """Benchmark -> its problems in the languages of the training and in English, or why there are none.

    Raises:
      PbrlError: a benchmark that was asked for by name cannot be loaded.
    """
    asked = config.eval.contamination
    found: dict[str, list[Problem] | str] = {}
    for name in BENCHMARKS if EVERY in asked else asked:
        benchmark = BENCHMARKS[name]
        codes = tuple(code for code in dict.fromkeys((*config.data.languages, "en")) if code in benchmark.languages)
        try:
            found[name] = benchmark.load(Request(codes, benchmark.protocols[-1])) if codes else "no language in common"
        except PbrlError as error:
            if name in asked:
                raise
            found[name] = str(error)
    return found


def check_training(config: Config, work: WorkDir, prompts: Sequence[Prompt], fingerprints: dict[str, str]) -> None:
    """Look for the problems of eval.contamination in a run's text, and leave W/contamination.json.

    A run that goes on with the same text, benchmarks and bound is not checked again.

    Raises:
      DataError: more than eval.max_overlap of a benchmark is in the training text, or a benchmark that was asked for
        by name cannot be loaded.
    """
    if not config.eval.contamination:
        return
    file, settings = work.root / "contamination.json", config.eval
    of = {"ngram": settings.overlap_ngram, "asked": list(settings.contamination), **fingerprints}
    saved = read_json_object(file)
    records: dict[str, Any] = saved["benchmarks"] if saved.get("of") == of else searched(config, prompts)
    if saved.get("of") != of:
        write_atomic(file, json.dumps({"of": of, "benchmarks": records}, indent=1, ensure_ascii=False))
        for name, record in records.items():
            said = f"{100 * record['share']:.1f} % of its problems" if "share" in record else "not checked"
            print(visible(f"Contamination: {name}: {said}"))
    for name, record in records.items():
        if "share" in record:
            refuse(name, record, settings.max_overlap, "this run", "eval.max_overlap")


def searched(config: Config, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The record of each benchmark of eval.contamination; {not_checked} where its problems cannot be loaded."""
    ngram = config.eval.overlap_ngram
    loaded = benchmark_problems(config)
    everything = [problem for problems in loaded.values() if not isinstance(problems, str) for problem in problems]
    # One pass over the training text for all benchmarks.
    shared = iter(find_overlap(prompt_texts(prompts), [p.question for p in everything], ngram).shared)
    records: dict[str, Any] = {}
    for name, problems in loaded.items():
        if isinstance(problems, str) or not problems:
            records[name] = {"not_checked": problems or "no problems"}
        else:
            records[name] = overlap_record(problems, [next(shared) for _ in problems], ngram)
    return records
