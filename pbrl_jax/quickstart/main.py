"""`pbrl quickstart`: the paper's method in miniature, on text that this package generates.

A small policy is fine-tuned to reason in English and a little in seven other languages; a small encoder is trained on
parallel text; the policy's own correct English responses become the references; GRPO then trains the policy in the
other languages, rewarded only by semantic similarity to these references.
"""

import dataclasses
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from pbrl_jax.checkpoint import check_same_experiment
from pbrl_jax.config.serialize import from_json, identity_differences, to_json
from pbrl_jax.config.tree import Config
from pbrl_jax.core.paths import WorkDir, work_dir, write_atomic
from pbrl_jax.core.stopping import Interrupted
from pbrl_jax.mesh.hosts import refuse_several
from pbrl_jax.quickstart.controls import CONTROLS
from pbrl_jax.quickstart.settings import quickstart_config, tiny_quickstart_config
from pbrl_jax.quickstart.stages import (
    Stages,
    accuracy,
    reinforce,
    reward_encoder,
    rl_config,
    seconds,
    start_policy,
)
from pbrl_jax.report.write import read_run, write_report
from pbrl_jax.run.assemble import check_start, use_compilation_cache
from pbrl_jax.train.signals import watch_signals


def make_summary(stages: Stages, before: dict, after: dict, controls: dict) -> dict[str, Any]:
    """The record of summary.json."""

    def mean(table):
        values = [row["accuracy"] for code, row in table.items() if code != "en"]
        return sum(values) / len(values)

    def means(table):
        return {"before": mean(before), "after": mean(table)}

    def by_language(field, table):
        return {code: {"before": before[code][field], "after": table[code][field]} for code in before}

    gaps = {side: table["en"]["accuracy"] - mean(table) for side, table in (("before", before), ("after", after))}
    summary = {
        "languages": by_language("accuracy", after),
        "mean_non_english": means(after),
        "gap_to_english": gaps,
        "right_language": by_language("right_language", after),
        "controls": {
            name: {"mean_non_english": means(table), "languages": by_language("accuracy", table)}
            for name, table in controls.items()
        },
        "seed": stages.config.train.seed,
        "problems_per_language": {code: row["n"] for code, row in after.items()},
    }
    return summary | {"seconds": seconds(stages)}


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print the table of accuracies."""
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
    """Run the unfinished stages, write summary.json and report.html, and print the table."""
    watch_signals()
    config = tiny_quickstart_config(seed) if tiny else quickstart_config(seed)
    use_compilation_cache(config)
    refuse_several("quickstart")
    check_start(config)
    work = work_dir(workdir)
    stages = Stages(work, begun_config(work, config), 5 + (2 * len(CONTROLS) if controls else 0))
    try:
        summary = run_all(stages, controls)
    except Interrupted:
        print("Stopped. The same command continues from here.")
        return
    write_atomic(work.root / "summary.json", json.dumps(summary, indent=1))
    data = dataclasses.replace(read_run(work.root), title="pbrl_jax quickstart")
    report = write_report(work.root / "report.html", data)
    print_summary(summary, Console())
    print(f"Report: {report}\nThe end of the report and README.md show what to run next with real models.")


def run_all(stages: Stages, controls: bool) -> dict[str, Any]:
    """Run all stages; returns the summary."""
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
    return make_summary(stages, before, after, tables)


def begun_config(work: WorkDir, config: Config) -> Config:
    """The settings that the work directory was begun with, which another version may have chosen, or `config`; written
    to config.json.

    Raises:
      CheckpointError: a quickstart of another seed or size.
    """
    begun = config
    if work.config.exists():
        notes: list[str] = []
        begun = from_json(work.config.read_text(), type(config), notes)
        print("".join(f"{note}\n" for note in notes), end="")
        if (begun.train.seed, begun.policy.preset) != (config.train.seed, config.policy.preset):
            check_same_experiment(begun, config, {}, {})
        if changed := identity_differences(begun, config):
            print(f"It goes on with the settings it was begun with. Of this version's differ: {', '.join(changed)}.")
    write_atomic(work.config, to_json(begun))
    return begun
