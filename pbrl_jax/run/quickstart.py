"""`pbrl quickstart`: the paper's effect in miniature, from nothing but this package's own text.

A small policy learns to reason in English and a little in seven other languages; a small encoder learns which texts
say the same; the policy's own English responses, filtered, become the references; then GRPO in the other languages,
whose only signal is semantic similarity to those references. Each stage is cached in the work directory.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from pbrl_jax.assets.encoder import Encoder, load_encoder, save_encoder
from pbrl_jax.assets.policy import Policy, load_policy, save_policy
from pbrl_jax.core.config import Config
from pbrl_jax.core.paths import WorkDir, read_json_lines, work_dir, write_atomic
from pbrl_jax.core.progress import Progress
from pbrl_jax.core.records import Prompt
from pbrl_jax.core.serialize import to_json
from pbrl_jax.core.sharding import make_mesh
from pbrl_jax.data.load import load_prompts
from pbrl_jax.eval.evaluate import Decoder, evaluate
from pbrl_jax.eval.report import write_report
from pbrl_jax.eval.report_data import ReportData
from pbrl_jax.run.assemble import (
    build_experiment,
    check_start,
    run_encoder,
    run_policy,
    training_prompts,
    use_compilation_cache,
)
from pbrl_jax.run.encoder import train_encoder
from pbrl_jax.run.quickstart_config import ENGLISH_PROBLEMS, quickstart_config, tiny_quickstart_config
from pbrl_jax.run.quickstart_controls import CONTROLS
from pbrl_jax.run.sft import train_supervised
from pbrl_jax.train.loop import train
from pbrl_jax.train.signals import watch_signals
from pbrl_jax.train.staged import Stopped


class Stages(NamedTuple):
    """The work directory, and how many stages this run has."""

    work: WorkDir
    config: Config
    total: int


def cached(stages: Stages, name: str, make: Callable[[], Any]) -> Any:
    """`make()`'s JSON-able result, kept in the work directory with the seconds it took; read back on a second run."""
    file = stages.work.root / "stages" / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text())["result"]
    started = time.perf_counter()
    result = make()
    earlier = _spent(stages, name)
    record = {"result": result, "seconds": earlier + time.perf_counter() - started}
    write_atomic(file, json.dumps(record))
    return result


def _spent(stages: Stages, name: str) -> float:
    """Seconds that an interrupted run of the stage took, as far as it wrote them down."""
    file = stages.work.root / "stages" / f"{name}.partial"
    return float(file.read_text()) if file.exists() else 0.0


def seconds(stages: Stages) -> dict[str, float]:
    """Stage -> seconds, in order, and their total."""
    files = sorted((stages.work.root / "stages").glob("*.json"), key=lambda file: file.stat().mtime)
    table = {file.stem: round(json.loads(file.read_text())["seconds"], 1) for file in files}
    return table | {"total": round(sum(table.values()), 1)}


def start_policy(stages: Stages) -> Policy:
    """Stage 1: supervised fine-tuning, strong in English and weak elsewhere."""
    config, folder = stages.config, stages.work.root / "sft"

    def make():
        work = work_dir(folder)
        policy = run_policy(config, work, [])
        trained = train_supervised(config, work, policy, make_mesh(config.mesh), (1, stages.total))
        save_policy(trained, str(folder / "policy"))

    cached(stages, "sft", make)
    return load_policy(str(folder))


def reward_encoder(stages: Stages, policy: Policy) -> Encoder:
    """Stage 2: a multilingual encoder, on parallel responses to problems that nothing else uses."""
    config, folder = stages.config, stages.work.root / "encoder"

    def make():
        encoder = run_encoder(config, policy.tokenizer)
        trained = train_encoder(config, work_dir(folder), encoder, [], make_mesh(config.mesh), (2, stages.total))
        save_encoder(trained, str(folder / "encoder"))

    cached(stages, "encoder", make)
    return load_encoder(str(folder), config.encoder.max_length)


def test_prompts(config: Config) -> list[Prompt]:
    """Held-out problems: eval.limit in each language, and more in English."""
    others = [code for code in config.data.languages if code != "en"]
    count = min(ENGLISH_PROBLEMS, 4 * config.eval.limit)
    seed = config.train.seed
    english = load_prompts(config.data, seed, split="test", languages=("en",), limit=count)
    return english + load_prompts(config.data, seed, split="test", languages=others, limit=config.eval.limit)


def accuracy(stages: Stages, name: str, number: int, policy: Policy, params) -> dict[str, dict[str, float]]:
    """The table per language of greedy decoding on the held-out problems, as a stage of its own."""
    config = stages.config

    def make():
        prompts = test_prompts(config)
        decoder = Decoder(
            policy.spec, policy.tokenizer, config.rollout.max_prompt_length, config.rollout.max_completion_length,
            config.eval.batch_size,
        )  # fmt: skip
        with Progress(name, len(prompts), unit="problem", part=(number, stages.total)) as progress:
            table, _ = evaluate(decoder, params, prompts, progress.advance)
        return table

    return cached(stages, name, make)


