"""Algorithms beside each other on the quickstart task: one start policy, the same number of generated tokens.

  python benchmarks/compare_algorithms.py --workdir runs/compare                      # three seeds, all algorithms
  python benchmarks/compare_algorithms.py --workdir runs/compare --seeds 1 --only grpo ppo
  python benchmarks/compare_algorithms.py --workdir runs/tiny --tiny --seeds 2        # a check in minutes; no effect

Every seed has a start policy, an encoder and references of its own, which all algorithms share. Each algorithm then
runs until its rollouts hold --tokens sampled tokens (those that dynamic sampling throws away count); SFT trains on the
same references for as many response tokens. What is finished is kept: the same command goes on.

W/comparison.json holds every number, W/comparison.md the table, W/comparison.png the picture. Intervals are Student's,
95 %, over seeds; with one seed there are none.
"""

import argparse
import json
import math
from pathlib import Path

import jax

from pbrl_jax.assets.policy import load_policy, save_policy
from pbrl_jax.core.config import Config, with_values
from pbrl_jax.core.errors import PbrlError
from pbrl_jax.core.paths import read_json_lines, work_dir
from pbrl_jax.core.sharding import make_mesh
from pbrl_jax.data.sources.quickstart import Example
from pbrl_jax.run.assemble import build_experiment, use_compilation_cache
from pbrl_jax.run.quickstart_config import quickstart_config, tiny_quickstart_config
from pbrl_jax.run.quickstart_stages import Stages, accuracy, cached, reward_encoder, rl_config, start_policy
from pbrl_jax.run.sft import train_supervised
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.loop import restore, train, trained_policy

