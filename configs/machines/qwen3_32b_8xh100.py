"""The paper's larger run, Qwen3-32B, on one box of eight H100 of 80 GB, by adapters.

Command:   pbrl train configs/machines/qwen3_32b_8xh100.py --workdir runs/qwen3   (launch/gpu_node.sh)
Hardware:  eight H100 with NVLink. Adapters of rank 16 are trained beside the frozen bfloat16 weights, which are cut
           over all eight.
Expected:  as configs/qwen3_32b_pbrlsvr.py; nobody has made this run.

Plan:      pbrl plan configs/machines/qwen3_32b_8xh100.py --topology h100:8

    program   HBM GB  temporary   TFLOP  seconds  binds    from
    generate    47.0       24.5    4558   13.2    memory   hand
    reward      14.9        0.6      54    0.146  memory   hand
    update      26.9       12.6   18816   19.025  compute  hand

Per device, of 80.0 GB, by hand, since no such GPU was there to compile for. A step takes at least 32 s.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "qwen3_32b_pbrlsvr.py"))
    return with_values(
        paper,
        encoder={"source": "BAAI/bge-m3", "prefix": ""},  # ASSUMED
        lora={"rank": 16, "alpha": 32.0},  # ASSUMED: usual values
        optim={"learning_rate": 1e-5},  # ASSUMED: ten times that of full fine-tuning
        train={
            "microbatch_prompts": 2,
            "logprob_chunk": 4096,
        },
        mesh={"data": 1, "fsdp": 1, "tensor": 8},  # one group of eight by NVLink
    )
