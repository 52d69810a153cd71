"""Training runs beside each other on the quickstart task: what the scripts compare_*.py share.

Every seed has a start policy, an encoder and references of its own, which all runs of that seed share. A run ends when
its rollouts hold so many sampled tokens (those that dynamic sampling throws away count). What is finished is kept in
W/seed_N/stages: the same command goes on, and commands for single runs add up.
"""

import argparse
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from scipy import stats

from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import ConfigError, PbrlError
from pbrl_jax.core.paths import read_json_lines, work_dir
from pbrl_jax.quickstart.settings import quickstart_config, tiny_quickstart_config
from pbrl_jax.quickstart.stages import Stages, accuracy, cached, reward_encoder, rl_config, start_policy
from pbrl_jax.run.assemble import build_experiment, use_compilation_cache
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.loop import train, trained_policy
from pbrl_jax.train.restart import restore
from pbrl_jax.weights.policies import load_policy, save_policy

#: What trains one run of a comparison: (stages, its name, the quickstart's RL configuration, tokens it may sample) ->
#: {"tokens", "steps"}; the policy is left in W/seed_N/<folder>.
Train = Callable[[Stages, str, Config, float], dict]

#: Where a run's name is not its folder's: the quickstart's own stage is called sft.
FOLDERS = {"sft": "sft_pivots"}
#: Stages of a quickstart that a seed starts from -> their name here.
START_STAGES = {"sft": "sft", "encoder": "encoder", "evaluate_before": "evaluate_start"}
START = "start"
"""The start policy among the runs."""


class Spent(PbrlError):
    """A run has used its tokens; its state is saved."""


def copy_start(start: Path, root: Path, seed: int) -> None:
    """Take start policy, encoder and the start's accuracy from a quickstart's work directory. References name the
    folder of their expert, so the copy answers anew."""
    if (root / "stages" / "sft.json").exists():
        return
    missing = [name for name in START_STAGES if not (start / "stages" / f"{name}.json").exists()]
    if missing:
        raise ConfigError(f"{start} has not finished {', '.join(missing)}. Type: pbrl quickstart --workdir {start}")
    saved = json.loads((start / "config.json").read_text())["train"]["seed"]
    if saved != seed:
        raise ConfigError(f"{start} has seed {saved}, expected {seed}: --starts follows the order of --seeds.")
    for folder in ("sft", "encoder"):
        shutil.copytree(start / folder, root / folder, dirs_exist_ok=True)
    (root / "stages").mkdir()
    for theirs, ours in reversed(START_STAGES.items()):
        shutil.copy(start / "stages" / f"{theirs}.json", root / "stages" / f"{ours}.json")


def tokens_used(metrics: Path) -> int:
    """Sampled tokens in the log of a run."""
    return sum(row.get("num_tokens", 0) for row in read_json_lines(metrics)) if metrics.exists() else 0


def rewards_seen(metrics: Path) -> tuple[float, float] | None:
    """Mean rewards of the first and of the last tenth of a run's steps; None where there is no log of rewards."""
    rows = [row["reward"] for row in read_json_lines(metrics) if "reward" in row] if metrics.exists() else []
    size = math.ceil(len(rows) / 10)
    return (float(np.mean(rows[:size])), float(np.mean(rows[-size:]))) if rows else None


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of its 95 % interval by Student's distribution); the second is NaN for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(np.mean(values)), float(half)


def unscheduled(config: Config, steps: int = 100_000, **sections: dict) -> Config:
    """The quickstart on the host path, at a constant learning rate: runs differ in their number of steps, and a
    schedule by steps would favour some."""
    sections["optim"] = {"schedule": "constant", **sections.get("optim", {})}
    sections["train"] = {"fused": False, "max_steps": steps, "eval_steps": 1, **sections.get("train", {})}
    return with_values(config, **sections)


def spend(experiment: Experiment, tokens: float) -> None:
    """Train to the last step, or until the rollouts hold so many tokens; goes on where it was left."""

    def evaluate(_params) -> dict[str, float]:
        if tokens_used(Path(str(experiment.work.metrics))) >= tokens:
            raise Spent("All tokens are used.")
        return {}

    try:
        if train(experiment, evaluate, quiet=True) is None:
            raise SystemExit("Stopped; what is finished is kept. The same command goes on from here.")
    except Spent:
        pass


def reinforced(stages: Stages, name: str, config: Config, tokens: float,
               change: Callable[[Experiment], Experiment] | None = None) -> dict:  # fmt: skip
    """Train with one configuration; what it used. `change`: a control's change of the experiment."""
    work = work_dir(stages.work.root / name)

    def make():
        experiment = build_experiment(config, work)
        experiment = experiment if change is None else change(experiment)
        spend(experiment, tokens)
        with jax.set_mesh(experiment.mesh):
            position = restore(experiment)
        save_policy(trained_policy(experiment, position), str(work.root / "policy"))
        return {"tokens": tokens_used(Path(str(work.metrics))), "steps": position.step}

    return cached(stages, name, make)


