"""REINFORCE++ with the semantic reward: no critic, the KL in the reward, advantages whitened over the batch.

Command:   pbrl train configs/paper/reinforcepp.py --workdir runs/reinforcepp
           With Qwen3-32B: the same and --policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64
Hardware:  one host with 8 devices of 80 GB; untried. By `pbrl plan configs/paper/reinforcepp.py --topology h100:8`
           (by hand) a device holds 47.1 GB while it samples, 20.6 GB in the reward and 45.7 GB in the update.
           Qwen3-32B: 8 devices of 141 GB with --mesh.fsdp 2 --mesh.tensor 4 --train.microbatch-prompts 2:
           96.2, 63.8 and 107.9 GB.
Expected:  the paper's table is not known to us; docs/REPRODUCTION.md says what to compare.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    return with_values(
        paper,
        # ASSUMED: all values; REINFORCE++ (arXiv 2501.03262) puts a k1 estimate into the reward.
        algo={"name": "reinforce_plus_plus", "kl_in": "reward", "kl_estimator": "k1"},
    )
