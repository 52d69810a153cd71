"""`pbrl eval --policy DIR --benchmark NAME --workdir W`: accuracy per language, with intervals; stops and goes on."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pbrl_jax.config.tree import Config, DataConfig, LogConfig
from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError, DataError, is_out_of_memory, lookup
from pbrl_jax.core.paths import as_path, parse_json
from pbrl_jax.eval.benchmarks import BENCHMARKS, own_table
from pbrl_jax.eval.benchmarks.common import LOGLIKELIHOOD, Benchmark, Problem, Request, check_request
from pbrl_jax.eval.contamination import find_overlap
from pbrl_jax.eval.evaluation_folder import EvaluationFolder, problems_digest
from pbrl_jax.eval.grading import grade_rows
from pbrl_jax.eval.metrics_table import compare, summary
from pbrl_jax.eval.respond import STYLES, Answering, Settings, generate_responses, score_choices
from pbrl_jax.logs.progress import Progress
from pbrl_jax.mesh.hosts import refuse_several
from pbrl_jax.mesh.sharding import inference_mesh
from pbrl_jax.report.write import distinct_roots, run_labels
from pbrl_jax.run.assemble import use_compilation_cache
from pbrl_jax.run.config_file import load_config
from pbrl_jax.run.contamination import overlap_record, refuse, training_texts
from pbrl_jax.run.options import EvalOptions, names_in
from pbrl_jax.text.languages import check_languages
from pbrl_jax.text.prompts import THINKING
from pbrl_jax.text.wording import with_own_words, wording_of
from pbrl_jax.train.signals import watch_signals
from pbrl_jax.weights.policies import Policy, load_policy


def check_options(options: EvalOptions) -> None:
    """Combinations that make sense.

    Raises:
      ConfigError: says which option, and what would do.
    """
    lookup(STYLES, options.style, "prompt style")
    if options.top_p == 0:
        raise ConfigError("--top-p is 0, which leaves no token. Use 1 to switch it off.")
    if options.samples > 1 and options.temperature == 0:
        raise ConfigError(f"--samples {options.samples} at --temperature 0 are all the same. Use --temperature 0.6.")
    refuse_several("eval")


def make_request(options: EvalOptions) -> tuple[Benchmark, Request]:
    """The benchmark and what is asked of it, with the benchmark's defaults."""
    benchmark = lookup(BENCHMARKS | {own_table.BENCHMARK.name: own_table.BENCHMARK}, options.benchmark, "benchmark")
    protocol = options.protocol or benchmark.protocols[0]
    shots = options.shots
    if shots is None:
        shots = 0 if protocol == LOGLIKELIHOOD else benchmark.shots
    languages = tuple(names_in(options.languages))
    if options.languages and not languages:
        raise ConfigError(f"--languages is {options.languages!r}; expected codes with commas between, such as sw,bn.")
    if options.columns and benchmark is not own_table.BENCHMARK:
        raise ConfigError(f"--columns is for --benchmark table, not for {benchmark.name}. Leave it out.")
    request = Request(languages, protocol, shots, options.limit, options.data, tuple(options.columns))
    return benchmark, check_request(benchmark, request)


def make_settings(options: EvalOptions, benchmark: Benchmark, protocol: str) -> Settings:
    """How the policy answers; rows are spread over all devices where there are several."""
    return Settings(
        style=options.style, samples=options.samples, temperature=options.temperature, top_p=options.top_p,
        seed=options.seed, max_completion_length=options.max_completion_length or benchmark.tokens[protocol] or 1,
        batch_size=options.batch_size, mesh=inference_mesh(options.fsdp, options.tensor),
        thinking=THINKING[options.thinking],
        wording=wording_of(with_own_words(DataConfig(prompt_style="auto"), options)),
    )  # fmt: skip


def identity_of(benchmark: Benchmark, request: Request, settings: Settings, problems: Sequence[Problem],
                policy: Policy) -> dict[str, Any]:  # fmt: skip
    """All that decides the responses."""
    found = {
        "benchmark": benchmark.name, "version": benchmark.version, "protocol": request.protocol,
        "shots": request.shots, "languages": list(request.languages), "limit": request.limit,
        "problems": problems_digest(problems), "policy": policy.fingerprint, "dtype": str(policy.spec.dtype),
    }  # fmt: skip
    if request.protocol == LOGLIKELIHOOD:
        return found
    found |= {} if settings.thinking is None else {"thinking": settings.thinking}
    found |= {"wording": settings.wording.digest} if any(settings.wording) else {}
    return found | {
        "style": settings.style, "samples": settings.samples, "temperature": settings.temperature,
        "top_p": settings.top_p, "seed": settings.seed, "max_completion_length": settings.max_completion_length,
    }  # fmt: skip