#: Settings that make each algorithm; all else is the quickstart's. See docs/algorithms.md for the reasons.
ALGORITHMS = {
    "grpo": {},
    "ppo": {"name": "ppo", "kl_in": "reward", "kl_estimator": "k1", "critic_learning_rate": 3e-3},
    "reinforce_plus_plus": {"name": "reinforce_plus_plus", "kl_in": "reward", "kl_estimator": "k1"},
    "rloo": {"leave_one_out": True, "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.0, "mask_truncated_completions": True,
             "max_sampling_rounds": 3},
    "gspo": {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
}  # fmt: skip
NAMES = (*ALGORITHMS, "sft")

#: 97.5 % point of Student's distribution by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


class Spent(PbrlError):
    """An algorithm has used its tokens; its state is saved."""


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


def algorithm_config(config: Config, name: str, iterations: int) -> Config:
    """The quickstart with another algorithm. Learning rates stay at their peak: algorithms differ in their number of
    steps, and a schedule by steps would favour some."""
    algo = {"num_iterations": iterations, **ALGORITHMS[name]}
    return with_values(
        config, algo=algo, optim={"schedule": "constant"}, train={"fused": False, "max_steps": 100_000, "eval_steps": 1}
    )


def spend(experiment: Experiment, tokens: int) -> None:
    """Train until the rollouts hold so many tokens; goes on where it was left."""

    def evaluate(_params) -> dict[str, float]:
        if tokens_used(Path(str(experiment.work.metrics))) >= tokens:
            raise Spent("All tokens are used.")
        return {}

    try:
        train(experiment, evaluate, quiet=True)
    except Spent:
        return
    raise SystemExit("Stopped; what is finished is kept. The same command goes on from here.")


def reinforced(stages: Stages, name: str, config: Config, tokens: int) -> dict:
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


def supervised(stages: Stages, config: Config, tokens: int) -> dict:
    """SFT on the references of the same prompts, for as many response tokens."""
    work = work_dir(stages.work.root / "sft_pivots")

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

    return cached(stages, "sft_pivots", make)


def mean_non_english(table: dict) -> float:
    """Mean accuracy over the languages beside English."""
    values = [row["accuracy"] for code, row in table.items() if code != "en"]
    return sum(values) / len(values)


def run_seed(root: Path, seed: int, flags: argparse.Namespace) -> dict[str, dict]:
    """name -> {"accuracy", "english", "tokens", "steps", "seconds"} of one seed; `start` is the start policy."""
    base = tiny_quickstart_config(seed) if flags.tiny else quickstart_config(seed)
    use_compilation_cache(base)
    stages = Stages(work_dir(root / f"seed_{seed}"), base, 3 + 2 * len(flags.only))
    policy = start_policy(stages)
    reward_encoder(stages, policy)
    config = rl_config(stages)

    def record(name: str, number: int, params, used: dict) -> dict:
        table = accuracy(stages, f"evaluate_{name}", number, policy, params)
        return {"accuracy": mean_non_english(table), "english": table["en"]["accuracy"], "table": table, **used}

    found = {"start": record("start", 3, policy.params, {"tokens": 0, "steps": 0})}
    for index, name in enumerate(flags.only):
        if name == "sft":
            used, folder = supervised(stages, config, flags.tokens), "sft_pivots"
        else:
            changed = algorithm_config(config, name, flags.iterations)
            used, folder = reinforced(stages, name, changed, flags.tokens), name
        params = load_policy(str(stages.work.root / folder)).params
        seconds = json.loads((stages.work.root / "stages" / f"{folder}.json").read_text())["seconds"]
        found[name] = record(name, 4 + 2 * index, params, {**used, "seconds": seconds})
    return found


def summary_of(seeds: dict[int, dict]) -> dict[str, dict]:
    """name -> mean and half-width of each number over seeds, and of the gain over the same seed's start."""
    names = list(next(iter(seeds.values())))
    summary = {}
    for name in names:
        runs = [seed[name] for seed in seeds.values()]
        gains = [seed[name]["accuracy"] - seed["start"]["accuracy"] for seed in seeds.values()]
        summary[name] = {
            "accuracy": interval([run["accuracy"] for run in runs]),
            "gain": interval(gains),
            "english": interval([run["english"] for run in runs]),
            "tokens": interval([run["tokens"] for run in runs])[0],
            "steps": interval([run["steps"] for run in runs])[0],
            "seconds": interval([run.get("seconds", 0.0) for run in runs])[0],
        }
    return summary


def markdown(summary: dict[str, dict], seeds: int) -> str:
    """The table."""

    def share(pair) -> str:
        mean, half = pair
        return f"{100 * mean:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")

    lines = [
        f"Accuracy in % on held-out problems, mean of {seeds} seed(s) ± half of the 95 % interval over seeds.",
        "",
        "| algorithm | without English | gain | English | generated tokens | steps | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(summary.items(), key=lambda item: -item[1]["accuracy"][0]):
        lines.append(
            f"| {name} | {share(row['accuracy'])} | {share(row['gain'])} | {share(row['english'])} | "
            f"{row['tokens']:,.0f} | {row['steps']:.0f} | {row['seconds']:.0f} |"
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


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Run what is not done yet; write and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=400_000, help="sampled tokens of each algorithm")
    parser.add_argument("--iterations", type=int, default=2,
                        help="updates on each rollout batch; with 1 GSPO is GRPO, as no ratio leaves 1")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="algorithms, in this order")
    parser.add_argument("--tiny", action="store_true", help="models too small and stages too short to show an effect")
    flags = parser.parse_args(arguments)
    root = Path(flags.workdir)
    seeds = {seed: run_seed(root, seed, flags) for seed in range(flags.seeds)}
    summary = summary_of(seeds)
    record = {"settings": vars(flags), "algorithms": ALGORITHMS, "seeds": seeds, "summary": summary}
    (root / "comparison.json").write_text(json.dumps(record, indent=1))
    table = markdown(summary, flags.seeds)
    (root / "comparison.md").write_text(table)
    picture(summary, root / "comparison.png")
    print(table)
    return summary


if __name__ == "__main__":
    main()
