"""The paper's run with Llama-3.1-8B on one H200 of 141 GB, by adapters.

Command:   pbrl train configs/machines/llama31_8b_h200.py --workdir runs/llama   (docs/guide_one_gpu.md)
Hardware:  one H200. Adapters of rank 16 are trained beside the frozen bfloat16 weights.
Expected:  as configs/llama31_8b_pbrlsvr.py; nobody has made this run.

Plan:      pbrl plan configs/machines/llama31_8b_h200.py --topology h200:1

    program   HBM GB  temporary   TFLOP  seconds  binds    from
    generate    88.0       49.5   17167     73.2  memory   hand
    reward      27.3        4.8     858      1.6  memory   hand
    update      38.4       15.9   71000     71.8  compute  hand

Per device, of 141.0 GB, by hand, since no such GPU was there to compile for. A step takes at least 147 s.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    return with_values(
        paper,
        encoder={"source": "BAAI/bge-m3", "prefix": ""},  # ASSUMED
        lora={"rank": 16, "alpha": 32.0},  # ASSUMED: usual values
        optim={"learning_rate": 1e-5},  # ASSUMED: ten times that of full fine-tuning
        rollout={"slots": 128},  # a quarter of the rows at a time: their keys and values are 43 GB
        train={
            "microbatch_prompts": 1,
            "logprob_chunk": 1024,
        },
        mesh={"data": 1, "fsdp": 1, "tensor": 1},
    )
