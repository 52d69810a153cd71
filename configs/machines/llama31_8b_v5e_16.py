"""The paper's run with Llama-3.1-8B on a v5e-16: 16 chips of 16 GiB.

Command:   pbrl train configs/machines/llama31_8b_v5e_16.py --workdir gs://BUCKET/llama   (launch/tpu_vm.sh)
Hardware:  v5litepod-16. All weights are trained; moments and reference lie in the host's memory between their uses,
           and groups are taken apart (4 samples at a time).
Expected:  as configs/llama31_8b_pbrlsvr.py; nobody has made this run.

Plan:      pbrl plan configs/machines/llama31_8b_v5e_16.py --topology v5litepod-16

    program   HBM GB  temporary   TFLOP  seconds  binds    from
    generate     9.4        6.3    1067     27.1  memory   hand
    reward       3.4        0.3      54      0.611 memory  hand
    update      15.3        8.1    5611     28.5  compute  hand

Per chip, of 17.2 GB, by hand; seconds are at least. Weights are exchanged at every token, which the links bound, too.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    return with_values(
        paper,
        encoder={"source": "BAAI/bge-m3", "prefix": ""},  # ASSUMED
        # ASSUMED: COMET and its translator, 4.8 GB, have no room here, so the answer part is an embedding cosine, too.
        reward={"hybrid_answer": "cosine", "comet": "", "translator": ""},
        rollout={
            "weights": "as_trained",  # a copy in bfloat16 would be 4 GB on each chip
            "slots": 256,  # half of the rows at a time: their keys and values are 5.4 GB on each chip
        },
        train={
            "microbatch_prompts": 4,  # parts of groups: one on each four chips
            "microbatch_samples": 4,
            "logprob_chunk": 4096,
            "offload": ("optimizer", "reference"),
        },
        mesh={"data": 1, "fsdp": 4, "tensor": 4},
    )