def respond(folder: EvaluationFolder, policy: Policy, settings: Settings, problems: Sequence[Problem],
            protocol: str) -> list[dict[str, Any]]:  # fmt: skip
    """All rows: those of an earlier run, and what was missing."""
    done = {(row["key"], row["sample"]) for row in folder.read()}
    samples = 1 if protocol == LOGLIKELIHOOD else settings.samples
    finished = sum(all((p.key, sample) in done for sample in range(samples)) for p in problems)
    if finished:
        print(f"Going on: {finished} of {len(problems)} problems were answered before.")
    run = score_choices if protocol == LOGLIKELIHOOD else generate_responses
    answering = Answering(policy.spec, policy.params, policy.tokenizer, settings, policy.positions)
    with Progress("evaluate", len(problems), unit="problem", done=finished) as progress:
        try:
            run(answering, problems, done, folder.append, progress.advance)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"The memory is used up with --batch-size {settings.batch_size}. Run the same command with "
                f"--batch-size {max(1, settings.batch_size // 2)}: it goes on from here."
            ) from error
    return folder.read()


# What is known of the training.


def seen_languages(options: EvalOptions) -> tuple[str, ...]:
    """The languages the policy was trained in: --seen, else those of the training config that is at hand."""
    if options.seen:
        return check_languages(names_in(options.seen))
    if options.training_data:
        return load_config(options.training_data).data.languages
    file = as_path(options.policy) / "config.json"
    try:
        return tuple(parse_json(file.read_text())["data"]["languages"]) if file.exists() else ()
    except (ValueError, KeyError, TypeError):
        return ()  # a config.json of another kind, such as a Hugging Face model's


def contamination(options: EvalOptions, problems: Sequence[Problem]) -> dict[str, Any]:
    """What the training text of --training-data shares with the problems.

    Raises:
      DataError: more than --max-overlap of them.
    """
    overlap = find_overlap(training_texts(options.training_data), [p.question for p in problems], options.ngram)
    record = overlap_record(problems, overlap.shared, options.ngram)
    refuse(options.benchmark, record, options.max_overlap, options.training_data, "--max-overlap")
    return record


def earlier_rows(folders: Sequence[str], identity: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Short name of each earlier evaluation -> its rows, with the grades of its time.

    Raises:
      DataError: one that is not finished, is given twice, or is of other problems.
    """
    roots = distinct_roots(folders)
    return {
        label: EvaluationFolder(root).graded(identity) for label, root in zip(run_labels(roots), roots, strict=True)
    }


# The result.


def gain_lines(result: dict[str, Any]) -> list[str]:
    """A line for each earlier evaluation: the gain outside English (else of the only language) and its significance."""
    lines = []
    for label, found in result.get("against", {}).items():
        code = next(iter(found["languages"]))
        row = found["mean_non_english"] or (found["languages"][code] if len(found["languages"]) == 1 else None)
        if row is None:
            continue
        relative = "" if row["relative"] is None else f", {100 * row['relative']:+.1f} % relative"
        where = "outside English" if found["mean_non_english"] else f"in {code}"
        lines.append(
            f"Against {label}: {100 * row['points']:+.1f} points {where} (95 %: {100 * row['low']:+.1f} to "
            f"{100 * row['high']:+.1f}, p {row['p_bootstrap']:.3g}){relative}"
        )
    return lines


def print_table(result: dict[str, Any]) -> None:
    """The accuracies on the terminal."""
    table = Table(title=f"{result['benchmark']}, {result['protocol']}")
    for name in ("", "accuracy", "95 % interval", "problems", "no answer", "language"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f}"

    for code, row in result["languages"].items():
        interval = f"{percent(row['low'])} to {percent(row['high'])}"
        failures, right = percent(row["extraction_failures"]), percent(row["right_language"])
        table.add_row(code, percent(row["accuracy"]), interval, str(row["n"]), failures, right)
    for name, key in (("all but English", "mean_non_english"), ("gap to English", "gap_to_english")):
        if result[key] is not None:
            table.add_row(name, percent(result[key]))
    Console().print(table)


def main(options: EvalOptions) -> None:
    """Evaluate, or go on, and leave W/eval.json and W/responses.jsonl.

    Raises:
      PbrlError: whatever is wrong with the options, the data, the policy or the work directory.
    """
    watch_signals()
    check_options(options)
    benchmark, request = make_request(options)
    seen = seen_languages(options)
    problems = benchmark.load(request)
    if not problems:
        raise DataError(f"{benchmark.name} gave no problems for {', '.join(request.languages)}. Check its files.")
    overlap = contamination(options, problems) if options.training_data else None
    use_compilation_cache(Config(log=LogConfig(compilation_cache=options.compilation_cache)))
    settings = make_settings(options, benchmark, request.protocol)
    policy = load_policy(options.policy, settings.mesh, options.dtype)
    identity = identity_of(benchmark, request, settings, problems, policy)
    folder = EvaluationFolder(options.workdir)
    bases = earlier_rows(options.base, identity)
    folder.claim(identity)
    rows = respond(folder, policy, settings, problems, request.protocol)
    graded = grade_rows(benchmark, request.protocol, problems, rows)
    result = identity | summary(graded, seen)
    if bases:
        # Graded anew: another version may have read answers otherwise.
        bases = {label: grade_rows(benchmark, request.protocol, problems, base) for label, base in bases.items()}
        result["against"] = {label: compare(base, graded) for label, base in bases.items()}
        result["against_base"] = next(iter(result["against"].values()))
    if overlap is not None:
        result["contamination"] = overlap
    folder.finish(graded, result)
    print_table(result)
    for line in gain_lines(result):
        print(visible(line))
    print(f"Numbers: {folder.result}; responses: {folder.responses}")