def base_config(seed: int, tiny: bool) -> Config:
    """The quickstart of a seed, with every group in the loss: what is left out differs from reward to reward."""
    config = tiny_quickstart_config(seed) if tiny else quickstart_config(seed)
    return with_values(config, algo={"mask_zero_std_groups": False}, optim={"learning_rate": 4e-4})


def run_seed(root: Path, seed: int, flags: argparse.Namespace, runs: Mapping[str, Train],
             prepare: Callable[[Stages, Config], Config] = lambda _stages, config: config) -> None:  # fmt: skip
    """All that is not done yet of one seed.

    Args:
      prepare: makes what the runs share, and returns the RL configuration with it.
    """
    base = base_config(seed, flags.tiny)
    use_compilation_cache(base)
    stages = Stages(work_dir(root), base, 3 + 2 * len(flags.only))
    policy = start_policy(stages)
    reward_encoder(stages, policy)
    accuracy(stages, f"evaluate_{START}", 3, policy, policy.params)
    config = prepare(stages, rl_config(stages))
    if flags.prompts:
        config = with_values(config, train={"prompts_per_step": flags.prompts})
    for index, name in enumerate(flags.only):
        runs[name](stages, name, config, flags.tokens)
        params = load_policy(str(stages.work.root / FOLDERS.get(name, name))).params
        accuracy(stages, f"evaluate_{name}", 4 + 2 * index, policy, params)


def mean_non_english(table: dict, key: str = "accuracy") -> float:
    """Mean over the languages beside English."""
    values = [row[key] for code, row in table.items() if code != "en"]
    return sum(values) / len(values)


def finished(root: Path, names: Sequence[str]) -> dict[int, dict[str, dict]]:
    """seed -> name -> {"accuracy", "english", "table", "rewards", "tokens", "steps", "seconds"} of all runs that are
    evaluated; `start` is the start policy."""
    seeds = {}
    for stages in sorted(root.glob("seed_*/stages")):
        runs = {}
        for name in (START, *names):
            if (file := stages / f"evaluate_{name}.json").exists():
                table, folder = json.loads(file.read_text())["result"], FOLDERS.get(name, name)
                run = {"result": {"tokens": 0, "steps": 0}, "seconds": 0.0}
                if name != START:
                    run = json.loads((stages / f"{folder}.json").read_text())
                runs[name] = {"accuracy": mean_non_english(table), "english": table["en"]["accuracy"], "table": table,
                              "rewards": rewards_seen(stages.parent / folder / "metrics.jsonl"),
                              **run["result"], "seconds": run["seconds"]}  # fmt: skip
        seeds[int(stages.parent.name.removeprefix("seed_"))] = runs
    return seeds


def summary_of(seeds: dict[int, dict], names: Sequence[str], beside: str,
               measures: Mapping[str, Callable[[dict], float]] = {}) -> dict[str, dict]:  # fmt: skip
    """name -> mean and half-width of each number over the seeds that have it, of the gain over the same seed's start,
    and of what the run `beside` reaches beyond it in the same seed.

    Args:
      measures: further numbers of a run, from its table per language.
    """
    summary = {}
    for name in (START, *names):
        those = [seed for seed in seeds.values() if name in seed]
        if not those:
            continue
        rivals = [seed for seed in those if beside in seed and name != beside]
        ahead = [seed[beside]["accuracy"] - seed[name]["accuracy"] for seed in rivals]
        rewards = [seed[name]["rewards"] for seed in those if seed[name]["rewards"]]
        summary[name] = {
            "accuracy": interval([seed[name]["accuracy"] for seed in those]),
            "gain": interval([seed[name]["accuracy"] - seed[START]["accuracy"] for seed in those]),
            "ahead": interval(ahead) if ahead else None,
            "english": interval([seed[name]["english"] for seed in those]),
            "rewards": np.mean(rewards, axis=0).tolist() if rewards else None,
            **{key: interval([measure(seed[name]["table"]) for seed in those]) for key, measure in measures.items()},
            **{key: interval([seed[name][key] for seed in those])[0] for key in ("tokens", "steps", "seconds")},
            "seeds": len(those),
        }
    return summary


