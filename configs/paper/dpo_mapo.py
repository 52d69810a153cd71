"""DPO on pairs of the policy's own responses, ranked by the semantic reward: MAPO's form (arXiv 2401.06838).

Command:   pbrl dpo configs/paper/dpo_mapo.py --workdir runs/dpo_mapo
           With Qwen3-32B: the same and --policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64
Hardware:  one host with 8 devices of 80 GB; untried. By `pbrl plan
           configs/paper/dpo_mapo.py --topology h100:8 --verb dpo` (by hand) a device holds 39.1 GB while it samples,
           12.5 GB in the reward and 36.7 GB in the training.
           Qwen3-32B: 8 devices of 141 GB with --mesh.fsdp 2 --mesh.tensor 4: 63.4, 31.1 and 110.6 GB.
Expected:  not in the paper; an offline baseline of ours.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    return with_values(
        paper,
        dpo={
            "pairs": "all",  # ASSUMED: MAPO ranks all samples of a question
            "min_margin": 0.05,  # ASSUMED
            "beta": 0.1,  # ASSUMED
            "learning_rate": 5e-7,  # ASSUMED
            "prompts": 4096,  # ASSUMED
            "steps": 500,  # ASSUMED
        },
    )
