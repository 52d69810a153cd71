"""PB-RLSVR with adapters of rank 16 beside weights in four bits (QLoRA).

Command:   pbrl train configs/paper/lora.py --workdir runs/lora
           With Qwen3-32B: the same and --policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64
Hardware:  one device of 80 GB for the 8 B policy, untried: 32 GB while the float32 weights are quantised; then, by
           `pbrl plan configs/paper/lora.py --topology h100:1` (by hand), 39.5 GB while it samples, 17.0 GB in the
           reward and 39.2 GB in the update. Qwen3-32B: on one of 141 GB with --train.prompts-per-step 8, whose plan
           says 80.8, 32.0 and 71.1 GB (131 GB while its float32 weights are quantised); 32 prompts do not fit.
Expected:  not in the paper.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    return with_values(
        paper,
        lora={"rank": 16, "alpha": 32.0, "quantization": "nf4"},  # ASSUMED: usual values
        optim={"learning_rate": 1e-5},  # ASSUMED: ten times that of full fine-tuning
        train={"prompts_per_step": 8, "microbatch_prompts": 1},  # ASSUMED: 64 responses fit one device
        mesh={"data": 1, "fsdp": 1},
    )
