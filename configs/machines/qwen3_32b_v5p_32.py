"""The paper's larger run, Qwen3-32B, on a v5p-32: 16 chips of 95 GiB.

Command:   pbrl train configs/machines/qwen3_32b_v5p_32.py --workdir gs://BUCKET/qwen3   (launch/tpu_vm.sh)
Hardware:  v5p-32, which is counted in cores: 16 chips on 4 hosts. All weights are trained.
Expected:  as configs/qwen3_32b_pbrlsvr.py; nobody has made this run.

Plan:      pbrl plan configs/machines/qwen3_32b_v5p_32.py --topology v5p-32

    program   HBM GB  temporary   TFLOP  seconds  binds    from
    generate    51.3       12.6    2270    8.0    memory   hand
    reward      34.9        0.3      27    0.089  memory   hand
    update      69.4       34.8   11608   25.3    compute  hand

Per chip, of 102.0 GB, by hand; seconds are at least. Compiled without fused attention, the update held 91.7 GB.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "qwen3_32b_pbrlsvr.py"))
    return with_values(
        paper,
        encoder={"source": "BAAI/bge-m3", "prefix": ""},  # ASSUMED
        train={
            "microbatch_prompts": 8,  # two prompt groups on each four chips
            "logprob_chunk": 8192,
        },
        mesh={"data": 1, "fsdp": 4, "tensor": 4},  # while decoding, 16 GB of weights in bfloat16 on each chip
    )
