"""Algorithms beside each other on the quickstart task: one start policy, the same number of generated tokens.

  python benchmarks/compare_algorithms.py --workdir runs/compare                      # three seeds, all algorithms
  python benchmarks/compare_algorithms.py --workdir runs/compare --seeds 0 --only grpo ppo
  python benchmarks/compare_algorithms.py --workdir runs/compare --starts runs/q0 runs/q1 runs/q2 --steps 60
  python benchmarks/compare_algorithms.py --workdir runs/tiny --tiny --seeds 0 1      # a check in minutes; no effect

Every seed has a start policy, an encoder and references of its own, which all algorithms share; --starts takes them
from finished quickstarts, one for each of --seeds, which are copied and never written to. Each algorithm then runs
until its rollouts hold --tokens sampled tokens (those that dynamic sampling throws away count), or with --steps as many
as GRPO samples in so many steps of that seed; SFT trains on the same references for as many response tokens. What is
finished is kept: the same command goes on, and commands for single runs (--seeds 1 --only rloo) add up.

W/comparison.json holds every number, W/comparison.md the table, W/comparison.png the picture, of all that W holds.
Intervals are Student's, 95 %, over seeds; with one seed there are none.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import jax

from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import ConfigError, PbrlError
from pbrl_jax.core.paths import read_json_lines, work_dir
from pbrl_jax.data.sources.quickstart import Example
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.quickstart.settings import quickstart_config, tiny_quickstart_config
from pbrl_jax.quickstart.stages import Stages, accuracy, cached, reward_encoder, rl_config, start_policy
from pbrl_jax.run.assemble import build_experiment, use_compilation_cache
from pbrl_jax.run.sft import train_supervised
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.loop import train, trained_policy
from pbrl_jax.train.restart import restore
from pbrl_jax.weights.policies import load_policy, save_policy

#: The quickstart's settings of GRPO alone, at their defaults: other algorithms do not read them.
UNSCALED = {"scale_rewards": "group", "advantage_epsilon": 1e-4}
#: Settings that make each algorithm; all else is the quickstart's. See docs/algorithms.md for the reasons.
ALGORITHMS = {
    "grpo": {},
    "ppo": {"name": "ppo", "kl_in": "reward", "kl_estimator": "k1", "critic_learning_rate": 3e-3, **UNSCALED},
    "reinforce_plus_plus": {"name": "reinforce_plus_plus", "kl_in": "reward", "kl_estimator": "k1", **UNSCALED},
    "rloo": {"leave_one_out": True, "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.0, "mask_truncated_completions": True,
             "max_sampling_rounds": 3},
    "gspo": {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4, "num_iterations": 2},
}  # fmt: skip
NAMES = (*ALGORITHMS, "sft")
#: Where a run's name is not its folder's: the quickstart's own stage is called sft.
FOLDERS = {"sft": "sft_pivots"}

#: 97.5 % point of Student's distribution by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


#: Stages of a quickstart that a seed starts from -> their name here.
START_STAGES = {"sft": "sft", "encoder": "encoder", "evaluate_before": "evaluate_start"}


class Spent(PbrlError):
    """An algorithm has used its tokens; its state is saved."""


def copy_start(start: Path, root: Path, seed: int) -> None:
    """Take start policy, encoder and the start's accuracy from a quickstart's work directory. References name the
    folder of their expert, so the copy answers anew."""
    if (root / "stages" / "sft.json").exists():
        return
    missing = [name for name in START_STAGES if not (start / "stages" / f"{name}.json").exists()]
    if missing:
        raise ConfigError(f"{start} has not finished {', '.join(missing)}. Type: pbrl quickstart --workdir {start}")
    found = json.loads((start / "config.json").read_text())["train"]["seed"]
    if found != seed:
        raise ConfigError(f"{start} has seed {found}, expected {seed}: --starts follows the order of --seeds.")
    for folder in ("sft", "encoder"):
        shutil.copytree(start / folder, root / folder, dirs_exist_ok=True)
    (root / "stages").mkdir()
    for theirs, ours in reversed(START_STAGES.items()):
        shutil.copy(start / "stages" / f"{theirs}.json", root / "stages" / f"{ours}.json")


def tokens_used(metrics: Path) -> int:
    """Sampled tokens in the log of a run."""
    return sum(row.get("num_tokens", 0) for row in read_json_lines(metrics)) if metrics.exists() else 0


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half the width of its 95 % interval); the second is NaN for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, STUDENT.get(len(values) - 1, 1.96) * math.sqrt(variance / len(values))


def algorithm_config(config: Config, name: str, iterations: int, steps: int = 100_000) -> Config:
    """The quickstart with another algorithm. Learning rates stay at their peak: algorithms differ in their number of
    steps, and a schedule by steps would favour some."""
    algo = {"num_iterations": iterations, **ALGORITHMS[name]}
    return with_values(
        config, algo=algo, optim={"schedule": "constant"}, train={"fused": False, "max_steps": steps, "eval_steps": 1}
    )


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


def reinforced(stages: Stages, name: str, config: Config, tokens: float) -> dict:
    """Train one algorithm; what it used."""
    work = work_dir(stages.work.root / name)

    def make():
        experiment = build_experiment(config, work)
        spend(experiment, tokens)
        with jax.set_mesh(experiment.mesh):
            position = restore(experiment)
        save_policy(trained_policy(experiment, position), str(work.root / "policy"))
        return {"tokens": tokens_used(Path(str(work.metrics))), "steps": position.step}

    return cached(stages, name, make)


def budget(stages: Stages, config: Config, flags: argparse.Namespace) -> int:
    """Tokens that each algorithm may use: --tokens, or what GRPO samples in --steps steps."""
    if not flags.steps:
        return flags.tokens
    grpo = algorithm_config(config, "grpo", flags.iterations, flags.steps)
    return reinforced(stages, "grpo", grpo, math.inf)["tokens"]


def supervised(stages: Stages, config: Config, tokens: int) -> dict:
    """SFT on the references of the same prompts, for as many response tokens."""
    work = work_dir(stages.work.root / FOLDERS["sft"])

    def make():
        experiment = build_experiment(with_values(config, train={"fused": False}), work_dir(work.root / "data"))
        prompts = (*experiment.sampler.target, *experiment.sampler.english)
        texts = {p.question_en: p.reference.text for p in prompts}
        rows = [Example("en", question, text) for question, text in texts.items()]
        lengths = [len(ids) + 1 for ids in experiment.policy.tokenizer.encode_batch(list(texts.values()))]
        size = min(config.sft.batch_size, len(rows))
        steps = max(2, round(tokens / (size * sum(lengths) / len(lengths))))
        longer = with_values(
            config, sft={"steps": steps, "batch_size": size, "warmup_steps": 1,
                         "learning_rate": config.optim.learning_rate, "source": "file"}
        )  # fmt: skip
        trained = train_supervised(longer, work, experiment.policy, make_mesh(config.mesh), rows=rows)
        save_policy(trained, str(work.root / "policy"))
        return {"tokens": round(steps * size * sum(lengths) / len(lengths)), "steps": steps}

    return cached(stages, FOLDERS["sft"], make)


def mean_non_english(table: dict) -> float:
    """Mean accuracy over the languages beside English."""
    values = [row["accuracy"] for code, row in table.items() if code != "en"]
    return sum(values) / len(values)


def run_seed(root: Path, seed: int, flags: argparse.Namespace) -> None:
    """All that is not done yet of one seed."""
    base = tiny_quickstart_config(seed) if flags.tiny else quickstart_config(seed)
    use_compilation_cache(base)
    stages = Stages(work_dir(root), base, 3 + 2 * len(flags.only))
    policy = start_policy(stages)
    reward_encoder(stages, policy)
    accuracy(stages, "evaluate_start", 3, policy, policy.params)
    config = rl_config(stages)
    if flags.prompts:
        config = with_values(config, train={"prompts_per_step": flags.prompts})
    for index, name in enumerate(flags.only):
        tokens = budget(stages, config, flags)
        if name == "sft":
            supervised(stages, config, tokens)
        else:
            reinforced(stages, name, algorithm_config(config, name, flags.iterations), tokens)
        params = load_policy(str(stages.work.root / FOLDERS.get(name, name))).params
        accuracy(stages, f"evaluate_{name}", 4 + 2 * index, policy, params)


def finished(root: Path) -> dict[int, dict[str, dict]]:
    """seed -> name -> {"accuracy", "english", "table", "tokens", "steps", "seconds"} of all runs that are evaluated;
    `start` is the start policy."""
    seeds = {}
    for stages in sorted(root.glob("seed_*/stages")):
        found = {}
        for name in ("start", *NAMES):
            if (file := stages / f"evaluate_{name}.json").exists():
                table = json.loads(file.read_text())["result"]
                run = {"result": {"tokens": 0, "steps": 0}, "seconds": 0.0}
                if name != "start":
                    run = json.loads((stages / f"{FOLDERS.get(name, name)}.json").read_text())
                found[name] = {"accuracy": mean_non_english(table), "english": table["en"]["accuracy"], "table": table,
                               **run["result"], "seconds": run["seconds"]}  # fmt: skip
        seeds[int(stages.parent.name.removeprefix("seed_"))] = found
    return seeds


def summary_of(seeds: dict[int, dict]) -> dict[str, dict]:
    """name -> mean and half-width of each number over the seeds that have it, of the gain over the same seed's start,
    and of what GRPO reaches beyond it in the same seed."""
    summary = {}
    for name in ("start", *NAMES):
        those = [seed for seed in seeds.values() if name in seed]
        if not those:
            continue
        rivals = [seed for seed in those if "grpo" in seed and name != "grpo"]
        beside = [seed["grpo"]["accuracy"] - seed[name]["accuracy"] for seed in rivals]
        summary[name] = {
            "accuracy": interval([seed[name]["accuracy"] for seed in those]),
            "gain": interval([seed[name]["accuracy"] - seed["start"]["accuracy"] for seed in those]),
            "grpo_ahead": interval(beside) if beside else None,
            "english": interval([seed[name]["english"] for seed in those]),
            **{key: interval([seed[name][key] for seed in those])[0] for key in ("tokens", "steps", "seconds")},
            "seeds": len(those),
        }
    return summary


def markdown(summary: dict[str, dict]) -> str:
    """The table."""

    def share(pair) -> str:
        if pair is None:
            return ""
        mean, half = pair
        return f"{100 * mean:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")

    lines = [
        "Accuracy in % on held-out problems, mean over seeds ± half of its 95 % interval.",
        "",
        "| algorithm | without English | gain | GRPO ahead by | English | generated tokens | steps | seconds | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(summary.items(), key=lambda item: -item[1]["accuracy"][0]):
        lines.append(
            f"| {name} | {share(row['accuracy'])} | {share(row['gain'])} | {share(row['grpo_ahead'])} | "
            f"{share(row['english'])} | {row['tokens']:,.0f} | {row['steps']:.0f} | {row['seconds']:.0f} | "
            f"{row['seeds']} |"
        )
    return "\n".join(lines) + "\n"


def picture(summary: dict[str, dict], file: Path) -> None:
    """Gains over the start policy, with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(((name, row["gain"]) for name, row in summary.items() if name != "start"), key=lambda row: row[1][0])
    figure, axes = pyplot.subplots(figsize=(7, 0.5 + 0.45 * len(rows)))
    halves = [0.0 if math.isnan(half) else 100 * half for _, (_, half) in rows]
    names, means = [name for name, _ in rows], [100 * mean for _, (mean, _) in rows]
    axes.barh(names, means, xerr=halves, color="#4477aa", capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("gain in accuracy over the start policy, languages beside English (points)")
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", default=[], help="work directories of quickstarts, one for each seed")
    parser.add_argument("--tokens", type=int, default=400_000, help="sampled tokens of each algorithm")
    parser.add_argument("--steps", type=int, default=0, help="steps of GRPO, whose tokens each algorithm then gets")
    parser.add_argument("--prompts", type=int, default=0, help="prompts of a step; 0: the quickstart's")
    parser.add_argument("--iterations", type=int, default=1,
                        help="updates on each rollout batch; GSPO always makes 2: with 1 it is GRPO")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="algorithms, in this order")
    parser.add_argument("--tiny", action="store_true", help="models too small and stages too short to show an effect")
    flags = parser.parse_args(arguments)
    if flags.starts and len(flags.starts) != len(flags.seeds):
        parser.error(f"--starts names {len(flags.starts)} folders for {len(flags.seeds)} seeds: {flags.seeds}")
    return flags


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Run what is not done yet; write and print the comparison of all that is."""
    flags = parse(arguments)
    root = Path(flags.workdir)
    for index, seed in enumerate(flags.seeds):
        if flags.starts:
            copy_start(Path(flags.starts[index]), root / f"seed_{seed}", seed)
        run_seed(root / f"seed_{seed}", seed, flags)
    seeds = finished(root)
    summary = summary_of(seeds)
    record = {"settings": vars(flags), "algorithms": ALGORITHMS, "seeds": seeds, "summary": summary}
    (root / "comparison.json").write_text(json.dumps(record, indent=1))
    table = markdown(summary)
    (root / "comparison.md").write_text(table)
    picture(summary, root / "comparison.png")
    print(table)
    return summary


if __name__ == "__main__":
    main()
