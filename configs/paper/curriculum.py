"""The paper's future work: the pivot's reward fades while the verifiable answer's grows.

Command:   pbrl train configs/paper/curriculum.py --workdir runs/curriculum
           With Qwen3-32B: the same and --policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64
Hardware:  one host with 8 devices of 80 GB; untried. By `pbrl plan configs/paper/curriculum.py --topology h100:8`
           (by hand) a device holds 47.1 GB while it samples, 20.6 GB in the reward and 45.7 GB in the update.
           Qwen3-32B: 8 devices of 141 GB with --mesh.fsdp 2 --mesh.tensor 4 --train.microbatch-prompts 2:
           96.2, 63.8 and 107.9 GB.
Expected:  not in the paper.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    return with_values(
        paper,
        reward={
            "functions": (*paper.reward.functions, "answer"),
            "reward_weights": (*paper.reward.reward_weights, 0.0),  # ASSUMED
            # ASSUMED: not to nothing, since most responses are wrong for long
            "final_weights": (0.2, *paper.reward.reward_weights[1:], 1.0),  # ASSUMED
            "curriculum_start": 50,  # ASSUMED
            "curriculum_steps": 300,  # ASSUMED
        },
    )
