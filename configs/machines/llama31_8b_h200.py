"""The paper's run with Llama-3.1-8B on one H200 of 141 GB, by adapters.

Command:   pbrl train configs/machines/llama31_8b_h200.py --workdir runs/llama   (docs/guide_one_gpu.md)
Hardware:  one H200. Adapters of rank 16 are trained beside the frozen float32 weights.
Expected:  as configs/llama31_8b_pbrlsvr.py; nobody has made this run.

PLAN
"""

from pathlib import Path

from pbrl_jax.core.config import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    return with_values(
        paper,
        encoder={"source": "BAAI/bge-m3", "prefix": ""},  # ASSUMED
        lora={"rank": 16, "alpha": 32.0},  # ASSUMED: usual values
        optim={"learning_rate": 1e-5},  # ASSUMED: ten times that of full fine-tuning
        train={
            "prompts_per_step": 16,  # ASSUMED: the keys and values of 128 responses are 43 GB
            "microbatch_prompts": 1,
            "logprob_chunk": 1024,
        },
        mesh={"data": 1, "fsdp": 1, "tensor": 1},
    )