def rl_config(stages: Stages) -> Config:
    """The configuration of the reinforcement learning stage: start policy and encoder are the earlier stages'."""
    config, root = stages.config, stages.work.root
    return dataclasses.replace(
        config,
        policy=dataclasses.replace(config.policy, source=str(root / "sft")),
        encoder=dataclasses.replace(config.encoder, source=str(root / "encoder")),
        pivot=dataclasses.replace(config.pivot, path=str(root / "pivots")),
    )


def reinforce(stages: Stages, name: str, number: int, config: Config, change=lambda experiment: experiment) -> Any:
    """Train with `config` in `W/<name>`; the trained policy's parameters.

    Args:
      change: what a control changes in the assembled experiment.
    """
    work = work_dir(stages.work.root / name)

    def make():
        experiment = change(build_experiment(config, work, (number, stages.total)))
        position = train(experiment, part=(number, stages.total), quiet=True)
        if position is None:
            raise Stopped
        save_policy(experiment.policy._replace(params=position.state.params), str(work.root / "policy"))

    cached(stages, name, make)
    return load_policy(str(work.root)).params


def summarise(stages: Stages, before: dict, after: dict, controls: dict) -> dict[str, Any]:
    """The record of summary.json."""

    def pair(function):
        return {"before": function(before), "after": function(after)}

    def mean(table):
        values = [row["accuracy"] for code, row in table.items() if code != "en"]
        return sum(values) / len(values)

    languages = {code: {"before": before[code]["accuracy"], "after": after[code]["accuracy"]} for code in before}
    summary = {
        "languages": languages,
        "mean_non_english": pair(mean),
        "gap_to_english": pair(lambda table: table["en"]["accuracy"] - mean(table)),
        "right_language": {c: {"before": before[c]["right_language"], "after": after[c]["right_language"]} for c in before},
        "controls": {
            name: {
                "mean_non_english": {"before": mean(before), "after": mean(table)},
                "languages": {c: {"before": before[c]["accuracy"], "after": table[c]["accuracy"]} for c in table},
            }
            for name, table in controls.items()
        },
        "seed": stages.config.train.seed,
        "problems_per_language": {code: row["n"] for code, row in after.items()},
    }
    return summary | {"seconds": seconds(stages)}


def show(summary: dict[str, Any], console: Console) -> None:
    """The table on the terminal."""
    table = Table(title="Accuracy on held-out problems (greedy)")
    for heading in ("language", "before", "after", "change"):
        table.add_column(heading, justify="left" if heading == "language" else "right")

    def row(name, record):
        before, after = 100 * record["before"], 100 * record["after"]
        table.add_row(name, f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}")

    for code, record in summary["languages"].items():
        row(code, record)
    table.add_section()
    row("mean without en", summary["mean_non_english"])
    row("gap to English", summary["gap_to_english"])
    for name, record in summary["controls"].items():
        row(f"control: {name}", record["mean_non_english"])
    console.print(table)
    console.print(f"{summary['seconds']['total']:.0f} seconds in all.")


def main(workdir: str, seed: int, controls: bool, tiny: bool) -> None:
    """Run what is not done yet; write summary.json and report.html, and print the table."""
    watch_signals()
    config = tiny_quickstart_config(seed) if tiny else quickstart_config(seed)
    use_compilation_cache(config)
    check_start(config)
    work = work_dir(workdir)
    _same_run(work, config)
    stages = Stages(work, config, 5 + (2 * len(CONTROLS) if controls else 0))
    try:
        summary = run_all(stages, controls)
    except Stopped:
        print("Stopped; what is finished is kept. The same command goes on from here.")
        return
    write_atomic(work.root / "summary.json", json.dumps(summary, indent=1))
    report = _write_report(stages, summary)
    show(summary, Console())
    print(f"Report: {report}\nWhat to run next with real models stands at its end and in README.md.")


def run_all(stages: Stages, controls: bool) -> dict[str, Any]:
    """All stages; the summary."""
    policy = start_policy(stages)
    reward_encoder(stages, policy)
    before = accuracy(stages, "evaluate_before", 3, policy, policy.params)
    config = rl_config(stages)
    trained = reinforce(stages, "rl", 4, config)
    after = accuracy(stages, "evaluate_after", 5, policy, trained)
    tables = {}
    if controls:
        for index, (name, control) in enumerate(CONTROLS.items()):
            params = control(stages, name, 6 + 2 * index, config, policy)
            tables[name] = accuracy(stages, f"evaluate_{name}", 7 + 2 * index, policy, params)
    return summarise(stages, before, after, tables)


def _same_run(work: WorkDir, config: Config) -> None:
    """Start the work directory, or refuse one of another quickstart."""
    from pbrl_jax.checkpoint import check_same_experiment
    from pbrl_jax.core.serialize import from_json

    if work.config.exists():
        check_same_experiment(from_json(work.config.read_text()), config, {}, {})
    write_atomic(work.config, to_json(config))


def _write_report(stages: Stages, summary: dict[str, Any]):
    rl = work_dir(stages.work.root / "rl")
    files = sorted(rl.samples.glob("step_*.jsonl"), key=lambda file: int(file.stem.split("_")[1]))
    samples = [row for file in files for row in read_json_lines(file)]
    data = ReportData(
        title="pbrl_jax quickstart",
        summary=summary,
        metrics=tuple(read_json_lines(rl.metrics)),
        samples=tuple(samples),
        config=json.loads(to_json(stages.config)),
    )
    return write_report(stages.work.root / "report.html", data)
