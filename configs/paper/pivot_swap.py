"""Another English expert: the policy itself writes the references that the others are compared with.

Command:   pbrl train configs/paper/pivot_swap.py --workdir runs/pivot_swap
           With Qwen3-32B: the same and --policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64
Hardware:  one host with 8 devices of 80 GB; untried. By `pbrl plan configs/paper/pivot_swap.py --topology h100:8`
           (by hand) a device holds 47.1 GB while it samples, 20.6 GB in the reward and 45.7 GB in the update.
           Qwen3-32B: 8 devices of 141 GB with --mesh.fsdp 2 --mesh.tensor 4 --train.microbatch-prompts 2:
           96.2, 63.8 and 107.9 GB.
Expected:  not in the material at hand.

Any other expert: write its responses to a file ({"question", "response"} a line), and
--pivot.source file --pivot.file FILE. The pivot store keeps the references of each expert apart.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    return with_values(
        paper,
        pivot={
            "source": "policy",  # ASSUMED: the paper calls for a high-performing English model, and does not name it
            "temperature": 0.0,  # ASSUMED
        },
    )
