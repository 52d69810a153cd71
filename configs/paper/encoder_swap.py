"""Another encoder for the reasoning part of the reward: LaBSE, which was trained on translation pairs.

Command:   pbrl train configs/paper/encoder_swap.py --workdir runs/encoder_swap
           With Qwen3-32B: the same and --policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64
Hardware:  one host with 8 devices of 80 GB; untried. By `pbrl plan configs/paper/encoder_swap.py --topology h100:8`
           (by hand) a device holds 47.0 GB while it samples, 20.0 GB in the reward and 45.5 GB in the update.
           Qwen3-32B: 8 devices of 141 GB with --mesh.fsdp 2 --mesh.tensor 4 --train.microbatch-prompts 2:
           96.0, 63.2 and 107.8 GB.
Expected:  not in the material at hand.

References are embedded anew and not written anew. Others: --encoder.source BAAI/bge-m3 --encoder.max-length 1024;
what their cosines mean, and whether they can be cheated, say `pbrl calibrate` and `pbrl audit` with the same config.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    # ASSUMED: the paper's encoder is unknown. LaBSE reads 256 tokens and wants no prefix.
    return with_values(paper, encoder={"source": "sentence-transformers/LaBSE", "max_length": 256, "prefix": ""})
