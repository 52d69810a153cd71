"""The paper's run with Llama-3.1-8B on a v5e-16: 16 chips of 16 GiB.

Command:   pbrl train configs/machines/llama31_8b_v5e_16.py --workdir gs://BUCKET/llama   (launch/tpu_vm.sh, docs/scaling.md)
Hardware:  v5litepod-16. All weights are trained; the reference lies in the host's memory between its uses, and groups
           are taken apart (4 samples at a time).
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
        rollout={"weights": "as_trained"},  # a copy in bfloat16 would be 4 GB on each chip
        train={
            "prompts_per_step": 32,  # ASSUMED: the keys and values of 256 responses are 5.4 GB on each chip
            "microbatch_prompts": 4,  # parts of groups: one on each four chips
            "microbatch_samples": 4,
            "logprob_chunk": 4096,
            "offload": ("reference",),
        },
        mesh={"data": 1, "fsdp": 4, "tensor": 4},
    )
