"""The quickstart's controls: runs from the same start policy with one change, for comparison with the main run.

`shuffled`: every prompt is rewarded against another problem's reference. `answer`: the gold answer is the only reward,
an upper limit for the semantic reward. `sft_continued`: more supervised fine-tuning on the same text, for as many
responses as the rollouts had. `report.data.CONTROLS` has their titles.
"""

from typing import Any

import numpy as np

from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.paths import work_dir
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.quickstart.stages import Stages, cached, reinforce
from pbrl_jax.run.sft import train_supervised
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.weights.policies import Policy, load_policy, save_policy


def shuffled_references(experiment: Experiment) -> Experiment:
    """Every prompt with the reference of another problem."""
    ids = sorted(experiment.pivot_rows)
    rows = [experiment.pivot_rows[i] for i in ids]
    order = np.random.default_rng(experiment.config.train.seed).permutation(len(ids))
    permuted = {i: rows[j] for i, j in zip(ids, order, strict=True)}
    fingerprints = dict(experiment.fingerprints) | {"pivots": "shuffled"}
    return experiment._replace(pivot_rows=permuted, fingerprints=fingerprints)


def shuffled(stages: Stages, name: str, number: int, config: Config, policy: Policy) -> Any:
    """GRPO against the references of other problems."""
    return reinforce(stages, name, number, config, shuffled_references)


def answer(stages: Stages, name: str, number: int, config: Config, policy: Policy) -> Any:
    """GRPO with the gold answer as the only reward, on the host path."""
    reward = {"functions": ("answer",), "reward_weights": (1.0,), "similarity": "raw", "similarity_floor": 0.0}
    hosted = with_values(config, reward=reward, train={"fused": False})
    return reinforce(stages, name, number, hosted)


def sft_continued(stages: Stages, name: str, number: int, config: Config, policy: Policy) -> Any:
    """Continued supervised fine-tuning on as many responses as the rollouts had, at the learning rate of RL."""
    responses = config.train.max_steps * config.train.prompts_per_step * config.algo.num_generations
    steps = responses // config.sft.batch_size
    longer = with_values(config, sft={"steps": steps, "learning_rate": config.optim.learning_rate})
    folder = stages.work.root / name

    def make():
        trained = train_supervised(longer, work_dir(folder), policy, make_mesh(config.mesh), (number, stages.total))
        save_policy(trained, str(folder / "policy"))

    cached(stages, name, make)
    return load_policy(str(folder), make_mesh(config.mesh)).params


CONTROLS = {"shuffled": shuffled, "answer": answer, "sft_continued": sft_continued}
"""Name -> function (stages, name, stage number, config, start policy) -> trained parameters."""
