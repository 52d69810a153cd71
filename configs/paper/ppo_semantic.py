"""The paper's PPO baseline, in the reading that it has the same semantic reward.

Command:   pbrl train configs/paper/ppo_semantic.py --workdir runs/ppo_semantic
           With Qwen3-32B: the same and --policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64
Hardware:  one host with 8 devices of 80 GB; untried. By `pbrl plan configs/paper/ppo_semantic.py --topology h100:8`
           (by hand) a device holds 47.1 GB while it samples, 20.6 GB in the reward and 45.7 GB in the update.
           Qwen3-32B: 8 devices of 141 GB with --mesh.fsdp 2 --mesh.tensor 4 --train.microbatch-prompts 2:
           96.2, 63.8 and 107.9 GB.
Expected:  the paper's table is not known to us; docs/REPRODUCTION.md says what to compare.
"""

import dataclasses
from pathlib import Path

from pbrl_jax import Config
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    ppo = load_config(str(Path(__file__).with_name("ppo_outcome.py")))
    return dataclasses.replace(ppo, reward=paper.reward)  # ASSUMED: the other reading
