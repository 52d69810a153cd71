"""How much the answer counts beside the reasoning: alpha of the hybrid reward from 0 to 1.

Command:   pbrl train configs/paper/alpha_sweep.py --workdir runs/alpha_sweep
           With Qwen3-32B: the same and --policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64
Hardware:  one host with 8 devices of 80 GB; untried. By `pbrl plan configs/paper/alpha_sweep.py --topology h100:8`
           (by hand) a device holds 47.1 GB while it samples, 20.6 GB in the reward and 45.7 GB in the update.
           Qwen3-32B: 8 devices of 141 GB with --mesh.fsdp 2 --mesh.tensor 4 --train.microbatch-prompts 2:
           96.2, 63.8 and 107.9 GB.
Expected:  not in the material at hand.

The sweep, one run each:

  for alpha in 0.0 0.25 0.5 0.75 1.0; do
    pbrl train configs/paper/alpha_sweep.py --workdir runs/alpha_$alpha --reward.answer-weight $alpha
  done
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    return with_values(paper, reward={"answer_weight": 0.5})  # ASSUMED: the middle of the sweep
