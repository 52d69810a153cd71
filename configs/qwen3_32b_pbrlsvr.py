"""PB-RLSVR (arXiv 2509.25543) with Qwen3-32B: the paper's larger run, as far as it is known.

Command:   pbrl train configs/qwen3_32b_pbrlsvr.py --workdir runs/qwen3 --dry-run --devices 8
Works now: the dry run, on any machine, as for configs/llama31_8b_pbrlsvr.py, which has all that is shared, the reward
           (COMET on the answer, embeddings of the reasoning) and Qwen3's thinking switch (off) among it. Nobody has
           made this run yet.
Hardware:  one host with 8 devices of 141 GB, untried, with --mesh.fsdp 2 --mesh.tensor 4 --train.microbatch-prompts 2:
           by `pbrl plan` for h200:8 (by hand) a device holds 96.2 GB while it samples, 63.8 GB in the reward and
           107.9 GB in the update. Settings for a v5p-32 and 8 x H100, with their plans: configs/machines.
Expected:  the paper reports +10.17 % average multilingual improvement. Whether relative or in points, over which
           languages and benchmarks, is not known to us, so nothing here claims to reproduce it.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    smaller = load_config(str(Path(__file__).with_name("llama31_8b_pbrlsvr.py")))
    return with_values(
        smaller,
        policy={"source": "Qwen/Qwen3-32B"},
        # ASSUMED: with 8 samples, 256 responses.
        train={"prompts_per_step": 32},
        eval={"batch_size": 64},  # ASSUMED
    )
