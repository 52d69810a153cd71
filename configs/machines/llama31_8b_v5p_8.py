"""The paper's run with Llama-3.1-8B on a v5p-8: 4 chips of 95 GiB.

Command:   pbrl train configs/machines/llama31_8b_v5p_8.py --workdir gs://BUCKET/llama   (launch/tpu_vm.sh)
Hardware:  v5p-8, which is counted in cores: 4 chips on one host. All weights are trained.
Expected:  as configs/llama31_8b_pbrlsvr.py; nobody has made this run.

Plan:      pbrl plan configs/machines/llama31_8b_v5p_8.py --topology v5p-8

    program   HBM GB  temporary   TFLOP  seconds  binds    from
    generate    63.2       25.2    4269     25.8  memory   hand
    reward      35.2        1.2     214      0.7  memory   hand
    update      67.8       33.8   21860     47.6  compute  hand

Per chip, of 102.0 GB, by hand; seconds are at least. Compiled, the update holds 80.9 GB, 46.8 of them temporary, and
takes 45.4 s; the reward holds 35.2 GB.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    return with_values(
        paper,
        encoder={"source": "BAAI/bge-m3", "prefix": ""},  # ASSUMED
        rollout={"slots": 256},  # half of the rows at a time: their keys and values are 21.5 GB on each chip
        train={
            "microbatch_prompts": 4,  # one prompt group on each chip
            "logprob_chunk": 4096,  # 1024 positions on each chip
        },
        mesh={"data": 1, "fsdp": 4, "tensor": 1},
    )
