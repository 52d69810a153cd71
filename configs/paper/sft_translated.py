"""The paper's SFT baseline, in the reading of references translated into every language.

Command:   pbrl sft configs/paper/sft_translated.py --workdir runs/sft_translated
           With Qwen3-32B: the same and --policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64
Hardware:  one host with 8 devices of 80 GB; the translator (600 M parameters) runs before. Untried. By `pbrl plan
           configs/paper/sft_translated.py --topology h100:8 --verb sft` (by hand) a device holds 35.9 GB in the
           training.
           Qwen3-32B: 8 devices of 141 GB with --mesh.fsdp 2 --mesh.tensor 4: 105.9 GB.
Expected:  the paper's table is not known to us; docs/REPRODUCTION.md says what to compare.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    return with_values(
        paper,
        sft={
            "source": "translated",  # ASSUMED: what SFT was done on is not stated
            "translator": "facebook/nllb-200-distilled-600M",  # ASSUMED; licence CC-BY-NC
            "steps": 500,  # ASSUMED: as many as the RL run
            "batch_size": 64,  # ASSUMED
            "learning_rate": 1e-5,  # ASSUMED: usual for full fine-tuning
            "warmup_steps": 20,  # ASSUMED
            "packed": True,
        },
    )
