"""Algorithms beside each other on the quickstart task: one start policy, the same number of generated tokens.

  python benchmarks/compare_algorithms.py --workdir runs/compare                      # three seeds, all algorithms
  python benchmarks/compare_algorithms.py --workdir runs/compare --seeds 0 --only grpo ppo
  python benchmarks/compare_algorithms.py --workdir runs/compare --starts runs/q0 runs/q1 runs/q2 --steps 60
  python benchmarks/compare_algorithms.py --workdir runs/tiny --tiny --seeds 0 1      # a check in minutes; no effect

Every seed has a start policy, an encoder and references of its own, which all algorithms share; --starts takes them
from finished quickstarts, one for each of --seeds, which are copied and never written to. Each algorithm then runs
until its rollouts hold --tokens sampled tokens (those that dynamic sampling throws away count), or with --steps as many
as GRPO samples in so many steps of that seed. SFT trains on the same references for as many response tokens, and DPO on
pairs of so many sampled tokens. What is finished is kept: the same command goes on, and commands for single runs
(--seeds 1 --only rloo) add up.

W/comparison.json holds every number, W/comparison.md the table, W/comparison.png the picture, of all that W holds.
Intervals are Student's, 95 %, over seeds; with one seed there are none.
"""

import argparse
import functools
import math
from pathlib import Path

from comparison import (
    FOLDERS,
    finished,
    markdown,
    parsed,
    parser,
    reinforced,
    run_all,
    run_seed,
    summary_of,
    unscheduled,
    write,
)

from pbrl_jax import Config, with_values
from pbrl_jax.core.paths import work_dir
from pbrl_jax.data.sources.quickstart import Example
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.quickstart.stages import Stages, cached
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.run.dpo import preference_pairs, train_preferences
from pbrl_jax.run.scored import scored_groups
from pbrl_jax.run.sft import train_supervised
from pbrl_jax.weights.policies import save_policy

#: The quickstart's settings of GRPO alone, at their defaults: other algorithms do not read them.
UNSCALED = {"scale_rewards": "group", "advantage_epsilon": 1e-4}
#: Settings that make each algorithm; all else is the quickstart's. See docs/algorithms.md for the reasons.
ALGORITHMS = {
    "grpo": {},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "ppo": {"name": "ppo", "kl_in": "reward", "kl_estimator": "k1", "critic_learning_rate": 3e-3, **UNSCALED},
    "reinforce_plus_plus": {"name": "reinforce_plus_plus", "kl_in": "reward", "kl_estimator": "k1", **UNSCALED},
    "rloo": {"leave_one_out": True, "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.0, "mask_truncated_completions": True,
             "max_sampling_rounds": 3},
    "gspo": {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4, "num_iterations": 2},
    "grpo_without_kl": {"beta": 0.0},
    "grpo_ahead": {},
}  # fmt: skip
#: Settings of `train` beside them: rollouts of the policy of one update before.
TRAIN = {"grpo_ahead": {"rollout_ahead": 1}}
NAMES = (*ALGORITHMS, "sft", "dpo")


def algorithm_config(config: Config, name: str, iterations: int, steps: int = 100_000) -> Config:
    """The quickstart with another algorithm."""
    algo = {"num_iterations": iterations, **ALGORITHMS[name]}
    return unscheduled(config, steps, algo=algo, train=TRAIN.get(name, {}))


def reinforce(stages: Stages, name: str, config: Config, tokens: float, flags: argparse.Namespace) -> dict:
    """Train one algorithm; what it used."""
    tokens = budget(stages, config, tokens, flags)
    return reinforced(stages, name, algorithm_config(config, name, flags.iterations), tokens)


def budget(stages: Stages, config: Config, tokens: float, flags: argparse.Namespace) -> float:
    """Tokens that each algorithm may use: --tokens, or what GRPO samples in --steps steps."""
    if not flags.steps:
        return tokens
    grpo = algorithm_config(config, "grpo", flags.iterations, flags.steps)
    return reinforced(stages, "grpo", grpo, math.inf)["tokens"]


def supervise(stages: Stages, name: str, config: Config, tokens: float, flags: argparse.Namespace) -> dict:
    """SFT on the references of the same prompts, for as many response tokens."""
    tokens = budget(stages, config, tokens, flags)
    work = work_dir(stages.work.root / FOLDERS[name])

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

    return cached(stages, FOLDERS[name], make)


def prefer(stages: Stages, name: str, config: Config, tokens: float, flags: argparse.Namespace) -> dict:
    """DPO on ranked pairs of the start policy's responses: prompts are sampled until they hold the tokens, and every
    pair is trained on about once."""
    tokens, work = budget(stages, config, tokens, flags), work_dir(stages.work.root / name)

    def make():
        longest = config.rollout.max_completion_length * config.algo.num_generations
        prompts = max(8, round(tokens / longest))  # sampled responses are nearly that long
        hosted = unscheduled(config, dpo={"prompts": prompts, "pairs": "best_worst", "learning_rate": 1e-4})
        experiment = build_experiment(hosted, work)
        groups = scored_groups(experiment, prompts)
        used = sum(len(ids) for group in groups for ids in group.tokens)
        pairs = preference_pairs(groups, hosted, experiment.policy)
        size = min(hosted.dpo.batch_size, len(pairs))
        steps = max(2, len(pairs) // size)
        ranked = with_values(hosted, dpo={"steps": steps, "batch_size": size, "warmup_steps": min(10, steps // 2)})
        trained = train_preferences(ranked, work, experiment.policy, experiment.mesh, pairs)
        save_policy(trained, str(work.root / "policy"))
        return {"tokens": used, "steps": steps}

    return cached(stages, name, make)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    options = parser(str(__doc__).split("\n")[0], NAMES, 400_000)
    options.add_argument("--steps", type=int, default=0, help="steps of GRPO, whose tokens each algorithm then gets")
    options.add_argument("--iterations", type=int, default=1,
                         help="updates on each rollout batch; GSPO always makes 2: with 1 it is GRPO")  # fmt: skip
    return parsed(options, arguments)


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Run what is not done yet; write and print the comparison of all that is."""
    flags = parse(arguments)
    trains = dict.fromkeys(ALGORITHMS, reinforce) | {"sft": supervise, "dpo": prefer}
    runs = {name: functools.partial(train, flags=flags) for name, train in trains.items()}
    run_all(flags, lambda root, seed: run_seed(root, seed, flags, runs))
    root = Path(flags.workdir)
    seeds = finished(root, NAMES)
    summary = summary_of(seeds, NAMES, "grpo")
    record = {"settings": vars(flags), "algorithms": ALGORITHMS, "seeds": seeds, "summary": summary}
    write(root, record, markdown(summary, "algorithm", "GRPO"), summary)
    return summary


if __name__ == "__main__":
    main()
