"""The paper's PPO baseline, in the reading that it is rewarded for right answers.

Command:   pbrl train configs/paper/ppo_outcome.py --workdir runs/ppo_outcome
           With Qwen3-32B: the same and --policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64
Hardware:  one host with 8 devices of 80 GB; untried. By `pbrl plan configs/paper/ppo_outcome.py --topology h100:8`
           (by hand) a device holds 42.4 GB while it samples, 15.8 GB in the reward and 40.9 GB in the update.
           Qwen3-32B: 8 devices of 141 GB with --mesh.fsdp 2 --mesh.tensor 4 --train.microbatch-prompts 2:
           91.4, 59.1 and 103.2 GB.
Expected:  the paper's table is not known to us; docs/REPRODUCTION.md says what to compare.
"""

import dataclasses
from pathlib import Path

from pbrl_jax import Config, RewardConfig, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    # ASSUMED: what the baseline was rewarded for is not stated
    outcome = dataclasses.replace(paper, reward=RewardConfig(functions=("answer",)))
    return with_values(
        outcome,
        algo={
            "name": "ppo",
            "kl_in": "reward",  # ASSUMED: as in InstructGPT
            "kl_estimator": "k1",  # ASSUMED
            "gamma": 1.0,  # ASSUMED
            "lam": 0.95,  # ASSUMED
            "vf_coef": 0.1,  # ASSUMED
            "cliprange_value": 0.2,  # ASSUMED
            "critic_learning_rate": 1e-5,  # ASSUMED
            "value_pretrain_steps": 20,  # ASSUMED: a new value head says nothing of use
        },
    )