def percent(pair: tuple[float, float] | None) -> str:
    """A mean and its half-width in %."""
    if pair is None:
        return ""
    mean, half = pair
    return f"{100 * mean:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def markdown(summary: dict[str, dict], what: str, beside: str, measures: Sequence[str] = ()) -> str:
    """The table, the best run first; `what` heads its first column. A run's reward is the mean of the first and of the
    last tenth of its steps: one that rises while the accuracy does not is cheated."""
    shown = ["accuracy", "gain", "ahead", "english", *measures]
    heads = ["without English", "gain", f"{beside} ahead by", "English", *(name.replace("_", " ") for name in measures)]
    lines = [
        "Accuracy in % on held-out problems, mean over seeds ± half of its 95 % interval (Student's).",
        "",
        f"| {what} | {' | '.join(heads)} | reward | generated tokens | steps | seconds | seeds |",
        "|---" * (len(heads) + 6) + "|",
    ]
    for name, row in sorted(summary.items(), key=lambda item: -item[1]["accuracy"][0]):
        cells = " | ".join(percent(row[key]) for key in shown)
        reward = f"{row['rewards'][0]:.2f} -> {row['rewards'][1]:.2f}" if row["rewards"] else ""
        counts = f"{row['tokens']:,.0f} | {row['steps']:.0f} | {row['seconds']:.0f} | {row['seeds']}"
        lines.append(f"| {name} | {cells} | {reward} | {counts} |")
    return "\n".join(lines) + "\n"


def picture(summary: dict[str, dict], file: Path) -> None:
    """Gains over the start policy, with their intervals: bars, or, where every run is called `NAME@PROBLEMS`, curves
    over the number of problems."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(((name, row["gain"]) for name, row in summary.items() if name != START), key=lambda row: row[1][0])
    label = "gain in accuracy over the start policy,\nlanguages beside English (points, 95 % interval)"
    curves = all("@" in name for name, _ in rows)
    figure, axes = pyplot.subplots(figsize=(7, 4.5 if curves else 0.5 + 0.45 * len(rows)))
    if curves:
        for reward in sorted({name.partition("@")[0] for name, _ in rows}):
            points = sorted((int(name.partition("@")[2]), gain) for name, gain in rows if name.startswith(f"{reward}@"))
            means, halves = zip(*(_points(gain) for _, gain in points), strict=True)
            axes.errorbar([count for count, _ in points], means, yerr=halves, marker="o", capsize=3, label=reward)
        axes.set(xscale="log", xlabel="problems in each language", ylabel=label, xticks=[count for count, _ in points])
        axes.get_xaxis().set_major_formatter(matplotlib.ticker.ScalarFormatter())
        axes.minorticks_off()
        axes.legend()
    else:
        means, halves = zip(*(_points(gain) for _, gain in rows), strict=True)
        axes.barh([name for name, _ in rows], means, xerr=halves, color="#4477aa", capsize=3)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel(label)
    figure.savefig(file, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def _points(gain: tuple[float, float]) -> tuple[float, float]:
    """A gain and its half-width (0 for a single seed) in points."""
    mean, half = gain
    return 100 * mean, 0.0 if math.isnan(half) else 100 * half


def parser(description: str, names: Sequence[str], tokens: int) -> argparse.ArgumentParser:
    """The options of every comparison."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--workdir", required=True)
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--starts", nargs="+", default=[], help="work directories of quickstarts, one for each seed")
    found.add_argument("--tokens", type=int, default=tokens, help="sampled tokens of each run")
    found.add_argument("--prompts", type=int, default=0, help="prompts of a step; 0: the quickstart's")
    found.add_argument("--only", nargs="+", choices=names, default=list(names), help="runs, in this order")
    found.add_argument("--tiny", action="store_true", help="models too small and stages too short to show an effect")
    return found


def parsed(options: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The values of the options, whose --starts must match --seeds."""
    flags = options.parse_args(arguments)
    if flags.starts and len(flags.starts) != len(flags.seeds):
        options.error(f"--starts names {len(flags.starts)} folders for {len(flags.seeds)} seeds: {flags.seeds}")
    return flags


def run_all(flags: argparse.Namespace, run_one: Callable[[Path, int], None]) -> None:
    """Run what is not done yet, seed by seed: `run_one(folder of the seed, seed)`."""
    root = Path(flags.workdir)
    for index, seed in enumerate(flags.seeds):
        if flags.starts:
            copy_start(Path(flags.starts[index]), root / f"seed_{seed}", seed)
        run_one(root / f"seed_{seed}", seed)


def write(root: Path, record: dict, table: str, summary: dict[str, dict]) -> None:
    """W/comparison.json, .md and .png."""
    (root / "comparison.json").write_text(json.dumps(record, indent=1))
    (root / "comparison.md").write_text(table)
    picture(summary, root / "comparison.png")
    print(table)
