"""Transfer to unseen languages: training in four European languages and Chinese, evaluation in all eleven of MGSM.

Command:   pbrl train configs/paper/seen_unseen.py --workdir runs/seen_unseen
           With Qwen3-32B: the same and --policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64
Hardware:  one host with 8 devices of 80 GB; untried. By `pbrl plan configs/paper/seen_unseen.py --topology h100:8`
           (by hand) a device holds 47.1 GB while it samples, 20.6 GB in the reward and 45.7 GB in the update.
           Qwen3-32B: 8 devices of 141 GB with --mesh.fsdp 2 --mesh.tensor 4 --train.microbatch-prompts 2:
           96.2, 63.8 and 107.9 GB.
Expected:  the paper reports transfer to unseen languages, without numbers known to us. `pbrl eval` writes means over
           seen and unseen languages apart; the languages seen are read from the run's config.json.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    paper = load_config(str(Path(__file__).parents[1] / "llama31_8b_pbrlsvr.py"))
    # ASSUMED: the paper's split is unknown. Unseen: Bengali, Japanese, Russian, Swahili, Telugu, Thai.
    return with_values(paper, data={"languages": ("en", "de", "es", "fr", "zh")})
